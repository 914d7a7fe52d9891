"""The driver: faulty critics, limits, events, Ctrl-C, held-out critics, streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy import CountingCritic, Toy, match, noise, tasks

from milr.drafts import Ask, Check, Draft, Order, Sample, Score, Task, UserError
from milr.searches.base import Problem, Search
from milr.searches.best_of_n import BestOfN, best_of_n
from milr.searches.driver import (
    DraftScored,
    Ended,
    Event,
    Finished,
    Interrupted,
    Job,
    Started,
    draft_stream,
    drive,
    drive_jobs,
    drive_lazily,
    judge,
    search_rng,
)
from milr.searches.latent import PRESETS, milr

BLACK = Image.new("RGB", (3, 3))


class FixedCritic:
    """Gives what it is told to give, whatever that is."""

    name = "fixed"

    def __init__(self, answer: Callable[[Sequence[Image.Image]], Any]) -> None:
        self.answer = answer

    def score(self, images: Sequence[Image.Image], tasks: Sequence[Task]) -> list[Score]:
        return self.answer(images)  # type: ignore[no-any-return]


# --- Faulty critics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, 0.0),
        (1, 1.0),
        (np.float32(0.25), 0.25),
        (1 + 1e-9, 1.0),  # rounding of a mean is no fault
        (-1e-9, 0.0),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (1.01, None),
        (-0.5, None),
        ("good", None),
        ([0.5], None),
    ],
)
def test_only_a_number_in_the_unit_interval_is_a_score(value: Any, expected: float | None) -> None:
    (score,) = judge(FixedCritic(lambda images: [Score(value)]), [BLACK], tasks())
    assert score.value == expected
    assert type(score.value) in (float, type(None))
    assert bool(score.reason) == (expected is None)


def test_something_else_than_a_score_abstains() -> None:
    (score,) = judge(FixedCritic(lambda images: [0.5]), [BLACK], tasks())
    assert score.abstained
    assert "instead of a Score" in score.reason


def test_one_bad_image_does_not_cost_its_neighbours_their_score() -> None:
    def answer(images: Sequence[Image.Image]) -> list[Score]:
        if any(image.size == (1, 1) for image in images):
            raise OSError("cannot read image")
        return [Score(0.5) for _ in images]

    images = [BLACK, Image.new("RGB", (1, 1)), BLACK]
    scores = judge(FixedCritic(answer), images, tasks(3))
    assert [score.value for score in scores] == [0.5, None, 0.5]
    assert scores[1].reason == "critic 'fixed' failed: OSError: cannot read image"


@pytest.mark.parametrize("answer", [lambda images: [], lambda images: [Score(1.0)] * 3, lambda images: None])
def test_the_wrong_number_of_scores_is_said_to_be_a_bug_of_the_critic(answer: Any) -> None:
    with pytest.raises(UserError, match="bug of the critic"):
        drive(Toy(), FixedCritic(answer), tasks(2), best_of_n, BestOfN(), budget=2)


def test_a_failing_critic_stops_after_ten_with_its_reason_and_others_go_on() -> None:
    def judge_tokens(tokens: tuple[int, ...], task: Task) -> float:
        if task.id == "1":
            raise TimeoutError("no answer in 30 s")
        return match(tokens, task)

    ok, failed = drive(Toy(), CountingCritic(judge_tokens), tasks(2), best_of_n, BestOfN(), budget=15)
    assert (ok.stopped, len(ok.drafts)) == ("budget", 15)
    assert (failed.stopped, len(failed.drafts), failed.best) == ("abstained", 10, 0)
    assert "TimeoutError: no answer in 30 s" in failed.notes[0]


def test_nine_abstentions_in_a_row_stop_nothing() -> None:
    values = iter([None] * 9 + [0.5] + [None] * 9 + [0.25])
    critic = CountingCritic(lambda tokens, task: next(values))
    (trajectory,) = drive(Toy(), critic, tasks(), milr, PRESETS["paper"], budget=20)
    assert (trajectory.stopped, trajectory.best, len(trajectory.drafts)) == ("budget", 9, 20)
    assert trajectory.notes == ()


# --- Limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("budget", 0),
        ("budget", -1),
        ("budget", 10**9),
        ("budget", 100_001),
        ("budget", 2.5),
        ("budget", True),
        ("threshold", math.nan),
        ("threshold", math.inf),
        ("threshold", "high"),
        ("seed", 0.5),
        ("seeds", 0),
        ("batch", 0),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_drawn(option: str, value: Any) -> None:
    backbone = Toy()
    with pytest.raises(UserError, match=rf"{option}"):
        drive(backbone, CountingCritic(match), tasks(), best_of_n, BestOfN(), **{option: value})
    assert not backbone.orders


def test_two_tasks_cannot_share_an_id() -> None:
    with pytest.raises(UserError, match="id '0'"):
        drive(Toy(), CountingCritic(match), [Task("a"), Task("b")], best_of_n, BestOfN())


def test_no_task_no_work() -> None:
    assert drive(Toy(), CountingCritic(match), [], best_of_n, BestOfN()) == []


# --- Choosing -----------------------------------------------------------------------------------------------


def test_the_best_is_the_earliest_of_highest_reward() -> None:
    values = iter([0.2, 0.7, 0.5, 0.7])
    critic = CountingCritic(lambda tokens, task: next(values))
    (trajectory,) = drive(Toy(), critic, tasks(), best_of_n, BestOfN(), budget=4)
    assert trajectory.best == 1


def test_a_search_may_choose_another_draft_even_when_its_budget_ends() -> None:
    def last(problem: Problem, settings: None) -> Search:
        draft = yield Ask(image=Sample())
        while draft.number + 1 < problem.budget:
            draft = yield Ask(image=Sample())
        return draft.number

    values = iter([0.9, 0.1, 0.2])
    critic = CountingCritic(lambda tokens, task: next(values))
    (trajectory,) = drive(Toy(), critic, tasks(), last, None, budget=3)
    assert (trajectory.best, trajectory.stopped, trajectory.search) == (2, "budget", "last")


def test_a_search_that_goes_on_past_its_budget_is_closed() -> None:
    closed = []

    def greedy_for_more(problem: Problem, settings: None) -> Search:
        try:
            while True:
                yield Ask()
        finally:
            closed.append(problem.task.id)

    drive(Toy(), CountingCritic(match), tasks(2), greedy_for_more, None, budget=2)
    assert closed == ["0", "1"]


def test_a_search_that_asks_for_nothing_or_chooses_nonsense_is_a_bug() -> None:
    def silent(problem: Problem, settings: None) -> Search:
        yield from ()
        return 0

    def wild(problem: Problem, settings: None) -> Generator[Ask, Draft, int]:
        yield Ask()
        return 7

    for search in (silent, wild):
        with pytest.raises(RuntimeError):
            drive(Toy(), CountingCritic(match), tasks(), search, None)


# --- Events, batches, held-out critics ----------------------------------------------------------------------


def test_events_tell_the_whole_story_in_order() -> None:
    events: list[Event] = []
    found = drive(Toy(), CountingCritic(noise), tasks(2), milr, PRESETS["paper"], budget=8, on_event=events.append)
    mine = [event for event in events if isinstance(event, DraftScored) and event.task.id == "0"]
    assert [event.draft for event in mine] == list(found[0].drafts)
    rewards = [draft.reward or 0.0 for draft in found[0].drafts]
    highest = [max(rewards[: number + 1]) for number in range(len(rewards))]
    assert [event.best_reward for event in mine] == highest
    assert [event.best for event in mine] == [rewards.index(reward) for reward in highest]
    assert rewards[-1] != highest[-1]  # else the last could pass for the best
    assert not any(event.recorded for event in mine)
    assert [type(e) for e in events if isinstance(e, Started | Finished)] == [Started] * 2 + [Finished] * 2
    assert [event.trajectory for event in events if isinstance(event, Finished)] == found


def test_recorded_drafts_are_told_as_such() -> None:
    (whole,) = drive(Toy(), CountingCritic(match), tasks(), best_of_n, BestOfN(), budget=4)
    told: list[Event] = []
    drive(
        Toy(), CountingCritic(match), tasks(), best_of_n, BestOfN(), budget=4,
        resume={("0", 0): whole.drafts[:3]}, on_event=told.append,
    )  # fmt: skip
    assert [event.recorded for event in told if isinstance(event, DraftScored)] == [True] * 3 + [False]


def test_records_that_no_longer_fit_are_dropped_with_a_note() -> None:
    (whole,) = drive(Toy(), CountingCritic(match), tasks(), best_of_n, BestOfN(), budget=4)
    hotter = BestOfN(text_temperature=2.0)
    (other,) = drive(
        Toy(), CountingCritic(match), tasks(), best_of_n, hotter, budget=4, resume={("0", 0): whole.drafts}
    )
    (fresh,) = drive(Toy(), CountingCritic(match), tasks(), best_of_n, hotter, budget=4)
    assert other.notes == (
        "Draft 1 on record was asked for differently; it and the 2 drafts after it on record were drawn afresh.",
    )
    assert [d.drawn.image_tokens for d in other.drafts] == [d.drawn.image_tokens for d in fresh.drafts]


def test_searches_run_side_by_side_and_places_are_filled() -> None:
    backbone = Toy()
    drive(backbone, CountingCritic(match), tasks(5), best_of_n, BestOfN(), budget=2, batch=2, threshold=9)
    assert backbone.batches == [2, 2, 2, 2, 1, 1]


def test_no_search_sees_what_only_critics_may_know() -> None:
    seen = []

    def peeping(problem: Problem, settings: None) -> Search:
        seen.append(problem.task)
        yield Ask()

    task = Task("a fox", id="7", category="riddle", metadata={"explanation": "the answer"})
    (trajectory,) = drive(Toy(), CountingCritic(noise), [task], peeping, None)
    assert seen == [Task("a fox", id="7", category="riddle")]
    assert trajectory.task == task


def test_a_search_is_told_values_and_places_and_not_the_words_of_the_critic() -> None:
    """Red before: 'one cow (found 0)' is the answer to a riddle, and every search was sent it."""
    seen: list[Score] = []
    said = Score(0.5, (Check("one cow (found 0)", False, ((0, 0, 1, 1),)), Check("a green frame", True)), "no cow")

    class Tells:
        name = "tells"

        def score(self, images: Sequence[Image.Image], tasks: Sequence[Task]) -> list[Score]:
            return [said for _ in images]

    def listens(problem: Problem, settings: None) -> Search:
        for _ in range(2):
            draft = yield Ask()
            seen.append(draft.score)
        return None

    (trajectory,) = drive(Toy(), Tells(), tasks(), listens, None, budget=2)
    assert [draft.score for draft in trajectory.drafts] == [said, said]
    assert seen == [Score(0.5, (Check("", False, ((0, 0, 1, 1),)), Check("", True)))] * 2


def test_held_out_critics_score_the_chosen_and_the_first_image_and_cost_nothing() -> None:
    held_out = CountingCritic(noise, name="other")
    broken = FixedCritic(lambda images: [Score(math.nan) for _ in images])
    found = drive(Toy(), CountingCritic(match), tasks(3), best_of_n, BestOfN(), budget=4, held_out=[held_out, broken])
    assert held_out.calls == 3 + sum(trajectory.best != 0 for trajectory in found)  # and the first, if it is another
    for trajectory in found:
        assert trajectory.cost.reward_calls == 4
        best = trajectory.best_draft.drawn.image_tokens
        assert trajectory.held_out["other"].value == noise(best, trajectory.task)
        first = trajectory.drafts[0].drawn.image_tokens
        assert trajectory.held_out_first["other"].value == noise(first, trajectory.task)
        assert trajectory.held_out["fixed"].abstained


def test_the_first_image_is_not_judged_where_nobody_asks_for_it() -> None:
    held_out = CountingCritic(noise, name="other")
    found = drive(
        Toy(), CountingCritic(match), tasks(3), best_of_n, BestOfN(), budget=4, held_out=[held_out], judge_first=False
    )
    assert held_out.calls == 3
    assert all(not trajectory.held_out_first and trajectory.held_out for trajectory in found)


def test_a_lazy_run_keeps_nothing_and_yields_as_searches_end() -> None:
    backbone = Toy()
    run = drive_lazily(backbone, CountingCritic(match), tasks(3), best_of_n, BestOfN(), budget=2, batch=1)
    assert isinstance(run, Generator)
    assert next(run).task.id == "0"
    assert len(backbone.orders) == 2  # the others have not begun
    run.close()


# --- Ctrl-C -------------------------------------------------------------------------------------------------


class InterruptedToy(Toy):
    """Ctrl-C arrives while round number `at` is drawn."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def draw(self, orders: Sequence[Order]) -> list[Any]:
        if len(self.batches) == self.at:
            raise KeyboardInterrupt
        return super().draw(orders)


