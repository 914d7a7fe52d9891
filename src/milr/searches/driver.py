"""The loop below every search: batches asks, charges the budget, judges, keeps the best, stops.

Strategies are generators written for one prompt; here many of them (tasks x seed indices) run side by side,
in *lanes*. A round gathers what each lane asks for, one draft or several, draws all in one call of the backbone, scores
all in one call of the critic, and sends each lane its drafts. Nothing here knows how a search chooses, how a model
draws, or where results are written: events tell whoever wants to show or to journal.

Equal cost holds by construction: one scored draft is one reward call, and nobody can draw or score elsewhere.

A critic that only waits for a server (`critics.base.waits`) is asked in a thread, and other lanes are drawn meanwhile:
twice as many searches are under way then, of which at most half are drawn at a time. What a search asks and gets is the
same, in the same order; only the lanes change turns. Everything else, and every event, stays on the drawing thread.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

import numpy as np

from milr.backbones.base import Backbone
from milr.backbones.policies import image_policy, text_policy
from milr.critics.base import Critic, hurry, judge, waits
from milr.drafts import Ask, Cost, Draft, Drawn, Order, Score, Task, Trajectory, UserError, reaches
from milr.searches.base import Problem, Search

if TYPE_CHECKING:
    from PIL.Image import Image

Settings = TypeVar("Settings")

MAX_BUDGET = 100_000
ABSTENTIONS_IN_A_ROW = 10  # then the critic is taken to be out of order, and the search ends with its reason
AHEAD = 2  # searches under way for each that is drawn at a time, where others are drawn while some are judged
JUDGES = 16  # threads, at most, that wait for critics
TOLD = 16  # earlier drafts that the model hears of: the best, and the last ones

clock = time.perf_counter  # of what judging and searching take; drawing is measured where it is done
UNJUDGED = Score(None, reason="no critic has seen it yet", outage=True)  # the score of a draft that was just drawn

Key = tuple[str, int]  # task id, seed index: names one search within a run


# --- What the driver tells ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A search begins."""

    task: Task
    seed_index: int
    budget: int


@dataclass(frozen=True)
class DraftsDrawn:
    """These images were drawn and go to the critic now: they come back as drafts that are scored. Whoever keeps them
    may begin to write them."""

    images: Sequence[Image]


@dataclass(frozen=True)
class DraftScored:
    """A draft is drawn and scored. `best` is the number of the best draft so far, `best_reward` its reward
    (None: all abstained). `recorded` drafts came in through `resume` and need no second journal line. A draft whose
    score is an outage may come once more when its critic can be asked: it is the same picture, judged."""

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


