"""Every method at equal cost on the same prompts: success with intervals, tokens, seconds, paired differences.

All methods share their first draft (same task, same seed, same random stream), so the pairs are level. A journal
takes one line a finished search, so a killed comparison goes on where it stopped; the report is made from the journal
alone. Success at k calls is what a user would hold after k calls: did the returned draft have reward 1?
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milr import registry
from milr.backbones.base import Backbone
from milr.drafts import Task, Trajectory, UserError
from milr.runs.generate import Request, prepare
from milr.runs.output import write_atomically
from milr.runs.record import fingerprint, versions
from milr.statistics import paired_difference, sign_test, wilson

FORMAT = "milr-compare/1"
BASELINE = "best-of-n sampled text"
CALLS = (1, 4, 8, 16, 20)
SEARCHES_AT_ONCE = 32


@dataclass(frozen=True)
class Method:
    """A search with a preset; `settings` win over it. `returns_last`: the user gets the last draft, not the best."""

    name: str
    search: str
    preset: str | None = None
    settings: tuple[tuple[str, str], ...] = ()
    returns_last: bool = False


METHODS = (
    Method("single", "single"),
    Method("best-of-n greedy text", "best-of-n", "greedy-text"),
    Method(BASELINE, "best-of-n", "sampled-text"),
    Method("milr paper", "milr", "paper"),
    Method("milr official", "milr", "official", returns_last=True),
    Method("milr text only", "milr", "text-only"),
    Method("milr image only", "milr", "image-only"),
)


@dataclass(frozen=True)
class Outcome:
    """One search, as the journal keeps it. `decoded` are the tokens of each draft."""

    method: str
    task: str
    category: str
    rewards: tuple[float | None, ...]
    decoded: tuple[int, ...]
    seconds: float
    stopped: str

    def success_at(self, calls: int, returns_last: bool = False) -> bool:
        """Whether the draft that the user holds after this many calls is right in every check."""
        seen = self.rewards[:calls]
        return seen[-1] == 1 if returns_last else any(reward == 1 for reward in seen)


def compare(
    backbone: Backbone,
    tasks: Sequence[Task],
    folder: Path,
    *,
    methods: Sequence[Method] = METHODS,
    budget: int = 20,
    seed: int = 0,
    critic: str = "scene",
    about: Mapping[str, Any] | None = None,
    tell: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Run what the journal in `folder` lacks, then write and return the report (report.json, report.md).

    Args:
        about: what else belongs in the report (the command that made it). tell: hears (method, searches done, of all).
    Raises UserError if the journal in `folder` is of another comparison.
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
        "budget": budget,
        "seed": seed,
        "tasks": _digest(tasks),
    }
    judge = registry.load(registry.find("critic", critic)).make(backbone)
    with Journal(folder / "journal.jsonl", head) as journal:
        done = {(outcome.method, outcome.task) for outcome in journal.outcomes}
        for method in methods:
            left = [task for task in tasks if (method.name, task.id) not in done]
            plan = plans[method.name]
            if tell is not None:
                tell(method.name, len(tasks) - len(left), len(tasks))
            count = len(tasks) - len(left)
            searches = drive_lazily(
                backbone,
                judge,
                left,
                plan.search,
                plan.settings,
                name=method.search,
                budget=budget,
                seed=seed,
                batch=SEARCHES_AT_ONCE,
            )
            try:
                for trajectory in searches:
                    journal.add(_outcome(method, trajectory))
                    count += 1
                    if tell is not None:
                        tell(method.name, count, len(tasks))
            except Interrupted as stop:
                for trajectory in stop.trajectories:
                    if trajectory.stopped != "interrupted":
                        journal.add(_outcome(method, trajectory))
                raise
        outcomes = journal.outcomes
    report = make_report(outcomes, methods, tasks, {**head, "versions": versions(), **(about or {})})
    write_atomically(folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    write_atomically(folder / "report.md", to_markdown(report).encode())
    return report


def _outcome(method: Method, trajectory: Trajectory) -> Outcome:
    return Outcome(
        method=method.name,
        task=trajectory.task.id,
        category=trajectory.task.category,
        rewards=tuple(draft.reward for draft in trajectory.drafts),
        decoded=tuple(draft.drawn.cost.decoded_tokens for draft in trajectory.drafts),
        seconds=round(trajectory.cost.seconds, 4),
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
        self.outcomes: list[Outcome] = []

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
        """Keep an outcome: on disk when this returns."""
        self._write(outcome.__dict__)
        self.outcomes.append(outcome)

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
            self.outcomes = [
                Outcome(**{**line, "rewards": tuple(line["rewards"]), "decoded": tuple(line["decoded"])})
                for line in rest
            ]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.file} is no journal of 'milr compare'; name another folder with --out.") from error
        if head != self.head:
            differs = next(
                (key for key in self.head if not isinstance(head, dict) or head.get(key) != self.head[key]),
                "format",
            )
            raise UserError(
                f"{self.file} belongs to a comparison with another {differs}; name another folder with --out."
            )

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self.stream.write(json.dumps(line).encode() + b"\n")
            self.stream.flush()
            os.fsync(self.stream.fileno())
        except OSError as error:
            raise UserError(
                f"Cannot write {self.file} ({error.strerror}); make room and run the same command again."
            ) from error


def _lock(descriptor: int, file: Path) -> None:
    """One writer at a time; the system lets go of the lock when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: no lock, and nobody should start two
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(f"Another comparison is writing {file}; wait for it, or name another folder.") from error


