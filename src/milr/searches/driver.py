"""The loop below every search: batches asks, charges the budget, judges, keeps the best, stops.

Strategies are generators written for one prompt; here many of them (tasks x seed indices) run side by side,
in *lanes*. A round gathers one ask from each lane, draws all in one call of the backbone, scores all in one
call of the critic, and sends each lane its draft. Nothing here knows how a search chooses, how a model draws,
or where results are written: events tell whoever wants to show or to journal.

Equal cost holds by construction: one scored draft is one reward call, and nobody can draw or score elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import numpy as np

from milr.backbones.base import Backbone
from milr.critics.base import Critic, judge
from milr.drafts import Draft, Drawn, Order, Score, Task, Trajectory, UserError
from milr.searches.base import Problem, Search

if TYPE_CHECKING:
    pass

Settings = TypeVar("Settings")

MAX_BUDGET = 100_000
ABSTENTIONS_IN_A_ROW = 10  # then the critic is taken to be out of order, and the search ends with its reason

Key = tuple[str, int]  # task id, seed index: names one search within a run


# --- What the driver tells ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A search begins."""

    task: Task
    seed_index: int
    budget: int


@dataclass(frozen=True)
class DraftScored:
    """A draft is drawn and scored. `best` is the number of the best draft so far, `best_reward` its reward
    (None: all abstained). `recorded` drafts came in through `resume` and need no second journal line."""

    task: Task
    seed_index: int
    draft: Draft
    best: int
    best_reward: float | None
    budget: int
    recorded: bool


@dataclass(frozen=True)
class RoundEnded:
    """All drafts of a round are told. Whoever keeps a journal makes them durable now: the next round draws new ones."""


@dataclass(frozen=True)
class Finished:
    """A search ended (also by Ctrl-C: then `trajectory.stopped` is 'interrupted')."""

    trajectory: Trajectory


Event = Started | DraftScored | RoundEnded | Finished


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a run. `trajectories` holds what is there: the finished ones, and the begun
    ones marked 'interrupted'. It is a KeyboardInterrupt: a caller that does not care stops as usual."""

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        super().__init__("interrupted")
        self.trajectories = tuple(trajectories)


# --- Randomness ---------------------------------------------------------------------------------------------


def draft_stream(seed: int, task_id: str, seed_index: int, number: int) -> int:
    """The random stream of one draft. The search has no say in it: all searches share their first draft."""
    return _hash64("draft", seed, task_id, seed_index, number)


def search_rng(seed: int, task_id: str, seed_index: int) -> np.random.Generator:
    """A search's own random stream, independent of the drafts'."""
    return np.random.default_rng(_hash64("search", seed, task_id, seed_index))


def _hash64(*parts: str | int) -> int:
    # Not Python's hash(), which differs from process to process; JSON keeps ("a", "bc") apart
    # from ("ab", "c").
    return int.from_bytes(hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest())


# --- The loop -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One search to do: its task and seed index, and its drafts that are already drawn and scored."""

    task: Task
    seed_index: int = 0
    recorded: Sequence[Draft] = ()


class Options(TypedDict, total=False):
    """How `drive`, `drive_lazily` and `drive_jobs` go about it.

    name: what results call the search (default: the function's own name).
    budget: reward calls of one search, the first draft included, 1 to 100,000 (default 20).
    threshold: stop as soon as a draft's reward reaches it (default 1).
    seed: of the whole run (default 0); a draft's stream derives from it, the task id, the seed index and its number.
    held_out: critics that score only the returned image, after the search: not charged, never seen by it.
    judge_first: whether they judge the first image too (default yes): a report needs it to see that a search is fooled.
    batch: searches side by side (default 32). Changes speed and memory, never a result.
    on_event: hears Started, DraftScored, RoundEnded and Finished as they happen.
    """

    name: str
    budget: int
    threshold: float
    seed: int
    held_out: Sequence[Critic]
    judge_first: bool
    batch: int
    on_event: Callable[[Event], None] | None