Event = Started | DraftsDrawn | DraftScored | RoundEnded | Finished


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
class Ended:
    """How a search ended that only lacks verdicts of held-out critics; `judged` are those whose verdict is there."""

    best: int
    stopped: str
    notes: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One search to do: its task and seed index, and its drafts that are already drawn and scored.

    A recorded draft whose score is an outage is judged before the search goes on. `ended`: the search itself is done,
    the recorded drafts are all of it.
    """

    task: Task
    seed_index: int = 0
    recorded: Sequence[Draft] = ()
    ended: Ended | None = None


class Options(TypedDict, total=False):
    """How `drive`, `drive_lazily` and `drive_jobs` go about it.

    name: what results call the search (default: the function's own name).
    budget: reward calls of one search, the first draft included, 1 to 100,000 (default 20).
    threshold: stop as soon as a draft's reward reaches it (default 1).
    seed: of the whole run (default 0); a draft's stream derives from it, the task id, the seed index and its number.
    held_out: critics that score only the returned image, after the search: not charged, never seen by it.
    judge_first: whether they judge the first image too (default yes): a report needs it to see that a search is fooled.
    batch: searches side by side (default 32). Changes speed and memory, never a result.
    on_event: hears Started, DraftsDrawn, DraftScored, RoundEnded and Finished as they happen.
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
            as long as it asks for them again nothing is drawn and nothing charged. Where it asks for something else
            they are dropped, and a note in the trajectory says so.
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
            text=text_policy(backbone),
            image=partial(image_policy, backbone),
            rng=search_rng(seed, task.id, seed_index),
            budget=budget,
            threshold=threshold,
            grid=backbone.info.grid,
        )
        return Lane(search(problem, settings), job, seed, problem, tell)

    def ended(lane: Lane) -> Trajectory:
        return Trajectory(
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
            held_out=lane.verdicts(held_out, lane.best),
            held_out_first=lane.verdicts(held_out, 0) if judge_first else {},
            notes=tuple(lane.notes),
        )

    lanes: list[Lane] = []  # all that are begun and not yet handed out
    judges = _Judges()
    asked: list[_Round] = []  # with the critic
    ending: list[_Ending] = []  # with held-out critics
    at_most = batch * AHEAD if waits(critic) else batch

    def settle(why: str | None) -> None:
        """The run ends: what is with the critic is kept with its verdict, or, for a reason, without one."""
        judges.close([critic, *held_out])
        told = False
        while asked:
            played = asked.pop(0)
            if (found := played.found()) is not None:
                _take_in(played, *found)
            elif why is not None:
                played.tell_unjudged(why)
            told = told or found is not None or why is not None
        if told:
            tell(RoundEnded())

    try:
        while True:
            while len(lanes) < at_most and (job := next(jobs, None)) is not None:
                tell(Started(job.task, job.seed_index, budget))
                lanes.append(start(job))
                lanes[-1].feed_records()
            if not lanes:
                return
            idle = [lane for lane in lanes if lane.is_ready]
            if idle:
                # Where some are drawn while others are judged never all at once: there would be no others.
                many = min(batch, math.ceil(len(lanes) / AHEAD)) if at_most > batch else batch
                drawn, idle = idle[:many], idle[many:]
                asked += [_Round.drawn(backbone, drawn, tell)]
                asked[-1].ask(critic, judges)
                idle += [lane for lane in drawn if lane.is_ready]
            under_way = [one.answer for one in asked] + [group.answer for group in ending]
            judges.wait(under_way, until_one=not idle and not _stopped(lanes))
            judged = [played for played in asked if played.answer.done()]
            for played in judged:
                found = played.answer.result()
                asked.remove(played)
                _take_in(played, *found)
            if judged or not asked:
                tell(RoundEnded())
            if stopped := _stopped(lanes):
                ending.append(_Ending.ask(stopped, held_out, judge_first, judges))
            for group in [group for group in ending if group.answer.done()]:
                group.take_in()
                for lane in group.lanes:
                    trajectory = ended(lane)
                    tell(Finished(trajectory))
                    yield trajectory
                    lanes.remove(lane)  # only now: Ctrl-C in between must not lose it
                ending.remove(group)
    except UserError as error:
        settle(str(error))
        raise
    except KeyboardInterrupt as interrupt:
        settle(None)
        for lane in lanes:
            lane.stopped = lane.stopped or "interrupted"
        # Not judged by the held-out critics: who presses Ctrl-C wants to be out, and resuming will do it.
        kept = [ended(lane) for lane in lanes if lane.drafts]
        for trajectory in kept:
            tell(Finished(trajectory))
        raise Interrupted(kept) from interrupt
    finally:
        judges.close([critic, *held_out])
        for lane in lanes:
            lane.search.close()


def _stopped(lanes: Sequence[Lane]) -> list[Lane]:
    """The searches that are over and that no held-out critic was asked about yet."""
    return [lane for lane in lanes if lane.stopped and not lane.is_judged]


