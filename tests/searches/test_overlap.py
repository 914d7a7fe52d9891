"""Critics that only wait for a server: others are drawn meanwhile, and nothing else is different."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from test_width import WIDE, gist, run, which
from toy import CountingCritic, Toy, match, noise, tasks

from milr.critics.base import judge, waits
from milr.critics.mix import MixCritic, read
from milr.drafts import Draft, Drawn, Order, Score, Task, Trajectory, UserError
from milr.searches import driver
from milr.searches.driver import DraftScored, Event, Finished, Interrupted, RoundEnded, drive_lazily

LONG = 60  # seconds: a limit against hanging for ever
AT_ONCE = driver._Judges()
OUTAGE = Score(None, reason="no connection", outage=True)


class Remote(CountingCritic):
    """Waits, as it says."""

    waits = True


class Shuffled:
    """In the place of the threads: what waits is done when the driver looks, some of it and in any order."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.open: list[tuple[Future[Any], Callable[[], Any]]] = []

    def do(self, work: Callable[[], Any], *, beside: bool) -> Future[Any]:
        if not beside:
            return AT_ONCE.do(work, beside=False)
        answer: Future[Any] = Future()
        self.open.append((answer, work))
        return answer

    def wait(self, answers: Sequence[Future[Any]], *, until_one: bool) -> None:
        must = until_one and not any(answer.done() for answer in answers)
        for _ in range(self.rng.randint(int(must and bool(self.open)), len(self.open))):
            answer, work = self.open.pop(self.rng.randrange(len(self.open)))
            try:
                answer.set_result(work())
            except Exception as error:
                answer.set_exception(error)

    def close(self, critics: Sequence[Any]) -> None:
        """What was begun ends, as far as it was: here some of it."""
        for answer, work in self.open:
            if self.rng.random() < 0.5:
                answer.cancel()
                continue
            try:
                answer.set_result(work())
            except Exception as error:
                answer.set_exception(error)
        self.open.clear()


def shuffled(seed: int, name: str, width: int, **options: Any) -> list[Trajectory]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_Judges", lambda: Shuffled(seed))
        return run(name, width, **{"critic": Remote(match), **options})


@hypothesis_settings(deadline=None, max_examples=15)
@given(name=which, width=st.integers(1, 4), seed=st.integers(0, 999), count=st.integers(1, 6), batch=st.integers(1, 5))
def test_whatever_comes_back_first_every_search_is_what_it_would_be(
    name: str, width: int, seed: int, count: int, batch: int
) -> None:
    """With events of each search in the same order, and held-out critics of both kinds."""
    stories: list[list[Event]] = [[], []]
    held_out = [[kind(noise, name="far"), CountingCritic(noise, name="near")] for kind in (CountingCritic, Remote)]
    options: dict[str, Any] = {"tasks": tasks(count), "budget": 7, "batch": batch, "threshold": 0.9}
    plain = run(name, width, **options, held_out=held_out[0], on_event=stories[0].append)
    found = shuffled(seed, name, width, **options, held_out=held_out[1], on_event=stories[1].append)
    assert [gist(one) for one in found] == [gist(one) for one in plain]
    assert found == plain
    for task in tasks(count):
        told = [
            [e for e in story if isinstance(e, DraftScored) and e.task.id == task.id]
            + [e for e in story if isinstance(e, Finished) and e.trajectory.task.id == task.id]
            for story in stories
        ]
        assert told[0] == told[1]


class Watched(Toy):
    """Says when it draws what."""

    def __init__(self, say: Callable[[Any], None]) -> None:
        super().__init__()
        self.say = say

    def draw(self, orders: Sequence[Order]) -> list[Drawn]:
        self.say([order.prompt for order in orders])
        return super().draw(orders)


@hypothesis_settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), width=st.integers(1, 3))
def test_nothing_is_drawn_for_a_search_whose_last_drafts_are_not_written(seed: int, width: int) -> None:
    story: list[Any] = []
    shuffled(
        seed, "repair", width, tasks=tasks(6), budget=5, batch=2, backbone=Watched(story.append), on_event=story.append
    )
    unwritten: set[str] = set()
    for one in story:
        if isinstance(one, DraftScored):
            unwritten.add(one.task.prompt)
        elif isinstance(one, RoundEnded):
            unwritten.clear()
        elif isinstance(one, list):
            assert not unwritten & set(one)


@hypothesis_settings(deadline=None, max_examples=15)
@given(name=which, width=st.integers(1, 4), seed=st.integers(0, 999), after=st.integers(1, 30), how=st.booleans())
def test_a_run_that_ends_in_the_middle_keeps_what_was_told_and_goes_on(
    name: str, width: int, seed: int, after: int, how: bool
) -> None:
    """By Ctrl-C while it draws, or by a critic that the user must see to."""
    whole = run(name, width, tasks=tasks(4), budget=6)
    told: dict[str, list[Draft]] = {task.id: [] for task in tasks(4)}

    class Ends(Remote):
        def score(self, images: Sequence[Image.Image], tasks: Sequence[Task]) -> list[Score]:
            if self.calls >= after:
                raise UserError("The judge refused the key; see to it.")
            return super().score(images, tasks)

    class Stops(Toy):
        def draw(self, orders: Sequence[Order]) -> list[Drawn]:
            if len(self.orders) >= after:
                raise KeyboardInterrupt
            return super().draw(orders)

    def hear(event: Event) -> None:
        if isinstance(event, DraftScored):
            drafts = told[event.task.id]
            drafts[event.draft.number :] = [event.draft]

    options: dict[str, Any] = {"tasks": tasks(4), "budget": 6, "batch": 2, "on_event": hear}
    try:
        shuffled(seed, name, width, **options, **({"critic": Ends(match)} if how else {"backbone": Stops()}))
    except UserError:
        assert how
    except Interrupted as stop:
        assert not how
        for one in stop.trajectories:
            assert [draft.number for draft in one.drafts] == list(range(len(one.drafts)))
            told[one.task.id] = list(one.drafts)
    record = {(task, 0): drafts for task, drafts in told.items()}
    backbone = Toy()
    again = run(name, width, tasks=tasks(4), budget=6, resume=record, backbone=backbone)
    assert [gist(one) for one in again] == [gist(one) for one in whole]
    if name in ("sampled", "greedy"):  # which need no latents: nothing that was told is drawn again
        assert len(backbone.orders) == sum(len(one.drafts) for one in whole) - sum(map(len, told.values()))


