"""Searches side by side on the same prompts, at equal cost: the run and its journal. `report` makes numbers of it.

All methods share their first draft (same task, same seed, same random stream), so the pairs are level. A journal
takes one line a finished search, so a killed run goes on where it stopped; the report is made from the journal alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from milr import registry
from milr.backbones.base import Backbone
from milr.drafts import Task, Trajectory, UserError
from milr.runs.generate import Request, prepare
from milr.runs.output import write_atomically
from milr.runs.record import fingerprint, versions
from milr.runs.report import BASELINE, Method, Outcome, curves, make_report, to_markdown

FORMAT = "milr-bench/1"
SEARCHES_AT_ONCE = 32

METHODS = (
    Method("single", "single"),
    Method("best-of-n greedy text", "best-of-n", "greedy-text"),
    Method(BASELINE, "best-of-n", "sampled-text"),
    Method("milr paper", "milr", "paper"),
    Method("milr official", "milr", "official", returns_last=True),
    Method("milr text only", "milr", "text-only"),
    Method("milr image only", "milr", "image-only"),
    Method("repair", "repair"),
)


def bench(
    backbone: Backbone,
    tasks: Sequence[Task],
    folder: Path,
    *,
    methods: Sequence[Method] = METHODS,
    baseline: str = BASELINE,
    budget: int = 20,
    seed: int = 0,
    seeds: int = 1,
    critic: str = "scene",
    held_out: str | None = None,
    about: Mapping[str, Any] | None = None,
    tell: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Run what the journal in `folder` lacks, then write and return the report (report.json, report.md, curves.svg).

    Args:
        baseline: name of the method that the others are paired with, prompt by prompt.
        seeds: searches of each prompt and method, with seed indices 0 to seeds - 1.
        held_out: a critic that judges the returned drafts and that no search sees.
        about: what else belongs in the report (the command that made it). tell: hears (method, searches done, of all).
    Raises UserError if the journal in `folder` is of another run.
    """
    from milr.searches.driver import Interrupted, drive_lazily

    plans = {
        method.name: prepare(Request(method.search, method.preset, dict(method.settings), budget=budget, seed=seed))
        for method in methods
    }
    head = {
        "format": FORMAT,
        "model": backbone.info.name,
        "fingerprint": fingerprint(backbone),
        "dtype": backbone.info.dtype,
        "critic": critic,
        "held_out": held_out,
        "budget": budget,
        "seed": seed,
        "seeds": seeds,
        "tasks": _digest(tasks),
    }
    judge = registry.load(registry.find("critic", critic)).make(backbone)
    others = [registry.load(registry.find("critic", held_out)).make(backbone)] if held_out else []
    searches = len(tasks) * seeds
    with Journal(folder / "journal.jsonl", head) as journal:
        for method in methods:
            finished = journal.finished(method)
            left = [task for task in tasks if not all((task.id, index) in finished for index in range(seeds))]
            plan = plans[method.name]
            count = searches - len(left) * seeds
            if tell is not None:
                tell(method.name, count, searches)
            trajectories = drive_lazily(
                backbone, judge, left, plan.search, plan.settings, name=method.search, budget=budget, seed=seed,
                seeds=seeds, held_out=others, batch=SEARCHES_AT_ONCE,
            )  # fmt: skip
            try:
                for trajectory in trajectories:
                    journal.add(_outcome(method, trajectory))
                    count += 1
                    if tell is not None:
                        tell(method.name, count, searches)
            except Interrupted as stop:
                for trajectory in stop.trajectories:
                    if trajectory.stopped != "interrupted":
                        journal.add(_outcome(method, trajectory))
                raise
        outcomes = list(journal.outcomes.values())
    report = make_report(outcomes, methods, tasks, {**head, "versions": versions(), **(about or {})}, baseline)
    write_atomically(folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    write_atomically(folder / "report.md", to_markdown(report).encode())
    write_atomically(folder / "curves.svg", curves(report).encode())
    return report


def _outcome(method: Method, trajectory: Trajectory) -> Outcome:
    costs = [draft.drawn.cost for draft in trajectory.drafts]
    scores = list(trajectory.held_out.values())
    return Outcome(
        method=method.name,
        spec=method.spec,
        task=trajectory.task.id,
        seed_index=trajectory.seed_index,
        category=trajectory.task.category,
        rewards=tuple(draft.reward for draft in trajectory.drafts),
        tokens=tuple(cost.decoded_tokens for cost in costs),
        seconds=tuple(round(cost.seconds, 4) for cost in costs),
        moves=tuple(str(draft.ask.note.get("move", "")) for draft in trajectory.drafts),
        returned=trajectory.best,
        held_out=scores[0].value if scores else None,
        stopped=trajectory.stopped,
    )


def _digest(tasks: Sequence[Task]) -> str:
    listed = json.dumps([(task.id, task.prompt) for task in tasks])
    return f"{len(tasks)} tasks, {hashlib.sha256(listed.encode()).hexdigest()[:16]}"


# --- The journal ----------------------------------------------------------------------------------------------


class Journal:
    """A file of JSON lines: what was compared, then one outcome a line. A torn last line is dropped and done again."""

    def __init__(self, file: Path, head: Mapping[str, Any]) -> None:
        self.file, self.head = file, dict(head)
        self.outcomes: dict[tuple[str, str, int], Outcome] = {}  # by method, task and seed index

    def __enter__(self) -> Journal:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.stream = open(self.file, "a+b")
        except OSError as error:
            raise UserError(f"Cannot write {self.file} ({error.strerror}); name another folder with --out.") from error
        try:
            _lock(self.stream.fileno(), self.file)
            self._read()
        except BaseException:
            self.stream.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome: on disk when this returns. One that is here already is not kept twice: a prompt of
        which a killed run finished only some seeds is searched again with all of them."""
        if _key(outcome) not in self.outcomes:
            self._write(asdict(outcome))
            self.outcomes[_key(outcome)] = outcome

    def finished(self, method: Method) -> set[tuple[str, int]]:
        """The searches of this method that are here, by task and seed index."""
        mine = [outcome for outcome in self.outcomes.values() if outcome.method == method.name]
        other = next((outcome.spec for outcome in mine if outcome.spec != method.spec), None)
        if other is not None:
            raise UserError(
                f"In {self.file} '{method.name}' is '{other}', not '{method.spec}'; give it another LABEL=."
            )
        return {(outcome.task, outcome.seed_index) for outcome in mine}

    def _read(self) -> None:
        self.stream.seek(0)
        content = self.stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self.stream.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            self._write(self.head)
            return
        try:
            head, *rest = [json.loads(line) for line in lines]
            self.outcomes = {_key(outcome): outcome for outcome in map(_read_outcome, rest)}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{self.file} is no journal of 'milr bench'; name another folder with --out.") from error
        if head != self.head:
            differs = next(
                (key for key in self.head if not isinstance(head, dict) or head.get(key) != self.head[key]),
                "format",
            )
            raise UserError(f"{self.file} belongs to a run with another {differs}; name another folder with --out.")

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self.stream.write(json.dumps(line).encode() + b"\n")
            self.stream.flush()
            os.fsync(self.stream.fileno())
        except OSError as error:
            raise UserError(
                f"Cannot write {self.file} ({error.strerror}); make room and run the same command again."
            ) from error


def _key(outcome: Outcome) -> tuple[str, str, int]:
    return outcome.method, outcome.task, outcome.seed_index


def _read_outcome(line: Any) -> Outcome:
    fields: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in line.items()}
    return Outcome(**fields)


def _lock(descriptor: int, file: Path) -> None:
    """One writer at a time; the system lets go of the lock when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: no lock, and nobody should start two
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"Another run is writing {file}; wait for it, or name another folder.") from error