# --- The report -----------------------------------------------------------------------------------------------


def make_report(
    outcomes: Sequence[Outcome], methods: Sequence[Method], tasks: Sequence[Task], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Numbers for every method, paired with the baseline task by task. Tasks that a method lacks are an error."""
    table: dict[str, dict[str, Outcome]] = {method.name: {} for method in methods}
    for outcome in outcomes:
        if outcome.method in table:
            table[outcome.method][outcome.task] = outcome
    budget = int(about["budget"])
    calls = sorted({count for count in CALLS if count < budget} | {budget})
    rows = []
    for method in methods:
        mine = [table[method.name][task.id] for task in tasks]
        row = _row(method, mine, calls)
        if BASELINE in table and method.name != BASELINE:
            theirs = [table[BASELINE][task.id] for task in tasks]
            row["against_baseline"] = _against(method, mine, theirs, budget)
        rows.append(row)
    return {**about, "prompts": len(tasks), "baseline": BASELINE, "calls": calls, "methods": rows}


def _row(method: Method, outcomes: Sequence[Outcome], calls: Sequence[int]) -> dict[str, Any]:
    count = len(outcomes)
    success = {}
    for limit in calls:
        right = sum(outcome.success_at(limit, method.returns_last) for outcome in outcomes)
        success[str(limit)] = {
            "successes": right,
            "share": right / count,
            "interval": list(wilson(right, count)),
        }
    categories: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        found = categories.setdefault(outcome.category or "all", {"successes": 0, "prompts": 0})
        found["prompts"] += 1
        found["successes"] += outcome.success_at(calls[-1], method.returns_last)
    return {
        "name": method.name,
        "search": method.search,
        "preset": method.preset,
        "success": success,
        "categories": categories,
        "mean_calls": sum(len(outcome.rewards) for outcome in outcomes) / count,
        "mean_decoded_tokens": sum(sum(outcome.decoded) for outcome in outcomes) / count,
        "mean_seconds": sum(outcome.seconds for outcome in outcomes) / count,
        "abstentions": sum(reward is None for outcome in outcomes for reward in outcome.rewards),
    }


def _against(method: Method, mine: Sequence[Outcome], theirs: Sequence[Outcome], budget: int) -> dict[str, Any]:
    pairs = [
        (a.success_at(budget, method.returns_last), b.success_at(budget)) for a, b in zip(mine, theirs, strict=True)
    ]
    won, lost = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    difference, low, high = paired_difference(won, lost, len(pairs))
    return {
        "won": won,
        "lost": lost,
        "difference": difference,
        "interval": [low, high],
        "sign_test_p": sign_test(won, lost),
    }


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as one table, as it goes into the README."""
    calls = report["calls"]
    lines = [
        f"{report['prompts']} prompts, {report['budget']} reward calls, model {report['model']}, "
        f"critic {report['critic']}, seed {report['seed']}. Success with 95 % Wilson intervals; difference in points "
        f"against {report['baseline']}, paired, with 95 % interval and exact sign test.",
        "",
        "| method | " + " | ".join(f"@{count}" for count in calls) + " | against baseline | calls | tokens | s |",
        "|---|" + "---|" * (len(calls) + 4),
    ]
    for row in report["methods"]:
        cells = [row["name"]]
        for count in calls:
            found = row["success"][str(count)]
            low, high = found["interval"]
            cells.append(f"{_share(found['share'])} [{_share(low)}, {_share(high)}]")
        cells += [
            _paired_cell(row.get("against_baseline")),
            f"{row['mean_calls']:.1f}",
            f"{row['mean_decoded_tokens']:.0f}",
            f"{row['mean_seconds']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    abstained = sum(row["abstentions"] for row in report["methods"])
    lines += [
        "",
        "calls, tokens, s: mean per prompt of reward calls, decoded tokens and wall seconds (shared within a batch)."
        + (f" The critic abstained {abstained} times." if abstained else ""),
        "",
    ]
    return "\n".join(lines)


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0") if value < 1 else "1.00"


def _paired_cell(pair: Mapping[str, Any] | None) -> str:
    if pair is None:
        return "(baseline)"
    low, high = pair["interval"]
    p = pair["sign_test_p"]
    return (
        f"{100 * pair['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], "
        f"{pair['won']} won / {pair['lost']} lost, p {'< .001' if p < 0.001 else f'= {p:.3f}'.replace('0.', '.', 1)}"
    )


def choose_methods(names: Sequence[str]) -> tuple[Method, ...]:
    """Methods by name; a search, or search:preset, that is not in the list is a method too."""
    known = {method.name: method for method in METHODS}
    return tuple(known[name] if name in known else _method_of(name, list(known)) for name in names)


def _method_of(name: str, known: Sequence[str]) -> Method:
    search, _, preset = name.partition(":")
    names = [part.name for part in registry.parts("search")]
    if search not in names:
        raise UserError(
            f"Unknown method '{registry.shorten(name)}'.{registry.did_you_mean(name, [*known, *names])} "
            "Give a method of the report, a search, or search:preset."
        )
    return Method(name, search, preset or None)
