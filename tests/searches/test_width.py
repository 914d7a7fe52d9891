"""Several drafts a round: the same accounting, whatever the width, the budget, and the moment of a cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from toy import CountingCritic, Toy, match, noise, tasks

from milr.backbones.policies import ImageTokens
from milr.drafts import Ask, Draft, Drawn, Forced, Order, Sample, Score, Task, Trajectory, UserError
from milr.searches import best_of_n, latent, repair
from milr.searches.base import Problem, Search
from milr.searches.driver import DraftScored, Event, Interrupted, RoundEnded, drive
from milr.searches.latent import Milr
from milr.searches.repair import Repair

WIDE = {
    "sampled": (best_of_n.best_of_n, best_of_n.PRESETS["sampled-text"]),
    "greedy": (best_of_n.best_of_n, best_of_n.PRESETS["greedy-text"]),
    "distinct": (best_of_n.best_of_n, best_of_n.PRESETS["distinct"]),
    "paper": (latent.milr, latent.PRESETS["paper"]),
    "repaired": (latent.milr, latent.PRESETS["repaired"]),
    "official": (latent.milr, latent.PRESETS["official"]),
    "repair": (repair.repair, repair.PRESETS["default"]),
}
widths = st.integers(1, 9)
which = st.sampled_from(list(WIDE))
COIN = Score(None, reason="no connection", outage=True)


def run(name: str, width: int, **options: Any) -> list[Trajectory]:
    search, settings = WIDE[name]
    options = {"backbone": Toy(), "critic": CountingCritic(match), "tasks": tasks(2), **options}
    backbone, critic, asked = (options.pop(key) for key in ("backbone", "critic", "tasks"))
    return drive(backbone, critic, asked, search, replace(settings, width=width), **options)


def gist(trajectory: Trajectory) -> list[Any]:
    """All of the drafts but their pictures, notes included."""
    return [
        (d.number, d.ask, dict(d.ask.note), d.stream, d.drawn.text_tokens, d.drawn.image_tokens, d.score)
        for d in trajectory.drafts
    ]


def rounds(events: Sequence[Event], task: str = "0") -> list[list[Draft]]:
    """The drafts of one search that were told between the ends of two rounds."""
    found: list[list[Draft]] = [[]]
    for event in events:
        if isinstance(event, DraftScored) and event.task.id == task:
            found[-1].append(event.draft)
        elif isinstance(event, RoundEnded):
            found.append([])
    return [of for of in found if of]


@hypothesis_settings(deadline=None, max_examples=25)
@given(name=which, width=widths, budget=st.integers(1, 20), seed=st.integers(0, 99), threshold=st.floats(0.4, 1))
def test_a_round_costs_a_call_a_draft_and_no_search_more_than_its_budget(
    name: str, width: int, budget: int, seed: int, threshold: float
) -> None:
    critic, backbone, told = CountingCritic(match), Toy(seed), list[Event]()
    (found,) = run(
        name, width, critic=critic, backbone=backbone, budget=budget, seed=seed, threshold=threshold, tasks=tasks(),
        on_event=told.append,
    )  # fmt: skip
    count = len(found.drafts)
    assert count == critic.calls == len(backbone.orders) == found.cost.reward_calls <= budget
    assert [draft.number for draft in found.drafts] == list(range(count))
    assert len({draft.stream for draft in found.drafts}) == count
    sizes = [len(of) for of in rounds(told)]
    assert sizes[0] == 1  # if it passes, nothing else is drawn
    if name != "distinct":  # whose round is shorter where too few plans are left
        assert all(size == min(width, budget - 1 - width * i) for i, size in enumerate(sizes[1:]))
    last = [draft.reward or 0.0 for draft in found.drafts[-sizes[-1] :]]
    before = [draft.reward or 0.0 for draft in found.drafts[: -sizes[-1]]]
    assert (max(last) >= threshold - 1e-9) == (found.stopped == "threshold")
    assert not any(reward >= threshold for reward in before)
    if found.stopped == "threshold" and name != "official":
        rewards = [draft.reward for draft in found.drafts]
        assert found.best == rewards.index(max(rewards))  # type: ignore[type-var]
    if found.stopped == "budget":
        assert count == budget


@hypothesis_settings(deadline=None, max_examples=25)
@given(name=which, width=widths, budget=st.integers(1, 14), seed=st.integers(0, 99))
def test_the_first_drafts_of_a_longer_search_are_those_of_a_smaller_budget(
    name: str, width: int, budget: int, seed: int
) -> None:
    """Also where a round is cut: reports read success after k calls from longer searches."""
    whole = run(name, width, budget=15, seed=seed, backbone=Toy(seed))
    short = run(name, width, budget=budget, seed=seed, backbone=Toy(seed))
    for longer, shorter in zip(whole, short, strict=True):
        assert gist(shorter) == gist(longer)[:budget]


@hypothesis_settings(deadline=None, max_examples=25)
@given(name=which, width=widths, done=st.integers(0, 14), seed=st.integers(0, 99), lost=st.sets(st.integers(0, 14)))
def test_a_search_that_was_cut_anywhere_ends_as_if_it_had_not_been(
    name: str, width: int, done: int, seed: int, lost: set[int]
) -> None:
    """In the middle of a round, and with verdicts missing: what is on record is not drawn again."""
    whole = run(name, width, budget=13, seed=seed, backbone=Toy(seed))
    record = {
        (t.task.id, 0): [replace(d, score=COIN) if d.number in lost else d for d in t.drafts[:done]] for t in whole
    }
    critic, told = CountingCritic(match), list[Event]()
    again = run(
        name, width, budget=13, seed=seed, backbone=Toy(seed), critic=critic, resume=record, on_event=told.append
    )
    assert [gist(t) for t in again] == [gist(t) for t in whole]
    assert [(t.best, t.stopped, t.notes, t.cost) for t in again] == [
        (t.best, t.stopped, t.notes, t.cost) for t in whole
    ]
    kept = sum(len(drafts) for drafts in record.values())
    missing = sum(draft.score.outage for drafts in record.values() for draft in drafts)
    assert critic.calls == sum(len(t.drafts) for t in whole) - kept + missing
    assert sum(event.recorded for event in told if isinstance(event, DraftScored)) == kept - missing


class Stopped(Toy):
    """Ctrl-C arrives in the middle of a round: when so many drafts are drawn."""

    def __init__(self, seed: int, after: int) -> None:
        super().__init__(seed)
        self.after = after

    def _draw(self, order: Order) -> Drawn:
        self.after -= 1
        if self.after < 0:
            raise KeyboardInterrupt
        return super()._draw(order)


@hypothesis_settings(deadline=None, max_examples=20)
@given(name=which, width=widths, after=st.integers(0, 25), at_event=st.booleans())
def test_ctrl_c_in_a_round_loses_no_scored_draft_and_the_search_goes_on(
    name: str, width: int, after: int, at_event: bool
) -> None:
    whole = run(name, width, budget=12)
    told: list[Draft] = []

    def hear(event: Event) -> None:
        if isinstance(event, DraftScored):
            told.append(event.draft)
            if at_event and len(told) > after:
                raise KeyboardInterrupt

    try:
        cut = run(name, width, budget=12, backbone=Stopped(0, 99 if at_event else after), on_event=hear)
    except Interrupted as stop:
        cut = list(stop.trajectories)
    assert sum(len(t.drafts) for t in cut) >= len(told)
    record = {(t.task.id, 0): t.drafts for t in cut}
    assert all(draft.drawn.latents is None for t in cut for draft in t.drafts)
    assert [gist(t) for t in run(name, width, budget=12, resume=record)] == [gist(t) for t in whole]


def test_an_outage_of_some_drafts_of_a_round_is_told_and_ends_nothing() -> None:
    critic = CountingCritic(lambda tokens, task: None if critic.calls in (3, 5) else match(tokens, task))

    class Lost(CountingCritic):
        def score(self, images: Any, tasks: Any) -> list[Score]:
            return [COIN if one.value is None else one for one in super().score(images, tasks)]

    critic = Lost(critic.judge)
    (found,) = run("repair", 4, critic=critic, budget=9, tasks=tasks())
    assert [draft.score.outage for draft in found.drafts] == [i in (2, 4) for i in range(9)]
    (again,) = run("repair", 4, budget=9, tasks=tasks(), resume={("0", 0): found.drafts})
    assert [draft.drawn.image_tokens for draft in again.drafts[:5]] == [
        draft.drawn.image_tokens for draft in found.drafts[:5]
    ]
    assert not any(draft.score.outage for draft in again.drafts)


def test_a_critic_that_ends_the_run_in_a_round_costs_no_picture() -> None:
    def answer(tokens: tuple[int, ...], task: Task) -> float:
        if critic.calls > 6:
            raise UserError("The judge refused the key; see to it.")
        return match(tokens, task)

    critic, told = CountingCritic(answer), list[Event]()
    with pytest.raises(UserError, match="refused the key"):
        run("sampled", 4, critic=critic, budget=9, on_event=told.append)
    drafts = [(event.task.id, event.draft) for event in told if isinstance(event, DraftScored)]
    assert [(task, draft.number) for task, draft in drafts] == [("0", 0), ("1", 0)] + [
        (task, number) for task in "01" for number in (1, 2, 3, 4)
    ]
    assert isinstance(told[-1], RoundEnded)
    record = {(task, 0): [draft for other, draft in drafts if other == task] for task in "01"}
    backbone = Toy()
    again = run("sampled", 4, budget=9, backbone=backbone, resume=record)
    assert len(backbone.orders) == 2 * 4
    assert again == run("sampled", 4, budget=9)


def test_abstentions_are_counted_at_the_end_of_a_round() -> None:
    critic = CountingCritic(lambda tokens, task: None)
    (found,) = run("sampled", 6, critic=critic, tasks=tasks())
    assert (len(found.drafts), found.stopped) == (13, "abstained")
    assert found.notes[0] == "The critic abstained 13 times in a row, so the search stopped: no idea"


def test_the_best_of_a_round_is_the_earliest_of_highest_reward_and_events_tell_it_as_it_grew() -> None:
    values = iter([0.2, 0.7, 0.5, 0.7, 1.0, 1.0, 0.1])
    told: list[Event] = []
    critic = CountingCritic(lambda tokens, task: next(values))
    (found,) = run("sampled", 3, critic=critic, budget=9, tasks=tasks(), on_event=told.append)
    assert (found.best, found.stopped, len(found.drafts)) == (4, "threshold", 7)
    assert [(e.best, e.best_reward) for e in told if isinstance(e, DraftScored)] == [
        (0, 0.2), (1, 0.7), (1, 0.7), (1, 0.7), (4, 1.0), (4, 1.0), (4, 1.0),
    ]  # fmt: skip


# --- The protocol ---------------------------------------------------------------------------------------------


def test_a_search_may_mix_single_asks_and_rounds() -> None:
    received: list[Any] = []

    def mixed(problem: Problem, settings: None) -> Search:
        received.append((yield Ask(image=Sample())))
        received.append((yield [Ask(image=Sample()), Ask(image=Sample())]))
        received.append((yield (Ask(image=Sample()),)))
        received.append((yield [Ask(image=Sample())] * 5))

    (found,) = drive(Toy(), CountingCritic(noise), tasks(), mixed, None, budget=6)
    shapes = [[d.number for d in one] if isinstance(one, list) else one.number for one in received]
    assert shapes == [0, [1, 2], [3], [4, 5]]  # the last one is cut to what the budget has left
    assert (len(found.drafts), found.stopped) == (6, "budget")


def test_a_round_without_drafts_is_a_bug() -> None:
    def silent(problem: Problem, settings: None) -> Search:
        yield Ask()
        yield []

    with pytest.raises(RuntimeError, match="without drafts"):
        drive(Toy(), CountingCritic(noise), tasks(), silent, None)


# --- What the searches make of it -----------------------------------------------------------------------------


def test_no_plan_of_an_earlier_round_is_drawn_and_no_two_texts_of_a_round_begin_alike() -> None:
    """(Two that begin apart may still end so soon that their plans, a share of the text, are the same.)"""
    ratio = WIDE["distinct"][1].text_ratio
    for seed in range(12):
        told: list[Event] = []
        run("distinct", 5, backbone=Toy(seed), budget=21, tasks=tasks(), threshold=9, on_event=told.append)
        used: set[tuple[int, ...]] = set()
        for of in rounds(told):
            if of[0].number and not isinstance(of[0].ask.text, Forced):
                used.clear()  # none was left: it begins anew
                continue
            plans = [d.drawn.text_tokens[: math.ceil(ratio * len(d.drawn.text_tokens))] for d in of]
            assert not used & set(plans) - {()}  # an empty text has no latents, so nothing is known of its choices
            used.update(plans)
            asked = [draft.ask.text.tokens for draft in of if isinstance(draft.ask.text, Forced)]
            assert not any(a is not b and a[: len(b)] == b for a in asked for b in asked)


@pytest.mark.parametrize("name", ["sampled", "greedy", "repair", "repaired"])
def test_the_drafts_of_a_round_differ(name: str) -> None:
    (found,) = run(name, 8, budget=17, tasks=tasks(), threshold=9)
    drawn = [(draft.drawn.text_tokens, draft.drawn.image_tokens) for draft in found.drafts]
    assert len(set(drawn)) > 14


@hypothesis_settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 999), remember=st.booleans(), width=st.integers(2, 9))
def test_repair_makes_no_change_twice_in_a_round(seed: int, remember: bool, width: int) -> None:
    settings = Repair(width=width, remember=remember, text_ratio=0.5)
    told: list[Event] = []
    drive(
        Toy(seed), CountingCritic(match), tasks(), repair.repair, settings, seed=seed, budget=20, on_event=told.append
    )
    for of in rounds(told):
        changes = [
            (d.ask.note["of_draft"], d.ask.note["position"], str(d.ask.text), str(d.ask.image))
            for d in of
            if d.ask.note["move"] in ("text", "image")
        ]
        assert len(set(changes)) == len(changes)


def test_a_step_of_several_samples_is_the_mean_of_their_steps() -> None:
    """With plain gradients: the first step of Adam is the same for any gradient's size, so look at the gradient."""
    import torch

    start = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    samples, advantages = [(1, 2, 3), (4, 4, 1), (0, 2)], [0.5, -0.25, 1.0]

    def logits(values: torch.Tensor) -> torch.Tensor:
        return values @ Toy(0).heads[0].T

    searched = latent.SearchedLatents(start, ImageTokens(logits), 0.1)
    expected = sum(a * searched.score(tokens) for a, tokens in zip(advantages, samples, strict=True)) / 3
    searched.move(advantages, samples)
    assert searched.values.grad is not None
    torch.testing.assert_close(searched.values.grad, -expected)