def drive(
    backbone: Backbone,
    critic: Critic,
    tasks: Sequence[Task],
    search: Callable[[Problem, Settings], Search],
    settings: Settings,
    *,
    seeds: int = 1,
    resume: Mapping[Key, Sequence[Draft]] | None = None,
    skip: Container[Key] = (),
    **options: Unpack[Options],
) -> list[Trajectory]:
    """Search every task, `seeds` times each, and return the trajectories (by task, then by seed index).

    Args:
        search, settings: the strategy.
        resume: drafts already drawn and scored, by (task id, seed index). They are fed to the strategy first;
            as long as it asks for them again they cost nothing. Where it asks for something else they are
            dropped, and a note in the trajectory says so.
        skip: searches, by (task id, seed index), that are left out.
        options: see `Options`.
    Raises UserError for arguments out of range, and Interrupted (a KeyboardInterrupt) on Ctrl-C.
    """
    finished: dict[Key, Trajectory] = {}
    order = [(task.id, index) for task in tasks for index in range(seeds) if (task.id, index) not in skip]
    try:
        for trajectory in drive_lazily(
            backbone, critic, tasks, search, settings, seeds=seeds, resume=resume, skip=skip, **options
        ):
            finished[trajectory.task.id, trajectory.seed_index] = trajectory
    except Interrupted as stop:
        for trajectory in stop.trajectories:
            finished[trajectory.task.id, trajectory.seed_index] = trajectory
        raise Interrupted([finished[key] for key in order if key in finished]) from stop
    return [finished[key] for key in order]


def drive_lazily(
    backbone: Backbone,
    critic: Critic,
    tasks: Sequence[Task],
    search: Callable[[Problem, Settings], Search],
    settings: Settings,
    *,
    seeds: int = 1,
    resume: Mapping[Key, Sequence[Draft]] | None = None,
    skip: Container[Key] = (),
    **options: Unpack[Options],
) -> Iterator[Trajectory]:
    """`drive` for runs too long to hold in memory: yields each trajectory as it ends and keeps none.

    Interrupted then carries only the trajectories that were not yet yielded.
    """
    check_tasks(tasks, seeds)
    jobs = (
        Job(task, index, (resume or {}).get((task.id, index), ()))
        for task in tasks
        for index in range(seeds)
        if (task.id, index) not in skip
    )
    yield from drive_jobs(backbone, critic, jobs, search, settings, **options)


def drive_jobs(
    backbone: Backbone,
    critic: Critic,
    jobs: Iterator[Job | None],
    search: Callable[[Problem, Settings], Search],
    settings: Settings,
    *,
    name: str = "",
    budget: int = 20,
    threshold: float = 1.0,
    seed: int = 0,
    held_out: Sequence[Critic] = (),
    judge_first: bool = True,
    batch: int = 32,
    on_event: Callable[[Event], None] | None = None,
) -> Iterator[Trajectory]:
    """The loop itself. The next job is taken when a place among the `batch` is free, so `jobs` may wait for others to
    say what is left, or give None for "none now" as long as a search is under way. Trajectories come as they end."""
    _check_numbers(budget=budget, threshold=threshold, seed=seed, batch=batch)
    tell = on_event or (lambda event: None)

    def start(job: Job) -> Lane:
        task, seed_index = job.task, job.seed_index
        problem = Problem(
            task=replace(task, metadata={}),  # it may hold the answer: checks, detector classes, WISE's explanations
            text_logits=backbone.text_logits,
            image_logits=backbone.image_logits,
            rng=search_rng(seed, task.id, seed_index),
            budget=budget,
            threshold=threshold,
            text_end=backbone.text_end(),
            grid=backbone.info.grid,
        )
        return Lane(search(problem, settings), task, seed, seed_index, budget, threshold, job.recorded, tell)

    def end(lanes: Sequence[Lane], *, judge_held_out: bool = True) -> list[Trajectory]:
        # The returned draft and the first one of each lane; where they are the same it is judged once.
        asked = [(lane, number) for lane in lanes for number in sorted({lane.best} | ({0} if judge_first else set()))]
        images = [lane.drafts[number].drawn.image for lane, number in asked]
        scores: dict[tuple[str, int, int], Score] = {}
        for other in held_out if judge_held_out and lanes else ():
            found = judge(other, images, [lane.task for lane, _ in asked])
            scores.update(
                {(other.name, id(lane), number): score for (lane, number), score in zip(asked, found, strict=True)}
            )
        names = [other.name for other in held_out] if scores else []
        return [
            Trajectory(
                task=lane.task,
                search=name or search_name(search),
                settings=asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else {},
                critic=critic.name,
                model=backbone.info.name,
                seed=seed,
                seed_index=lane.seed_index,
                drafts=tuple(lane.drafts),
                best=lane.best,
                stopped=lane.stopped,
                held_out={name: scores[name, id(lane), lane.best] for name in names},
                held_out_first={name: scores[name, id(lane), 0] for name in names} if judge_first else {},
                notes=tuple(lane.notes),
            )
            for lane in lanes
        ]

    lanes: list[Lane] = []  # all that are begun and not yet handed out
    try:
        while True:
            while len(lanes) < batch and (job := next(jobs, None)) is not None:
                tell(Started(job.task, job.seed_index, budget))
                lanes.append(start(job))
                lanes[-1].feed_records()
            if not lanes:
                return
            active = [lane for lane in lanes if not lane.stopped]
            _play_round(backbone, critic, active)
            tell(RoundEnded())
            ended = [lane for lane in lanes if lane.stopped]
            for lane, trajectory in zip(ended, end(ended), strict=True):
                tell(Finished(trajectory))
                yield trajectory
                lanes.remove(lane)  # only now: Ctrl-C in between must not lose it
    except KeyboardInterrupt as interrupt:
        for lane in lanes:
            lane.stopped = lane.stopped or "interrupted"
        # Not judged by the held-out critics: who presses Ctrl-C wants to be out, and resuming will do it.
        kept = end([lane for lane in lanes if lane.drafts], judge_held_out=False)
        for trajectory in kept:
            tell(Finished(trajectory))
        raise Interrupted(kept) from interrupt
    finally:
        for lane in lanes:
            lane.asks.close()


