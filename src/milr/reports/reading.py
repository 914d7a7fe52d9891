"""Reads runs back from their folders, finished or going on: where they stand, and the report of one or several.

Knows journals and reports, no model. Nothing is locked and nothing but `write_report` writes, so it may be done while a
run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milr import registry
from milr.benchmarks.base import number_of
from milr.disk import write_atomically
from milr.drafts import Task, UserError
from milr.reports.report import MAX_ABSTAIN, curves, make_report, to_markdown
from milr.reports.signs import Ends, signs_of
from milr.runs.journal import Key, Outcome, difference, put_in_order, read_head, read_lines, read_outcome, read_tasks
from milr.runs.methods import BASELINE, Method

RATE_OVER = 600.0  # seconds: drafts a second are those of the last ten minutes of work
PAUSE = 120.0  # a longer gap between two lines is no work


@dataclass
class Standing:
    """Where one method of a run stands."""

    method: str
    searches: int
    done: int = 0
    solved: int = 0  # reached the threshold
    drafts: int = 0
    unscored: int = 0
    best_rewards: list[float] = field(default_factory=list)  # of the finished searches
    reasons: dict[str, int] = field(default_factory=dict)  # why drafts have no score, with how many


FLOW = ("text_gradient", "image_gradient", "text_cosine", "image_cosine", "text_image_cosine",
        "text_changed_tokens", "image_changed_tokens")  # fmt: skip


@dataclass
class Flow:
    """How a search of latents moved, step by step: of each number in its drafts' notes the sum and the count a step."""

    sums: dict[str, dict[int, float]] = field(default_factory=dict)
    counts: dict[str, dict[int, int]] = field(default_factory=dict)

    def add(self, step: int, note: Mapping[str, Any]) -> None:
        for name in FLOW:
            value = note.get(name)
            if isinstance(value, (int, float)):
                for table, more in ((self.sums, value), (self.counts, 1)):
                    of: dict[int, Any] = table.setdefault(name, {})
                    of[step] = of.get(step, 0) + more

    def means(self) -> dict[str, list[list[float]]]:
        """Of each number [step, mean, searches], in order of the steps."""
        return {
            name: [
                # Rounded: a run that was cut has its searches in another order, and sums of floats depend on it.
                [step, round(total / self.counts[name][step], 12), self.counts[name][step]]
                for step, total in sorted(of.items())
            ]
            for name, of in self.sums.items()
        }