class _Judges:
    """Has critics asked: one that only waits for a server in a thread, another one here and now."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def do(self, work: Callable[[], Any], *, beside: bool) -> Future[Any]:
        """What comes of this work, or why nothing does."""
        if beside:
            self._threads = self._threads or ThreadPoolExecutor(JUDGES, "milr-judge")
            return self._threads.submit(work)
        answer: Future[Any] = Future()
        try:
            answer.set_result(work())
        except Exception as error:  # Ctrl-C goes its way
            answer.set_exception(error)
        return answer

    @staticmethod
    def wait(answers: Sequence[Future[Any]], *, until_one: bool) -> None:
        if until_one and answers:
            wait(answers, return_when=FIRST_COMPLETED)

    def close(self, critics: Sequence[Critic]) -> None:
        """Take back what is not begun, and wait for the rest: no thread outlives the run."""
        if self._threads is not None:
            for critic in critics:
                hurry(critic)
            self._threads.shutdown(cancel_futures=True)
            self._threads = None


@dataclass(eq=False)
class _Round:
    """Rounds of several lanes that were drawn together and are judged together: the drafts that lack a verdict."""

    lanes: Sequence[Lane]
    drafts: Sequence[tuple[Lane, Draft]]
    answer: Future[tuple[list[Score], float]]

    @classmethod
    def drawn(cls, backbone: Backbone, lanes: Sequence[Lane], tell: Callable[[Event], None]) -> _Round:
        """Draw the round that each lane asks for."""
        orders = [(lane, place, order) for lane in lanes for place, order in lane.orders()]
        drawings = backbone.draw([order for _, _, order in orders]) if orders else []
        if len(drawings) != len(orders):
            raise RuntimeError(f"the backbone drew {len(drawings)} images for {len(orders)} orders")
        drawn: dict[int, dict[int, Drawn]] = {id(lane): {} for lane in lanes}
        for (lane, place, _), drawing in zip(orders, drawings, strict=True):
            drawn[id(lane)][place] = drawing
        lanes = [lane for lane in lanes if lane.take(drawn[id(lane)])]
        drafts = [(lane, draft) for lane in lanes for draft in lane.unjudged]
        tell(DraftsDrawn([draft.drawn.image for _, draft in drafts if draft.score is UNJUDGED]))
        return cls(lanes, drafts, Future())

    def ask(self, critic: Critic, judges: _Judges) -> None:
        """Have them judged. The lanes do nothing until then."""
        images, tasks = [draft.drawn.image for _, draft in self.drafts], [lane.task for lane, _ in self.drafts]

        def work() -> tuple[list[Score], float]:
            began = clock()
            scores = judge(critic, images, tasks)
            return scores, (clock() - began) / max(1, len(images))

        for lane in self.lanes:
            lane.is_with_critic = True
        self.answer = judges.do(work, beside=waits(critic) and bool(images))

    def found(self) -> tuple[list[Score], float] | None:
        """The scores and the seconds of each; None where there are none."""
        is_there = self.answer.done() and not self.answer.cancelled() and self.answer.exception() is None
        return self.answer.result() if is_there else None

    def tell_unjudged(self, why: str) -> None:
        """The pictures are there, so they are kept: they are judged, not drawn again, when the user has seen to it."""
        for lane, draft in self.drafts:
            if draft.score is UNJUDGED:  # else it is on record as it is
                lane.tell_scored(replace(draft, score=replace(UNJUDGED, reason=why)), recorded=False)


def _take_in(played: _Round, found: Sequence[Score], seconds: float) -> None:
    """Keep the drafts with their scores, and let the searches go on."""
    scores: dict[int, dict[int, Score]] = {id(lane): {} for lane in played.lanes}
    for (lane, draft), score in zip(played.drafts, found, strict=True):
        scores[id(lane)][draft.number] = score
    for lane in played.lanes:
        lane.keep(scores[id(lane)], seconds)
        lane.is_with_critic = False
    # All drafts of the round are kept before the first search goes on: Ctrl-C from here on loses none.
    for lane in played.lanes:
        lane.go_on()
        lane.feed_records()


@dataclass(eq=False)
class _Ending:
    """Searches that are over, and whose returned draft (and first one) held-out critics judge."""

    lanes: Sequence[Lane]
    answer: Future[list[tuple[str, list[tuple[Lane, int]], list[Score]]]]
    here: list[tuple[str, list[tuple[Lane, int]], list[Score]]]

    @classmethod
    def ask(cls, lanes: Sequence[Lane], held_out: Sequence[Critic], judge_first: bool, judges: _Judges) -> _Ending:
        """Those that wait for a server are asked in a thread, one after the other."""

        def asks(critics: Sequence[Critic]) -> list[tuple[str, list[tuple[Lane, int]], list[Score]]]:
            found = []
            for other in critics:
                # The returned draft and the first one of each lane; where they are the same it is judged once.
                wanted = [
                    (lane, number)
                    for lane in lanes
                    if other.name not in lane.judged
                    for number in sorted({lane.best} | ({0} if judge_first else set()))
                ]
                images = [lane.drafts[number].drawn.image for lane, number in wanted]
                found.append((other.name, wanted, judge(other, images, [lane.task for lane, _ in wanted])))
            return found

        for lane in lanes:
            lane.is_judged = True
        remote = [other for other in held_out if waits(other)]
        answer = judges.do(lambda: asks(remote), beside=bool(remote))
        return cls(lanes, answer, asks([other for other in held_out if not waits(other)]))

    def take_in(self) -> None:
        """Give every lane its verdicts."""
        for name, wanted, scores in (*self.here, *self.answer.result()):
            for (lane, number), score in zip(wanted, scores, strict=True):
                lane.held_out[name, number] = score


@dataclass(frozen=True)
class _Kept:
    """A scored draft of the round, with its latents; the best draft by then; whether it was on record as it is."""

    draft: Draft
    best: int
    recorded: bool


class Lane:
    """One search on one task: its generator, its drafts so far, and how it ended ('' while it runs).

    `asks` are those of the round, cut to what the budget has left, and `taken` their drafts, as far as they are drawn.
    Of the drafts on record those of this round are first in `recorded`.
    """

    def __init__(
        self,
        search: Search,
        job: Job,
        seed: int,
        problem: Problem,
        tell: Callable[[Event], None],
    ) -> None:
        self.search, self.task, self.seed, self.seed_index = search, job.task, seed, job.seed_index
        self.budget, self.threshold, self.problem, self.tell = problem.budget, problem.threshold, problem, tell
        self.recorded = list(job.recorded)
        self.drafts: list[Draft] = []
        self.notes: list[str] = []
        self.stopped = ""
        self.best = 0
        self.judged: tuple[str, ...] = ()  # held-out critics whose verdicts are known
        self.asks: list[Ask] = []
        self.taken: list[Draft | None] = []
        self.round: list[_Kept] = []  # scored, and not yet sent to the search
        self.is_single = True  # whether the search asked for one draft, and not for a list of them
        self.is_with_critic = False
        self.is_judged = False  # or held-out critics have been asked to
        self.held_out: dict[tuple[str, int], Score] = {}  # by critic and draft
        first = next(search)  # a search that asks for nothing at all is a bug: StopIteration becomes RuntimeError
        if job.ended is not None:
            self.drafts, self.recorded = self.recorded, []
            self.best, self.stopped, self.judged = job.ended.best, job.ended.stopped, job.ended.judged
            self.notes = list(job.ended.notes)
        else:
            self._begin_round(first)

    def _begin_round(self, asked: Ask | Sequence[Ask]) -> None:
        self.is_single = isinstance(asked, Ask)
        asks = [asked] if isinstance(asked, Ask) else list(asked)
        if not asks:
            raise RuntimeError("the search asked for a round without drafts")
        self.asks = asks[: self.budget - len(self.drafts)]
        self.taken = [None] * len(self.asks)
        for place, draft in enumerate(self.recorded[: len(self.asks)]):
            number = len(self.drafts) + place
            if (draft.number, draft.ask, draft.stream) != (number, self.asks[place], self._stream(place)):
                self._drop_records(place, f"Draft {number} on record was asked for differently")
                break

    @property
    def is_ready(self) -> bool:
        """Whether its round may be drawn."""
        return not self.stopped and not self.is_with_critic

    def verdicts(self, held_out: Sequence[Critic], number: int) -> dict[str, Score]:
        """What held-out critics say of a draft, as far as they were asked."""
        return {other.name: self.held_out[key] for other in held_out if (key := (other.name, number)) in self.held_out}

    def _stream(self, place: int) -> int:
        return draft_stream(self.seed, self.task.id, self.seed_index, len(self.drafts) + place)

    def _needs_the_model(self, place: int) -> bool:
        """Whether this draft must be drawn, or is on record and lacks the latents that the search asks for."""
        wants_latents = self.asks[place].text_ratio > 0 or self.asks[place].image_ratio > 0
        return place >= len(self.recorded) or (wants_latents and self.recorded[place].drawn.latents is None)

    def orders(self) -> list[tuple[int, Order]]:
        """What is left to draw of this round, by place in it. Of a draft on record only the latents are wanted: its
        tokens are forced, so the model reads them in one pass and samples nothing, and no rounding can turn it into
        another draft."""
        found = []
        best = self.drafts[self.best : self.best + 1]
        earlier = tuple(draft.drawn for draft in (*best, *self.drafts[:-TOLD:-1]))
        for place, ask in enumerate(self.asks):
            if self.taken[place] is None and self._needs_the_model(place):
                if place < len(self.recorded):
                    draft = self.recorded[place]
                    image = self.problem.image(draft.drawn.guidance).kept(draft)
                    ask = replace(ask, text=self.problem.text.kept(draft), image=image)
                found.append((place, Order(self.task.prompt, ask, self._stream(place), earlier)))
        return found

    def take(self, drawn: Mapping[int, Drawn]) -> bool:
        """Take the drafts of the round out of what the model gave, by place, and of what is on record. False if the
        model does not give back the tokens on record: what is missing then is drawn afresh in the next round."""
        on_record = len(self.recorded)
        for place, ask in enumerate(self.asks):
            drawing = drawn.get(place)
            if self.taken[place] is not None or len(self.recorded) <= place < on_record:
                continue  # taken before, or dropped just now
            if place >= on_record:
                assert drawing is not None, "there is nothing on record"
                number, stream = len(self.drafts) + place, self._stream(place)
                self.taken[place] = Draft(number, ask=ask, stream=stream, drawn=drawing, score=UNJUDGED)
                continue
            draft = self.recorded[place]
            if drawing is not None:
                if (draft.drawn.text_tokens, draft.drawn.image_tokens) != (drawing.text_tokens, drawing.image_tokens):
                    why = f"The model does not give back the tokens of draft {draft.number} on record"
                    self._drop_records(place, why)
                    continue
                draft = replace(draft, drawn=replace(draft.drawn, latents=drawing.latents))
            self.taken[place] = replace(draft, ask=ask)  # the same but for its note, which may know more by now
        is_whole = None not in self.taken
        if is_whole:
            del self.recorded[: len(self.asks)]
        return is_whole

    @property
    def unjudged(self) -> list[Draft]:
        """The drafts of the round that no critic has judged yet, or none could be asked about."""
        return [draft for draft in self.taken if draft is not None and draft.score.outage]

    def keep(self, scores: Mapping[int, Score], seconds: float = 0.0) -> None:
        """Add the drafts of the round with these scores, by number, of which each took so long; those without one bring
        theirs along. The best is the earliest of highest reward."""
        taken, self.taken = self.taken, []  # with their latents, which the search is sent and nobody keeps
        for draft in taken:
            assert draft is not None, "the round is drawn"
            recorded = draft.number not in scores
            if not recorded:
                draft = _charged(replace(draft, score=scores[draft.number]), critic_seconds=seconds)
            self.drafts.append(draft.without_latents())
            best_reward = self.drafts[self.best].reward
            if draft.reward is not None and (best_reward is None or draft.reward > best_reward):
                self.best = draft.number
            self.round.append(_Kept(draft, self.best, recorded))

    def go_on(self) -> None:
        """Send the round to the search, find out whether that was all, and tell."""
        kept, self.round = self.round, []
        sent = [replace(one.draft, score=without_words(one.draft.score)) for one in kept]
        asked: Ask | Sequence[Ask] | None = None
        choice: int | None = None
        began = clock()
        try:
            # The very last round too: the search may have a choice to make.
            asked = self.search.send(sent[0] if self.is_single else sent)
        except StopIteration as stop:
            choice = stop.value
        seconds = (clock() - began) / len(kept)
        for one in kept:
            if not one.recorded:
                self.drafts[one.draft.number] = _charged(self.drafts[one.draft.number], search_seconds=seconds)
        abstentions = _abstentions(self.drafts)
        if any(reaches(one.draft.reward, self.threshold) for one in kept):
            self.stopped = "threshold"
        elif abstentions >= ABSTENTIONS_IN_A_ROW:
            self.stopped = "abstained"
            why = f"The critic abstained {abstentions} times in a row, so the search stopped"
            self.notes.append(f"{why}: {self.drafts[-1].score.reason}")
        elif len(self.drafts) >= self.budget:
            self.stopped = "budget"
        elif asked is None:
            self.stopped = "search"
        if self.stopped:
            self.search.close()
            if choice is not None:
                if not 0 <= choice < len(self.drafts):
                    raise RuntimeError(f"the search chose draft {choice} of {len(self.drafts)}")
                self.best = choice
            if all(draft.reward is None for draft in self.drafts):
                why = self.drafts[self.best].score.reason
                self.notes.append(f"No draft could be scored ({why}); draft {self.best} is kept unjudged.")
        for one in kept:
            best = self.best if one is kept[-1] else one.best
            self.tell_scored(self.drafts[one.draft.number], best=best, recorded=one.recorded)
        if not self.stopped:
            assert asked is not None, "a search that asks for no more has stopped"
            self._begin_round(asked)

    def tell_scored(self, draft: Draft, *, recorded: bool, best: int | None = None) -> None:
        best = self.best if best is None else best
        best_reward = self.drafts[best].reward if self.drafts else None
        self.tell(
            DraftScored(self.task, self.seed_index, draft.without_latents(), best, best_reward, self.budget, recorded)
        )

    def feed_records(self) -> None:
        """Take rounds on record as long as the search asks for them and they lack neither latents nor a verdict."""
        while not self.stopped and not any(
            self._needs_the_model(place) or self.recorded[place].score.outage for place in range(len(self.asks))
        ):  # else the next round brings both; latents are rarely kept on record
            self.take({})
            self.keep({})
            self.go_on()

    def _drop_records(self, place: int, why: str) -> None:
        after = len(self.recorded) - place - 1
        self.notes.append(f"{why}; it and the {after} drafts after it on record were drawn afresh.")
        del self.recorded[place:]


def _charged(draft: Draft, critic_seconds: float = 0.0, search_seconds: float = 0.0) -> Draft:
    """The draft, to which these seconds are charged."""
    cost = draft.drawn.cost + Cost(critic_seconds=critic_seconds, search_seconds=search_seconds)
    return replace(draft, drawn=replace(draft.drawn, cost=cost))


def without_words(score: Score) -> Score:
    """What a search may know of a score: values, places, what passed. The critic's words are for the record: 'one cow
    (found 0)' is the answer to a riddle."""
    return replace(score, checks=tuple(replace(check, text="") for check in score.checks), reason="")


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