def _play_round(backbone: Backbone, critic: Critic, lanes: Sequence[Lane]) -> None:
    """Draw and score what each lane asks for next."""
    if not lanes:
        return
    drawings = backbone.draw([lane.order for lane in lanes])
    if len(drawings) != len(lanes):
        raise RuntimeError(f"the backbone drew {len(drawings)} images for {len(lanes)} orders")
    recorded = [lane.keep_if_recorded(drawn) for lane, drawn in zip(lanes, drawings, strict=True)]
    fresh = [(lane, drawn) for lane, drawn, old in zip(lanes, drawings, recorded, strict=True) if not old]
    scores = judge(critic, [drawn.image for _, drawn in fresh], [lane.task for lane, _ in fresh])
    for (lane, drawn), score in zip(fresh, scores, strict=True):
        order = lane.order
        lane.keep(Draft(len(lane.drafts), ask=order.ask, stream=order.stream, drawn=drawn, score=score))
    # All drafts of the round are kept before the first search goes on: Ctrl-C from here on loses none.
    for lane, old in zip(lanes, recorded, strict=True):
        lane.go_on(recorded=old)
        lane.feed_records()


class Lane:
    """One search on one task: its generator, its drafts so far, and how it ended ('' while it runs)."""

    def __init__(
        self,
        asks: Search,
        task: Task,
        seed: int,
        seed_index: int,
        budget: int,
        threshold: float,
        recorded: Sequence[Draft],
        tell: Callable[[Event], None],
    ) -> None:
        self.asks, self.task, self.seed, self.seed_index = asks, task, seed, seed_index
        self.budget, self.threshold, self.recorded, self.tell = budget, threshold, list(recorded), tell
        self.drafts: list[Draft] = []
        self.notes: list[str] = []
        self.stopped = ""
        self.best = 0
        self.ask = next(asks)  # a search that asks for nothing at all is a bug: StopIteration becomes RuntimeError

    @property
    def order(self) -> Order:
        """What the search wants drawn next."""
        stream = draft_stream(self.seed, self.task.id, self.seed_index, len(self.drafts))
        return Order(prompt=self.task.prompt, ask=self.ask, stream=stream)

    def keep(self, draft: Draft) -> None:
        """Add a scored draft; the best is the earliest of highest reward."""
        self.drafts.append(draft)
        best_reward = self.drafts[self.best].reward
        if draft.reward is not None and (best_reward is None or draft.reward > best_reward):
            self.best = draft.number

    def go_on(self, *, recorded: bool) -> None:
        """Send the last draft to the search, find out whether that was all, and tell."""
        draft = self.drafts[-1]
        choice: int | None = None
        exhausted = False
        try:
            self.ask = self.asks.send(draft)  # the very last draft too: the search may have a choice to make
        except StopIteration as stop:
            exhausted, choice = True, stop.value
        draft = self.drafts[-1] = draft.without_latents()
        if draft.reward is not None and draft.reward >= self.threshold:
            self.stopped = "threshold"
        elif _abstentions(self.drafts) >= ABSTENTIONS_IN_A_ROW:
            self.stopped = "abstained"
            why = f"The critic abstained {ABSTENTIONS_IN_A_ROW} times in a row, so the search stopped"
            self.notes.append(f"{why}: {draft.score.reason}")
        elif len(self.drafts) >= self.budget:
            self.stopped = "budget"
        elif exhausted:
            self.stopped = "search"
        if self.stopped:
            self.asks.close()
            if choice is not None:
                if not 0 <= choice < len(self.drafts):
                    raise RuntimeError(f"the search chose draft {choice} of {len(self.drafts)}")
                self.best = choice
            if all(kept.reward is None for kept in self.drafts):
                why = self.drafts[self.best].score.reason
                self.notes.append(f"No draft could be scored ({why}); draft {self.best} is kept unjudged.")
        best_reward = self.drafts[self.best].reward
        self.tell(DraftScored(self.task, self.seed_index, draft, self.best, best_reward, self.budget, recorded))

    def feed_records(self) -> None:
        """Take recorded drafts as long as the search asks for them and needs nothing that they lack."""
        while self.recorded and not self.stopped:
            draft, order = self.recorded[0], self.order
            if (draft.number, draft.ask, draft.stream) != (len(self.drafts), order.ask, order.stream):
                self._drop_records(f"Draft {len(self.drafts)} on record was asked for differently")
            elif draft.drawn.latents is None and (order.ask.text_ratio > 0 or order.ask.image_ratio > 0):
                return  # latents are rarely kept on record: the next round draws them again
            else:
                self.keep(self.recorded.pop(0))
                self.go_on(recorded=True)

    def keep_if_recorded(self, drawn: Drawn) -> bool:
        """For a draft drawn again to get its latents: keep the recorded score if the tokens are the same."""
        if not self.recorded:
            return False
        draft = self.recorded[0]
        if (draft.drawn.text_tokens, draft.drawn.image_tokens) != (drawn.text_tokens, drawn.image_tokens):
            self._drop_records(f"Draft {draft.number} on record has other tokens than the model draws now")
            return False
        self.keep(replace(self.recorded.pop(0), drawn=drawn))
        return True

    def _drop_records(self, why: str) -> None:
        after = len(self.recorded) - 1
        self.notes.append(f"{why}; it and the {after} drafts after it on record were drawn afresh.")
        self.recorded.clear()