def test_ctrl_c_keeps_what_is_finished_and_what_is_begun() -> None:
    events: list[Event] = []
    with pytest.raises(KeyboardInterrupt) as caught:
        drive(
            InterruptedToy(at=3), CountingCritic(match), tasks(5), best_of_n, BestOfN(), budget=2, batch=2,
            on_event=events.append, threshold=9, held_out=[CountingCritic(noise)],
        )  # fmt: skip
    stop = caught.value
    assert isinstance(stop, Interrupted)
    assert [(t.task.id, t.stopped, len(t.drafts)) for t in stop.trajectories] == [
        ("0", "budget", 2),
        ("1", "budget", 2),
        ("2", "interrupted", 1),
        ("3", "interrupted", 1),
    ]
    assert [e.trajectory for e in events if isinstance(e, Finished)] == list(stop.trajectories)
    assert [list(t.held_out) for t in stop.trajectories] == [["counting"], ["counting"], [], []]


def test_ctrl_c_during_an_event_loses_no_scored_draft() -> None:
    def impatient(event: Event) -> None:
        if isinstance(event, DraftScored):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        drive(Toy(), CountingCritic(match), tasks(3), best_of_n, BestOfN(), on_event=impatient)
    assert [(t.stopped, len(t.drafts)) for t in caught.value.trajectories] == [("interrupted", 1)] * 3


