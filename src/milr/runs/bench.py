"""Searches side by side on the same prompts, at equal cost. `journal` keeps what happens; `milr.reports` tells it.

All methods share their first draft (same task, same seed, same random stream), so the pairs are level. Every scored
draft is in the journal before the next one is drawn, so a killed run goes on where it stopped; the report is made
from the journal alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from milr.backbones.base import Backbone
from milr.critics import naming
from milr.critics.base import NOWHERE, Critic, Place
from milr.drafts import Draft, Task, Trajectory
from milr.runs.generate import Plan, Request, prepare
from milr.runs.journal import Journal, Outcome
from milr.runs.methods import BASELINE, METHODS, Method
from milr.runs.record import fingerprint, versions
from milr.searches.driver import DraftScored, Event, Interrupted, Job, RoundEnded, check_tasks, drive_jobs

SEARCHES_AT_ONCE = 32  # where a backbone does not say how much it draws in one batch


@dataclass(frozen=True)
class Terms:
    """What decides the results of a run, but the model, the prompts and the methods.

    budget: reward calls of each search. seeds: searches of each prompt and method, with seed indices 0 to seeds - 1.
    critic: whose score is climbed. held_out: critics that judge the returned drafts and that no search sees.
    """

    budget: int = 20
    threshold: float = 1.0
    seed: int = 0
    seeds: int = 1
    critic: str = "scene"
    held_out: tuple[str, ...] = ()

    @property
    def critics(self) -> tuple[str, ...]:
        """The one that is climbed, then the held-out ones."""
        return (self.critic, *self.held_out)


@dataclass(frozen=True)
class Progress:
    """Where a run stands: searches of this method, how many are done and solved, scored drafts since the start."""

    method: str
    searches: int
    done: int
    solved: int
    drafts: int


@runtime_checkable
class Executor(Protocol):
    """Who draws: this process (`Local`), or many (`milr.runs.cluster.Cluster`)."""

    def identity(self) -> Mapping[str, str]:
        """`model`, `fingerprint` and `dtype`: what a run must not mix."""
        ...

    def run(self, method: Method, terms: Terms, jobs: Iterator[Job], keeper: Keeper) -> None:
        """Do all the jobs of a method, and let the keeper have every draft and every end. Ctrl-C may end it."""
        ...


class Local:
    """Draws in this process, `batch` searches side by side (None: as many as the model draws in one batch)."""

    def __init__(self, backbone: Backbone, batch: int | None = None, place: Place = NOWHERE) -> None:
        self.backbone, self.place = backbone, place
        self.batch = batch or searches_at_once(backbone)
        self.critics: dict[str, Critic] = {}

    def identity(self) -> Mapping[str, str]:
        info = self.backbone.info
        return {"model": info.name, "fingerprint": fingerprint(self.backbone), "dtype": info.dtype}

    def run(self, method: Method, terms: Terms, jobs: Iterator[Job], keeper: Keeper) -> None:
        critic, *held_out = critics_of(terms, self.backbone, self.critics, self.place)
        try:
            for trajectory in search_jobs(
                self.backbone, critic, held_out, method, terms, jobs, self.batch, keeper.hear
            ):
                keeper.keep(outcome_of(method, trajectory))
        except Interrupted as stop:
            for trajectory in stop.trajectories:
                # Else it goes on from its drafts, also where only the held-out critics have not judged it yet.
                if trajectory.stopped != "interrupted" and len(trajectory.held_out) == len(held_out):
                    keeper.keep(outcome_of(method, trajectory))
            keeper.sync()
            raise


def searches_at_once(backbone: Backbone) -> int:
    """As many searches as the model draws in one batch by its own count of the memory (fewer would leave it idle)."""
    return int(getattr(backbone, "max_batch", SEARCHES_AT_ONCE))


def critics_of(terms: Terms, backbone: Backbone, made: dict[str, Critic], place: Place = NOWHERE) -> list[Critic]:
    """The critic that is climbed and the held-out ones. Those in `made` are used again: a critic may be gigabytes."""
    for name in terms.critics:
        if name not in made:
            made[name] = naming.make(name, backbone, place)
    return [made[name] for name in terms.critics]


def search_jobs(
    backbone: Backbone,
    critic: Critic,
    held_out: Sequence[Critic],
    method: Method,
    terms: Terms,
    jobs: Iterator[Job | None],
    batch: int,
    hear: Callable[[Event], None],
) -> Iterator[Trajectory]:
    """Drive the jobs of one method under these terms."""
    plan = plan_of(method, terms)
    return drive_jobs(
        backbone,
        critic,
        jobs,
        plan.search,
        plan.settings,
        name=method.search,
        budget=terms.budget,
        threshold=terms.threshold,
        seed=terms.seed,
        held_out=held_out,
        batch=batch,
        on_event=hear,
    )


def bench(
    executor: Executor | Backbone,
    tasks: Sequence[Task],
    folder: Path,
    terms: Terms = Terms(),
    *,
    methods: Sequence[Method] = METHODS,
    baseline: str = BASELINE,
    batch: int | None = None,
    about: Mapping[str, Any] | None = None,
    tell: Callable[[Progress], None] | None = None,
) -> None:
    """Run what the journal in `folder` lacks. When it returns the journal is whole; `milr.reports` makes numbers of it.

    Args:
        executor: who draws; a backbone draws in this process, `batch` searches side by side (None: see `Local`; no
            result depends on how many, but for ties between floats).
        baseline: name of the method that the others are paired with, prompt by prompt.
        about: what else a report should say or know: `benchmark`, seeds of the prompts, `max_abstain`.
        tell: hears where the run stands.
    Raises UserError if `folder` holds a run with other terms, prompts or model.
    """
    check_tasks(tasks, terms.seeds)
    for method in methods:
        plan_of(method, terms)
    chosen = executor if isinstance(executor, Executor) else Local(executor, batch)
    head = {
        **chosen.identity(),
        "critic": terms.critic,
        "held_out": list(terms.held_out),
        "budget": terms.budget,
        "threshold": terms.threshold,
        "seed": terms.seed,
        "seeds": terms.seeds,
        "tasks": _digest(tasks),
    }
    with Journal(folder, head, tasks) as journal:
        for method in methods:
            journal.finished(method.name, method.spec)  # refuses a name that meant something else
        journal.start(
            {
                "methods": [asdict(method) for method in methods],
                "baseline": baseline,
                "versions": versions(),
                **(about or {}),
            }
        )
        for method in methods:
            keeper = Keeper(journal, method, len(tasks) * terms.seeds, tell)
            recorded = journal.recorded(method.name)
            left = [
                Job(task, index, recorded.get((task.id, index), ()))
                for task in tasks
                for index in range(terms.seeds)
                if (task.id, index) not in keeper.finished
            ]
            chosen.run(method, terms, iter(left), keeper)


def plan_of(method: Method, terms: Terms) -> Plan:
    """The method's search and settings under these terms. Raises UserError where a name or number is wrong."""
    return prepare(
        Request(
            method.search,
            method.preset,
            dict(method.settings),
            reward=terms.critic,
            held_out=terms.held_out,
            budget=terms.budget,
            threshold=terms.threshold,
            seed=terms.seed,
        )
    )