@dataclass(frozen=True)
class Reading:
    """A run as it lies on disk."""

    folder: Path
    head: Mapping[str, Any]
    tasks: Sequence[Task]
    started: Mapping[str, Any]  # the last start: methods, baseline, versions, benchmark
    versions: Sequence[Mapping[str, str]]  # of all starts that drew something, each once
    machines: Sequence[Mapping[str, Any]]  # likewise: on what was drawn
    outcomes: Mapping[Key, Outcome]
    ends: Mapping[Key, Ends]  # first and returned draft of the finished searches
    flows: Mapping[str, Flow]
    standings: Mapping[str, Standing]
    drafts_a_second: float
    last_at: float

    @property
    def methods(self) -> tuple[Method, ...]:
        return tuple(_method(fields) for fields in self.started.get("methods", ()))

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last minutes, with as many drafts a search as so far; None where nothing is known yet."""
        done = sum(one.done for one in self.standings.values())
        drafts = sum(one.drafts for one in self.standings.values())
        searches = sum(one.searches for one in self.standings.values())
        if not done or not self.drafts_a_second:
            return None
        return (searches - done) * drafts / done / self.drafts_a_second


def read_run(folder: Path) -> Reading:
    """Read a run's folder. Raises UserError where it is none."""
    head, tasks = read_head(folder), read_tasks(folder)
    searches = len(tasks) * int(head["seeds"])
    started: dict[str, Any] = {}
    versions: list[dict[str, str]] = []
    machines: list[dict[str, Any]] = []
    outcomes: dict[Key, Outcome] = {}
    standings: dict[str, Standing] = {}
    begun: dict[Key, list[dict[str, Any]]] = {}  # of unfinished searches, what Ends and Standing want of each draft
    ends: dict[Key, Ends] = {}
    steps: dict[Key, list[Mapping[str, Any]]] = {}  # notes of the drafts of searches that may be taken up again
    flows: dict[str, Flow] = {}
    times: list[float] = []
    last = 0.0

    def flow(method: str, notes: Sequence[Mapping[str, Any]]) -> None:
        for step, note in enumerate(notes, 1):
            flows.setdefault(method, Flow()).add(step, note)

    for line in read_lines(folder):
        last = float(line["at"])
        if "started" in line:
            started = line["started"]
            for fields in started["methods"]:
                standings.setdefault(fields["name"], Standing(fields["name"], searches))
        elif "draft" in line:
            for facts, found in ((started["versions"], versions), (started.get("machine"), machines)):
                if facts and facts not in found:
                    found.append(facts)
            score, number = line["draft"]["score"], line["draft"]["number"]
            drawn = begun.setdefault((line["method"], line["task"], line["seed_index"]), [])
            one: dict[str, Any] = {"look": line["look"], "image": line["image"], "text": line["draft"]["reasoning"]}
            before = drawn[number] if number < len(drawn) else {}
            is_same = bool(before) and (before["image"], before["text"]) == (one["image"], one["text"])
            one |= {"lacks": score["reason"] if score["value"] is None else None, "note": line["draft"]["ask"]["note"]}
            put_in_order(drawn, number, one, is_same)
            standing = standings[line["method"]]
            if is_same:  # judged again: no new draft, and what it lacked it may have now
                if before["lacks"] is not None:
                    standing.unscored -= 1
                    standing.reasons[before["lacks"]] -= 1
            else:
                times.append(last)
                standing.drafts += 1
            if score["value"] is None:
                standing.unscored += 1
                standing.reasons[score["reason"]] = standing.reasons.get(score["reason"], 0) + 1
        else:
            outcome = read_outcome(line["outcome"])
            drawn = begun.get(outcome.key, [])
            if len(drawn) < len(outcome.rewards):
                continue  # a draft's line is lost: the run's command draws it again
            outcomes[outcome.key] = outcome  # the last one counts: it was taken up again
            first = drawn[0]
            ends[outcome.key] = Ends(outcome, *_columns(first, drawn[outcome.returned]))
            steps[outcome.key] = [one["note"] for one in drawn[1 : len(outcome.rewards)]]
            if not outcome.lacks(str(head["critic"])):
                del begun[outcome.key]
                flow(outcome.method, steps.pop(outcome.key))
    for (method, *_), notes in steps.items():
        flow(method, notes)
    for outcome in outcomes.values():
        standing = standings[outcome.method]
        standing.done += 1
        standing.solved += outcome.stopped == "threshold"
        standing.best_rewards.append(max((reward for reward in outcome.rewards if reward is not None), default=0.0))
    return Reading(
        folder, head, tasks, started, versions, machines, outcomes, ends, flows, standings, _pace(times), last
    )


def describe(reading: Reading) -> Iterator[str]:
    """Where a run stands, in lines of text."""
    head, left = reading.head, reading.seconds_left
    state = "nothing is known of the time left" if left is None else f"about {left:.0f} s left"
    if all(one.done == one.searches for one in reading.standings.values()):
        state = "finished"
    yield (
        f"{reading.folder}: {len(reading.tasks)} prompts x {head['seeds']}, budget {head['budget']}, critic "
        f"{head['critic']}, model {head['model']}; {reading.drafts_a_second:.2f} drafts a second, {state}"
    )
    for one in reading.standings.values():
        line = f"  {one.method}: {one.done} of {one.searches} done, {one.solved} at the threshold of "
        line += f"{head['threshold']:g}, {one.drafts} drafts"
        if one.best_rewards:
            line += f", mean best reward {sum(one.best_rewards) / len(one.best_rewards):.3f}"
        yield line
        for reason, count in sorted(one.reasons.items(), key=lambda pair: -pair[1])[:3]:
            if not count:
                continue
            yield f"    {count} drafts without a score: {reason}"