def test_an_interrupted_search_resumes_to_the_same_end() -> None:
    whole = drive(Toy(), CountingCritic(match), tasks(3), milr, PRESETS["paper"], budget=6)
    with pytest.raises(Interrupted) as caught:
        drive(InterruptedToy(at=4), CountingCritic(match), tasks(3), milr, PRESETS["paper"], budget=6)
    record = {(t.task.id, t.seed_index): t.drafts for t in caught.value.trajectories}
    again = drive(Toy(), CountingCritic(match), tasks(3), milr, PRESETS["paper"], budget=6, resume=record)
    assert [[d.drawn.image_tokens for d in t.drafts] for t in again] == [
        [d.drawn.image_tokens for d in t.drafts] for t in whole
    ]


# --- Streams ------------------------------------------------------------------------------------------------


def test_streams_are_those_of_all_time() -> None:
    # A change here would silently change every result. The first value is coreutils' answer to
    # printf '["draft", 0, "0", 0, 0]' | b2sum -l 64, the second numpy's default_rng of that with "search".
    assert draft_stream(0, "0", 0, 0) == 0x845911B8A20521D6
    assert float(search_rng(0, "0", 0).random()) == 0.5760684833739675


def test_streams_differ_in_every_part() -> None:
    streams = {
        draft_stream(seed, task, index, number)
        for seed in (0, 1, 11)
        for task in ("", "0", "1", "11", "ü\ud800")
        for index in (0, 1, 11)
        for number in (0, 1, 11)
    }
    assert len(streams) == 3 * 5 * 3 * 3
    assert all(0 <= stream < 2**64 for stream in streams)