class Keeper:
    """Keeps what one method's searches bring in the journal: every draft, every end. The only one who writes there."""

    def __init__(
        self, journal: Journal, method: Method, searches: int, tell: Callable[[Progress], None] | None
    ) -> None:
        self.journal, self.method, self.searches, self.tell = journal, method, searches, tell
        self.finished = journal.finished(method.name, method.spec)
        self.solved = sum(one.stopped == "threshold" for one in journal.outcomes.values() if one.method == method.name)
        self.drafts = 0
        self._say()

    def hear(self, event: Event) -> None:
        """What the driver tells: new drafts are kept, and on disk when their round ends."""
        if isinstance(event, DraftScored) and not event.recorded:
            self.add_draft(event.task.id, event.seed_index, event.draft)
        elif isinstance(event, RoundEnded):
            self.sync()

    def add_draft(self, task: str, seed_index: int, draft: Draft) -> None:
        self.journal.add_draft(self.method.name, task, seed_index, draft)
        self.drafts += 1

    def sync(self) -> None:
        """All drafts so far are on disk when this returns."""
        self.journal.sync()
        self._say()

    def keep(self, outcome: Outcome) -> None:
        """A search has ended: on disk when this returns."""
        self.journal.add(outcome)
        self.finished.add((outcome.task, outcome.seed_index))
        self.solved += outcome.stopped == "threshold"
        self._say()

    def _say(self) -> None:
        if self.tell is not None:
            self.tell(Progress(self.method.name, self.searches, len(self.finished), self.solved, self.drafts))


def outcome_of(method: Method, trajectory: Trajectory) -> Outcome:
    """What the journal keeps of a finished search."""
    costs = [draft.drawn.cost for draft in trajectory.drafts]
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
        stopped=trajectory.stopped,
        held_out={name: score.value for name, score in trajectory.held_out.items()},
        held_out_first={name: score.value for name, score in trajectory.held_out_first.items()},
        failed={
            name: [check.text for check in score.checks if not check.passed]
            for name, score in {trajectory.critic: trajectory.best_draft.score, **trajectory.held_out}.items()
            if score.checks
        },
        notes=trajectory.notes,
    )


def _digest(tasks: Sequence[Task]) -> str:
    listed = json.dumps([(task.id, task.prompt) for task in tasks])
    return f"{len(tasks)} tasks, {hashlib.sha256(listed.encode()).hexdigest()[:16]}"
