"""Searches side by side on the same prompts, at equal cost. `journal` keeps what happens; `milr.reports` tells it.

All methods share their first draft (same task, same seed, same random stream), so the pairs are level. Every scored
draft is in the journal before the next one is drawn, so a killed run goes on where it stopped; the report is made
from the journal alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from milr.backbones.base import Backbone
from milr.critics import naming
from milr.critics.base import NOWHERE, Critic, Place
from milr.drafts import Draft, Task, Trajectory
from milr.runs.generate import Plan, Request, prepare
from milr.runs.journal import Journal, Outcome, Picture, question_of
from milr.runs.methods import BASELINE, METHODS, Method
from milr.runs.record import fingerprint, versions
from milr.searches.driver import (
    DraftScored,
    DraftsDrawn,
    Ended,
    Event,
    Interrupted,
    Job,
    RoundEnded,
    check_tasks,
    drive_jobs,
)

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
    """Where a run stands: searches of this method, how many are done, how many of them reached the threshold
    (`solved`), scored drafts since the start."""

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

    def machine(self) -> Mapping[str, Any]:
        """What a run may mix, and what its seconds depend on (see `machine_of`)."""
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

    def machine(self) -> Mapping[str, Any]:
        return machine_of(self.backbone, self.batch)

    def run(self, method: Method, terms: Terms, jobs: Iterator[Job], keeper: Keeper) -> None:
        critic, *held_out = critics_of(terms, self.backbone, self.critics, self.place)
        try:
            for trajectory in search_jobs(
                self.backbone, critic, held_out, method, terms, jobs, self.batch, keeper.hear
            ):
                keeper.keep(outcome_of(method, trajectory))
        except Interrupted as stop:
            for trajectory in stop.trajectories:
                keeper.catch_up(trajectory)
                # Else it goes on from its drafts, also where only the held-out critics have not judged it yet.
                if trajectory.stopped != "interrupted" and len(trajectory.held_out) == len(held_out):
                    keeper.keep(outcome_of(method, trajectory))
            keeper.sync()
            raise


def searches_at_once(backbone: Backbone) -> int:
    """As many searches as the model draws in one batch by its own count of the memory (fewer would leave it idle)."""
    return int(getattr(backbone, "max_batch", SEARCHES_AT_ONCE))


def machine_of(backbone: Backbone, batch: int) -> dict[str, Any]:
    """On what a model draws: the kind of device and its name, the number format, threads, searches side by side."""
    import torch

    from milr.backbones.speed import device_name

    return {
        "device": backbone.info.device.partition(":")[0],
        "name": device_name(backbone.info.device),
        "dtype": backbone.info.dtype,
        "threads": torch.get_num_threads(),
        "batch": batch,
    }


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
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Run what the journal in `folder` lacks. When it returns the journal is whole; `milr.reports` makes numbers of it.

    Args:
        executor: who draws; a backbone draws in this process, `batch` searches side by side (None: see `Local`; no
            result depends on how many, but for ties between floats).
        baseline: name of the method that the others are paired with, prompt by prompt.
        about: what else a report should say or know: `benchmark`, seeds of the prompts, `max_abstain`.
        tell: hears where the run stands.
        note: hears what the user should know before the work begins.
    Raises UserError if `folder` holds a run with other terms, prompts, checks, critics or model, before anything is
    drawn.
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
        **question_of(tasks),
        "contents": {name: content for name in terms.critics if (content := naming.content_of(name))},
    }
    machine = dict(chosen.machine())
    with Journal(folder, head, tasks, note) as journal:
        for method in methods:
            journal.finished(method.name, method.spec)  # refuses a name that meant something else
        if journal.machines and journal.machines[-1].get("device") != machine.get("device"):
            note(
                f"This run was drawn on {_named(journal.machines[-1])} so far and goes on on {_named(machine)}: its "
                "seconds will be of both, and its pictures may differ by rounding."
            )
        journal.start(
            {
                "methods": [asdict(method) for method in methods],
                "baseline": baseline,
                "versions": versions(),
                "machine": machine,
                **(about or {}),
            }
        )
        for method in methods:
            keeper = Keeper(journal, method, len(tasks) * terms.seeds, tell)
            if lacking := keeper.lacking:
                note(
                    f"{len(lacking)} finished searches of '{method.name}' lack a verdict since "
                    f"{', '.join(sorted(set().union(*lacking.values())))} could not be asked; they are taken up again."
                )
            chosen.run(
                method, terms, (keeper.job(task, index) for task in tasks for index in keeper.left(task)), keeper
            )


def _named(machine: Mapping[str, Any]) -> str:
    return f"{machine.get('device', 'another device')} ({machine.get('name', 'unknown')})"


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
        critic = str(journal.head["critic"])
        done = journal.finished(method.name, method.spec)
        outcomes = {key: journal.outcomes[method.name, *key] for key in done}
        # Searches that ended without a verdict that may be had now, with the critics that could not be asked.
        self.lacking = {key: lacks for key, outcome in outcomes.items() if (lacks := outcome.lacks(critic))}
        self.finished = done - self.lacking.keys()
        self.solved = sum(outcomes[key].stopped == "threshold" for key in self.finished)
        self.drafts = 0
        self.kept: dict[tuple[str, int], int] = {}  # how many drafts of searches that go on are in the journal
        self._say()

    def left(self, task: Task) -> list[int]:
        """The seed indices of a task's searches that are to be done."""
        seeds = int(self.journal.head["seeds"])
        return [index for index in range(seeds) if (task.id, index) not in self.finished]

    def job(self, task: Task, seed_index: int) -> Job:
        """What is to be done of a search that has not ended, or that lacks a verdict."""
        recorded = self.journal.recorded(self.method.name, task.id, seed_index)
        lacks = self.lacking.get((task.id, seed_index))
        if lacks is None or self.journal.head["critic"] in lacks:
            return Job(task, seed_index, recorded)
        outcome = self.journal.outcomes[self.method.name, task.id, seed_index]
        if len(recorded) < len(outcome.rewards):  # an image is lost
            return Job(task, seed_index, recorded)
        judged = tuple(name for name in outcome.held_out if name not in lacks)
        self.kept[task.id, seed_index] = len(recorded)
        return Job(task, seed_index, recorded, Ended(outcome.returned, outcome.stopped, outcome.notes, judged))

    def hear(self, event: Event) -> None:
        """What the driver tells: new drafts are kept, and on disk when their round ends."""
        if isinstance(event, DraftsDrawn):
            for image in event.images:
                self.journal.foresee(image)
        elif isinstance(event, DraftScored):
            if not event.recorded:
                self.add_draft(event.task.id, event.seed_index, event.draft)
            self.kept[event.task.id, event.seed_index] = event.draft.number + 1
        elif isinstance(event, RoundEnded):
            self.sync()

    def catch_up(self, trajectory: Trajectory) -> None:
        """Keep the drafts of a search that Ctrl-C came too early for: one may fall between a draft and its line."""
        task, seed_index = trajectory.task.id, trajectory.seed_index
        for draft in trajectory.drafts[self.kept.get((task, seed_index), 0) :]:
            self.add_draft(task, seed_index, draft)

    def add_draft(self, task: str, seed_index: int, draft: Draft, picture: Picture | None = None) -> None:
        self.journal.add_draft(self.method.name, task, seed_index, draft, picture)
        self.drafts += 1

    def sync(self) -> None:
        """All drafts so far are on disk when this returns."""
        self.journal.sync()
        self._say()

    def keep(self, outcome: Outcome) -> None:
        """A search has ended: on disk when this returns."""
        before = self.journal.outcomes.get(outcome.key)
        if before is not None and before.rewards == outcome.rewards:  # only what was lacking was judged now
            outcome = replace(
                outcome,
                held_out={**before.held_out, **outcome.held_out},
                held_out_first={**before.held_out_first, **outcome.held_out_first},
                failed={**before.failed, **outcome.failed},
            )
        self.journal.add(outcome)
        self.finished.add((outcome.task, outcome.seed_index))
        self.kept.pop((outcome.task, outcome.seed_index), None)
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
        prefilled=tuple(cost.prefilled_tokens for cost in costs),
        unjudged=_unjudged(trajectory),
        judging=tuple(round(cost.critic_seconds, 6) for cost in costs),
        searching=tuple(round(cost.search_seconds, 6) for cost in costs),
        passes=tuple(cost.passes for cost in costs),
        work=tuple(cost.work for cost in costs),
        evaluations=tuple(cost.evaluations for cost in costs),
    )


def _unjudged(trajectory: Trajectory) -> tuple[str, ...]:
    """The critics that could not be asked for something that this search lacks now."""
    scores = {name: [score] for name, score in trajectory.held_out.items()}
    for name, score in trajectory.held_out_first.items():
        scores[name].append(score)
    scores[trajectory.critic] = [draft.score for draft in trajectory.drafts]
    return tuple(name for name, given in scores.items() if any(score.outage for score in given))