def test_milr_moves_once_a_round() -> None:
    walks: list[Any] = []
    (found,) = drive(
        Toy(), CountingCritic(match), tasks(), lambda problem, settings: latent.milr(problem, settings, walks.append),
        Milr(width=4), budget=13, threshold=9,
    )  # fmt: skip
    assert len(walks) == 1 + 3
    moved = [draft.number for draft in found.drafts if "text_gradient" in draft.ask.note]
    assert moved == [1, 5, 9]
    assert all(draft.ask.note["text_searched"] > 0 for draft in found.drafts[1:])


def test_the_last_picture_of_the_authors_code_is_the_one_that_solved() -> None:
    values = iter([0.2, 0.95, 0.1, 0.1])
    critic = CountingCritic(lambda tokens, task: next(values))
    (found,) = run("official", 3, critic=critic, budget=9, tasks=tasks())
    assert (found.best, found.stopped, len(found.drafts)) == (1, "search", 4)


# --- What judging and searching cost --------------------------------------------------------------------------


def test_seconds_of_the_critic_and_of_the_search_are_charged_to_the_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the critic (a second a picture) and the search (ten a round) move."""
    now = [0.0]

    class Slow(CountingCritic):
        def score(self, images: Any, tasks: Any) -> list[Score]:
            now[0] += len(images)
            return super().score(images, tasks)

    def thinking(problem: Problem, settings: None) -> Search:
        draft = yield Ask(image=Sample())
        while True:
            now[0] += 10
            draft = yield [replace(draft.ask if isinstance(draft, Draft) else draft[0].ask)] * 4

    monkeypatch.setattr("milr.searches.driver.clock", lambda: now[0])
    found = drive(Toy(), Slow(match), tasks(2), thinking, None, budget=7, threshold=9)
    for one in found:
        costs = [draft.drawn.cost for draft in one.drafts]
        assert [cost.critic_seconds for cost in costs] == [1] * 7
        assert [cost.search_seconds for cost in costs] == [10, *[2.5] * 4, *[5] * 2]
        assert (one.cost.critic_seconds, one.cost.search_seconds, one.cost.all_seconds) == (7, 30, 37)
    record = {(one.task.id, 0): one.drafts[:3] for one in found}
    again = drive(Toy(), Slow(match), tasks(2), thinking, None, budget=7, threshold=9, resume=record)
    for one in again:  # what was paid for is not charged again
        costs = [draft.drawn.cost for draft in one.drafts]
        assert [cost.critic_seconds for cost in costs] == [1] * 7
        assert [cost.search_seconds for cost in costs] == [10, *[2.5] * 4, *[5] * 2]