def _abstentions(drafts: Sequence[Draft]) -> int:
    """How many of the last drafts in a row have no score."""
    count = 0
    for draft in reversed(drafts):
        if draft.reward is not None:
            break
        count += 1
    return count


# --- Small things -------------------------------------------------------------------------------------------


def search_name(search: Callable[..., Any]) -> str:
    """What results call a search function: its name, with - for _."""
    return getattr(search, "__name__", type(search).__name__).replace("_", "-")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_numbers(*, budget: int, threshold: float, seed: int, batch: int) -> None:
    if not _is_whole(budget) or not 1 <= budget <= MAX_BUDGET:
        raise UserError(f"The budget is a whole number of reward calls from 1 to {MAX_BUDGET:,}, not {budget}.")
    if not isinstance(threshold, (int, float)) or not math.isfinite(threshold):
        raise UserError(f"The threshold is a finite reward, from 0 to 1 as a rule, not {threshold}.")
    if not _is_whole(seed):
        raise UserError(f"The seed is a whole number, not {seed!r}.")
    if not _is_whole(batch) or batch < 1:
        raise UserError(f"The batch is a whole number of at least 1, not {batch}.")


def check_tasks(tasks: Sequence[Task], seeds: int) -> None:
    """UserError for a number of seeds below 1, and for two tasks of one id."""
    if not _is_whole(seeds) or seeds < 1:
        raise UserError(f"The number of seeds is a whole number of at least 1, not {seeds}.")
    ids = [task.id for task in tasks]
    twice = next((task_id for task_id in ids if ids.count(task_id) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise UserError(f"Two tasks have the id '{twice}'; give each its own, random streams derive from it.")