def test_a_draft_changed_on_record_keeps_its_recorded_score() -> None:
    (whole,) = drive(Toy(), CountingCritic(match), tasks(), milr, PRESETS["paper"], budget=3)
    first = replace(whole.drafts[0], score=Score(0.125))
    (again,) = drive(
        Toy(), CountingCritic(match), tasks(), milr, PRESETS["paper"], budget=3, resume={("0", 0): [first]}
    )
    assert again.drafts[0].reward == 0.125
    assert [d.drawn.latents for d in again.drafts] == [None] * 3, "kept drafts carry no latents: they are gigabytes"


# --- Critics that could not be asked ------------------------------------------------------------------------


OUTAGE = Score(None, reason="no connection", outage=True)


def lost(drafts: Sequence[Draft], *numbers: int) -> list[Draft]:
    """Drafts as they stand on record where the critic could not be asked for some of them."""
    return [replace(draft, score=OUTAGE) if draft.number in numbers else draft for draft in drafts]


@pytest.mark.parametrize("numbers", [(0,), (2,), (3,), (0, 1, 2, 3)])
def test_drafts_on_record_that_no_critic_has_judged_are_judged_and_not_drawn(numbers: tuple[int, ...]) -> None:
    (whole,) = drive(Toy(), CountingCritic(match), tasks(), best_of_n, BestOfN(), budget=6)
    backbone, critic, told = Toy(), CountingCritic(match), list[Event]()
    (again,) = drive(
        backbone, critic, tasks(), best_of_n, BestOfN(), budget=6,
        resume={("0", 0): lost(whole.drafts[:4], *numbers)}, on_event=told.append,
    )  # fmt: skip
    assert again == whole
    assert (len(backbone.orders), critic.calls) == (2, 2 + len(numbers))
    scored = [event for event in told if isinstance(event, DraftScored)]
    assert [event.draft.number for event in scored if event.recorded] == [n for n in range(4) if n not in numbers]
    assert [event.draft.number for event in scored] == list(range(6))