def report_of(readings: Sequence[Reading], baseline: str | None = None) -> dict[str, Any]:
    """The report of a run, or of several on the same prompts under the same terms, whose methods then stand side by
    side. Raises UserError where they do not fit together, or where a search is missing."""
    first = readings[0]
    for other in readings[1:]:
        differs = difference(first.head, other.head)
        if differs:
            raise UserError(
                f"{other.folder} has another {differs.replace('_', ' ')} than {first.folder}; only runs on the same "
                "prompts under the same terms can be compared."
            )
        if number_in(other) != number_in(first):
            raise UserError(
                f"{other.folder} is told by its {number_in(other)}, {first.folder} by its {number_in(first)}; only "
                "runs with the same number can be compared."
            )
    methods: dict[str, Method] = {}
    outcomes: list[Outcome] = []
    for reading in readings:
        for method in reading.methods:
            if method.name in methods:
                raise UserError(f"Two runs have a method called '{method.name}'; give one of them a LABEL=.")
            methods[method.name] = method
            mine = [outcome for outcome in reading.outcomes.values() if outcome.method == method.name]
            missing = len(reading.tasks) * int(reading.head["seeds"]) - len(mine)
            if missing:
                raise UserError(
                    f"{reading.folder} is not finished: {missing} searches of '{method.name}' are missing; run its "
                    "command again, it goes on where it stopped. 'milr runs' shows where it stands."
                )
            outcomes += mine
    started = first.started
    names = list(methods)
    chosen = baseline or started.get("baseline", BASELINE)
    if baseline is not None and baseline not in names:
        raise UserError(f"The baseline '{baseline}' is none of the methods: {', '.join(names)}.")
    about = {key: value for key, value in started.items() if key not in ("methods", "baseline", "versions", "machine")}
    versions = _each_once(one for reading in readings for one in reading.versions)
    machines = _each_once(one for reading in readings for one in reading.machines)
    benchmark = _benchmark(first)
    told = {"number": number_in(first), "caveat": getattr(benchmark, "CAVEAT", "")}
    report = make_report(
        outcomes,
        list(methods.values()),
        first.tasks,
        {
            **{key: value for key, value in first.head.items() if key != "format"},
            **about,
            **told,
            "versions": versions,
            "machines": machines,
        },
        chosen if chosen in names else names[0],
        overall=getattr(benchmark, "overall", None),
        max_abstain=float(started.get("max_abstain", MAX_ABSTAIN)),
    )
    ends = {key: one for reading in readings for key, one in reading.ends.items()}
    for name in methods:
        of_method = [ends[name, task.id, index] for task in first.tasks for index in range(int(first.head["seeds"]))]
        report["searches"][name]["gradient_flow"] = _flow_of(readings, name)
        report["searches"][name]["signs"] = signs = signs_of(of_method, first.head["held_out"])
        report["warnings"] += [f"{name}: reward hacking? {reason}" for reason in signs["reasons"]]
    if differing := _differing(versions):
        report["warnings"].append(f"parts of the run were made with other versions ({', '.join(differing)})")
    if differing := _differing(machines):
        drawn_on = "; ".join(", ".join(f"{key} {one.get(key, 'unknown')}" for key in differing) for one in machines)
        report["warnings"].append(
            f"parts were drawn on another machine ({drawn_on}): seconds are of all of them together, so compare calls "
            "and tokens"
        )
    return report


def _each_once(found: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    once: list[Mapping[str, Any]] = []
    for one in found:
        if one not in once:
            once.append(one)
    return once


def _differing(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which such facts differ."""
    return sorted({key for one in facts for key in one if any(one.get(key) != other.get(key) for other in facts)})


def write_report(folder: Path) -> dict[str, Any]:
    """Make the report of a finished run, and leave it in its folder as report.json, report.md and curves.svg."""
    report = report_of([read_run(folder)])
    write_atomically(folder / "report.json", (json.dumps(report, indent=2) + "\n").encode())
    write_atomically(folder / "report.md", to_markdown(report).encode())
    write_atomically(folder / "curves.svg", curves(report).encode())
    return report


def _columns(first: Mapping[str, Any], returned: Mapping[str, Any]) -> Iterator[Any]:
    """The fields of Ends after the outcome: look, text and image, of the first and of the returned draft."""
    return (one[name] for name in ("look", "text", "image") for one in (first, returned))


def _flow_of(readings: Sequence[Reading], method: str) -> dict[str, list[list[float]]]:
    return next((flow.means() for one in readings if (flow := one.flows.get(method)) is not None), {})


def number_in(reading: Reading) -> str:
    """What the run's benchmark is scored by: as it was when the run began, or where that is not on record (runs of
    before) as the benchmark says now."""
    return str(reading.started.get("number") or number_of(_benchmark(reading)))


def _benchmark(reading: Reading) -> Any:
    """The module of the run's benchmark; None where the run has none, or it is not installed."""
    name = reading.started.get("benchmark")
    if name is None or name not in [part.name for part in registry.parts("benchmark")]:
        return None
    return registry.load(registry.find("benchmark", name))


def _method(fields: Mapping[str, Any]) -> Method:
    settings = tuple((name, value) for name, value in fields["settings"])
    return Method(fields["name"], fields["search"], fields["preset"], settings, fields["returns_last"])


def _pace(times: Iterable[float]) -> float:
    """Drafts a second over the last ten minutes of work, pauses left out."""
    found = list(times)
    worked, count = 0.0, 0
    for before, after in zip(reversed(found[:-1]), reversed(found[1:]), strict=True):
        if after - before < PAUSE:
            worked += after - before
        count += 1
        if worked > RATE_OVER:
            break
    return count / worked if worked > 0 else 0.0