# --- With threads ---------------------------------------------------------------------------------------------


def no_thread_is_left() -> None:
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("milr-judge")]


def test_others_are_drawn_while_some_wait_for_their_verdict() -> None:
    """The first verdict comes only when a second group has been drawn: alone, drawing would wait for ever."""
    second, never = threading.Event(), []

    class Drawing(Toy):
        def draw(self, orders: Sequence[Order]) -> list[Drawn]:
            found = super().draw(orders)
            if len(self.batches) > 1:
                second.set()
            return found

    class Patient(Remote):
        def score(self, images: Sequence[Image.Image], tasks: Sequence[Task]) -> list[Score]:
            if not second.wait(LONG):  # an error would be an abstention, and the next one would wait again
                never.append(True)
                second.set()
            never.extend([True] * (threading.current_thread() is threading.main_thread()))
            return super().score(images, tasks)

    for count, batch in ((2, 8), (8, 2), (5, 1)):  # also where all that there is could be drawn at once
        second.clear()
        backbone = Drawing()
        found = run("sampled", 1, tasks=tasks(count), budget=3, critic=Patient(match), backbone=backbone, batch=batch)
        assert found == run("sampled", 1, tasks=tasks(count), budget=3)
        assert not never
        assert max(backbone.batches) <= batch
        no_thread_is_left()


def test_a_critic_that_does_not_say_so_is_asked_where_the_model_draws() -> None:
    class Near(CountingCritic):
        def score(self, images: Sequence[Image.Image], tasks: Sequence[Task]) -> list[Score]:
            elsewhere.extend([True] * (threading.current_thread() is not threading.main_thread()))
            return super().score(images, tasks)

    elsewhere: list[bool] = []
    run("sampled", 1, tasks=tasks(5), budget=3, critic=Near(match), held_out=[Near(noise, name="other")])
    assert not elsewhere
    mixed = [Remote(match), CountingCritic(noise)]
    assert [waits(one) for one in mixed] == [True, False]
    formula = read("min(noise,noise)")
    assert not waits(MixCritic(formula, mixed))
    assert waits(MixCritic(formula, mixed[:1] * 2))


def test_no_thread_outlives_a_run_however_it_ends() -> None:
    class Refuses(Remote):
        def score(self, images: Sequence[Image.Image], tasks: Sequence[Task]) -> list[Score]:
            raise UserError("The judge refused the key; see to it.")

    class Gone(Remote):
        def score(self, images: Sequence[Image.Image], tasks: Sequence[Task]) -> list[Score]:
            return [OUTAGE for _ in images]

    class Hurried(Remote):
        """Answers when it is told that nobody waits, and not before."""

        def __init__(self) -> None:
            super().__init__(match)
            self.over = threading.Event()

        def score(self, images: Sequence[Image.Image], tasks: Sequence[Task]) -> list[Score]:
            self.over.wait(LONG)
            return super().score(images, tasks)

        def hurry(self) -> None:
            self.over.set()

    for critic in (Refuses(match), Gone(match)):
        with pytest.raises(UserError):
            run("sampled", 2, tasks=tasks(6), batch=2, critic=critic)
        no_thread_is_left()

    class Stops(Toy):
        def draw(self, orders: Sequence[Order]) -> list[Drawn]:
            if self.batches:
                raise KeyboardInterrupt
            return super().draw(orders)

    with pytest.raises(Interrupted) as caught:
        run("sampled", 2, tasks=tasks(6), batch=2, critic=Hurried(), backbone=Stops())
    assert sum(len(one.drafts) for one in caught.value.trajectories) == 2  # judged on the way out
    no_thread_is_left()

    search, settings = WIDE["sampled"]
    lazily = drive_lazily(Toy(), Remote(match), tasks(6), search, settings, batch=2, budget=2)
    next(lazily)
    lazily.close()
    no_thread_is_left()


def test_one_outage_among_other_verdicts_is_an_abstention_also_beside() -> None:
    class Loses(Remote):
        def score(self, images: Sequence[Image.Image], tasks: Sequence[Task]) -> list[Score]:
            found = super().score(images, tasks)
            return [OUTAGE if task.id == "3" else one for one, task in zip(found, tasks, strict=True)]

    found = run("sampled", 1, tasks=tasks(8), budget=2, batch=4, critic=Loses(match))
    assert [[d.score.outage for d in one.drafts] for one in found] == [[one.task.id == "3"] * 2 for one in found]
    assert judge(Loses(match), [], []) == []