def test_a_search_that_looks_at_its_rewards_may_go_another_way_once_they_are_there() -> None:
    """Its drafts on record were asked for without the verdict that is there now."""
    critic = CountingCritic(lambda tokens, task: None if critic.calls == 1 else match(tokens, task))
    (cut,) = drive(Toy(), critic, tasks(), milr, PRESETS["paper"], budget=4)
    record = {("0", 0): lost(cut.drafts, 0)}
    (again,) = drive(Toy(), CountingCritic(match), tasks(), milr, PRESETS["paper"], budget=4, resume=record)
    (whole,) = drive(Toy(), CountingCritic(match), tasks(), milr, PRESETS["paper"], budget=4)
    assert [d.reward for d in again.drafts] == [d.reward for d in whole.drafts]
    assert [d.ask for d in again.drafts] == [d.ask for d in whole.drafts]


def test_a_critic_whose_trouble_ends_the_run_costs_no_picture() -> None:
    def answer(tokens: tuple[int, ...], task: Task) -> float:
        if critic.calls > 5:
            raise UserError("The judge refused the key; see to it.")
        return match(tokens, task)

    critic, told = CountingCritic(answer), list[Event]()
    with pytest.raises(UserError, match="refused the key"):
        drive(Toy(), critic, tasks(3), best_of_n, BestOfN(), budget=3, on_event=told.append)
    drafts = [(event.task.id, event.draft) for event in told if isinstance(event, DraftScored)]
    assert [(task, draft.number) for task, draft in drafts] == [(task, number) for number in (0, 1) for task in "012"]
    assert [draft.score.outage for _, draft in drafts] == [False] * 3 + [True] * 3
    assert type(told[-1]).__name__ == "RoundEnded"  # so they are on disk
    record = {(task, 0): [draft for other, draft in drafts if other == task] for task in "012"}
    backbone = Toy()
    again = drive(backbone, CountingCritic(match), tasks(3), best_of_n, BestOfN(), budget=3, resume=record)
    assert len(backbone.orders) == 3
    assert again == drive(Toy(), CountingCritic(match), tasks(3), best_of_n, BestOfN(), budget=3)


def test_a_search_that_lacks_a_held_out_verdict_is_neither_drawn_nor_judged_again() -> None:
    held_out = [CountingCritic(noise, name="known"), CountingCritic(noise, name="lost")]
    (whole,) = drive(Toy(), CountingCritic(match), tasks(), milr, PRESETS["official"], budget=4, held_out=held_out)
    for critic in held_out:
        critic.calls = 0
    backbone, climbed = Toy(), CountingCritic(match)
    job = Job(tasks()[0], 0, whole.drafts, Ended(whole.best, whole.stopped, ("a note",), judged=("known",)))
    (again,) = drive_jobs(backbone, climbed, iter([job]), milr, PRESETS["official"], budget=4, held_out=held_out)
    assert (len(backbone.orders), climbed.calls, held_out[0].calls) == (0, 0, 0)
    assert held_out[1].calls == 1 + (whole.best != 0)
    assert list(again.held_out) == list(again.held_out_first) == ["lost"]
    assert again.held_out["lost"] == whole.held_out["lost"]
    assert (again.drafts, again.best, again.stopped, again.notes) == (
        whole.drafts, whole.best, whole.stopped, ("a note",),
    )  # fmt: skip


def test_the_model_hears_of_the_best_draft_and_of_the_last_ones_and_of_no_other_prompt() -> None:
    """What it may guess from: however large the budget, a few drafts of this prompt."""
    toy = Toy()
    told: dict[str, list[Any]] = {}
    draw = toy.draw

    def watched(orders: Any) -> Any:
        for order in orders:
            told.setdefault(order.prompt, []).append(order.earlier)
        return draw(orders)

    toy.draw = watched  # type: ignore[method-assign]
    found = drive(toy, CountingCritic(match), tasks(2), best_of_n, BestOfN(text="sampled"), budget=30, threshold=9)
    for trajectory in found:
        for number, earlier in enumerate(told[trajectory.task.prompt]):
            drafts = trajectory.drafts[:number]
            best = max(drafts, key=lambda draft: (draft.reward, -draft.number), default=None)
            last = [draft.drawn.image_tokens for draft in drafts[:-16:-1]]
            first = [best.drawn.image_tokens] if best is not None else []
            assert [one.image_tokens for one in earlier] == [*first, *last]
            assert len(earlier) <= 16