# --- Methods by name ------------------------------------------------------------------------------------------


def choose_methods(texts: Sequence[str]) -> tuple[Method, ...]:
    """Methods as a user writes them: the name of a usual one, or [LABEL=]SEARCH[:PRESET][,SETTING=VALUE]..."""
    methods = tuple(_method_of(text) for text in texts)
    names = [method.name for method in methods]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"Two methods are called '{twice}'; put LABEL= before one of them.")
    return methods


def _method_of(text: str) -> Method:
    usual = {method.name: method for method in METHODS}
    if text in usual:
        return usual[text]
    head, *pairs = text.split(",")
    label, equals, called = head.rpartition("=")
    search, _, preset = called.partition(":")
    names = [part.name for part in registry.parts("search")]
    if search not in names:
        raise UserError(
            f"Unknown method '{registry.shorten(text)}'.{registry.did_you_mean(search, [*usual, *names])} "
            "Write SEARCH, SEARCH:PRESET or LABEL=SEARCH:PRESET,SETTING=VALUE."
        )
    settings = tuple((name.strip(), value.strip()) for name, _, value in (pair.partition("=") for pair in pairs))
    returned = dict(settings).get("returned", "last" if preset == "official" else "best")
    returns_last = search == "milr" and returned == "last"
    return Method(label if equals else text, search, preset or None, settings, returns_last)
