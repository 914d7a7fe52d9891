"""What must hold for every search. The folder is the list: a new file is tested without being named here."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Sequence
from dataclasses import fields, replace
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from toy import END, VOCAB, CountingCritic, Toy, match, noise, tasks

import milr.searches
from milr.backbones.policies import whole_text
from milr.drafts import Draft, Drawn, Forced, Greedy, Order, Sample, Score, Task, Trajectory
from milr.searches.driver import drive

MODULES = [
    module
    for info in pkgutil.iter_modules(milr.searches.__path__)
    if hasattr(module := importlib.import_module(f"milr.searches.{info.name}"), "SUMMARY")
]
CASES = [(module, preset) for module in MODULES for preset in module.PRESETS]
every_search = pytest.mark.parametrize(
    ("module", "preset"), CASES, ids=[f"{module.NAME}-{preset}" for module, preset in CASES]
)


def search(module: ModuleType, preset: str, critic: CountingCritic, **options: object) -> list[Trajectory]:
    options = {"tasks": tasks(), "backbone": Toy(), **options}
    return drive(
        options.pop("backbone"),  # type: ignore[arg-type]
        critic,
        options.pop("tasks"),  # type: ignore[arg-type]
        module.search,
        module.PRESETS[preset],
        **options,  # type: ignore[arg-type]
    )


def gist(trajectory: Trajectory) -> list[tuple[object, ...]]:
    return [(d.number, d.ask, d.stream, d.drawn.text_tokens, d.drawn.image_tokens, d.score) for d in trajectory.drafts]


def test_the_folder_is_found() -> None:
    assert {"single", "best-of-n", "milr"} <= {module.NAME for module in MODULES}
    assert {"paper", "official", "text-only", "image-only"} <= {p for m, p in CASES if m.NAME == "milr"}


@every_search
@hypothesis_settings(deadline=None, max_examples=8)
@given(budget=st.integers(1, 12), seed=st.integers(0, 2**31), threshold=st.floats(0.3, 1))
def test_a_search_spends_its_budget_and_no_more(
    module: ModuleType, preset: str, budget: int, seed: int, threshold: float
) -> None:
    critic, backbone = CountingCritic(match), Toy()
    (trajectory,) = search(module, preset, critic, backbone=backbone, budget=budget, seed=seed, threshold=threshold)
    drafts = trajectory.drafts
    assert 1 <= len(drafts) <= budget
    assert critic.calls == len(drafts) == len(backbone.orders) == trajectory.cost.reward_calls
    assert [draft.number for draft in drafts] == list(range(len(drafts)))
    reached = [draft.reward is not None and draft.reward >= threshold for draft in drafts]
    assert not any(reached[:-1])  # it would have stopped
    if trajectory.stopped == "budget":
        assert len(drafts) == budget
    if trajectory.stopped == "threshold":
        assert reached[-1]
    if preset != "official" and (module.NAME != "repair" or trajectory.stopped == "threshold"):  # see choice.py
        rewards = [draft.reward for draft in drafts]
        assert trajectory.best == rewards.index(max(rewards))  # type: ignore[type-var]


@every_search
def test_same_seed_same_trajectory_whatever_runs_beside(module: ModuleType, preset: str) -> None:
    several = search(module, preset, CountingCritic(match), tasks=tasks(3), seeds=2, budget=6, seed=5)
    assert [(t.task.id, t.seed_index) for t in several] == [(i, k) for i in "012" for k in (0, 1)]
    alone = search(module, preset, CountingCritic(match), tasks=tasks(3)[1:2], budget=6, seed=5)
    narrow = search(module, preset, CountingCritic(match), tasks=tasks(3), seeds=2, budget=6, seed=5, batch=1)
    assert gist(several[2]) == gist(alone[0])
    assert [gist(t) for t in several] == [gist(t) for t in narrow]
    other = search(module, preset, CountingCritic(match), tasks=tasks(3)[1:2], budget=6, seed=6)
    assert gist(other[0]) != gist(alone[0])
    assert gist(several[2]) != gist(several[3])


@every_search
def test_all_searches_share_the_first_draft(module: ModuleType, preset: str) -> None:
    (trajectory,) = search(module, preset, CountingCritic(match), budget=1)
    first, ask = trajectory.drafts[0], trajectory.drafts[0].ask
    assert (ask.text, ask.image) == (Greedy(), Sample())
    from milr.searches import single

    (reference,) = search(single, "default", CountingCritic(match), budget=1)
    assert first.drawn.image_tokens == reference.drafts[0].drawn.image_tokens
    assert first.stream == reference.drafts[0].stream


@every_search
@pytest.mark.parametrize("done", [1, 3, 7])
def test_replay_from_recorded_drafts_asks_the_same(module: ModuleType, preset: str, done: int) -> None:
    whole = search(module, preset, CountingCritic(match), budget=7, tasks=tasks(2))
    record: dict[tuple[str, int], list[Draft]] = {}
    for trajectory in whole:
        record[trajectory.task.id, 0] = list(trajectory.drafts[:done])
    critic, backbone = CountingCritic(match), Toy()
    again = search(module, preset, critic, backbone=backbone, budget=7, tasks=tasks(2), resume=record)
    assert [gist(t) for t in again] == [gist(t) for t in whole]
    assert [(t.best, t.stopped, t.notes) for t in again] == [(t.best, t.stopped, t.notes) for t in whole]
    assert [t.drafts[-1].ask.note for t in again] == [t.drafts[-1].ask.note for t in whole]
    assert critic.calls == sum(max(0, len(t.drafts) - done) for t in whole)  # nothing is scored twice
    redrawn = sum(bool(d.ask.text_ratio or d.ask.image_ratio) for t in whole for d in t.drafts[:done])
    assert len(backbone.orders) == critic.calls + redrawn


class Rounding(Toy):
    """Draws one other token as soon as it draws for several, as a GPU in bfloat16 may do in another batch; counts what
    it samples."""

    def __init__(self) -> None:
        super().__init__()
        self.sampled = 0

    def draw(self, orders: Sequence[Order]) -> list[Drawn]:
        found = []
        for order, drawn in zip(orders, super().draw(orders), strict=True):
            self.sampled += drawn.cost.decoded_tokens
            if len(orders) > 1 and not isinstance(order.ask.image, Forced):
                image = list(drawn.image_tokens)
                image[0] = (image[0] + 1) % VOCAB
                forced = replace(order.ask, image=Forced(tuple(image)), text=Forced(whole_text(drawn, END)))
                drawn = replace(self._draw(replace(order, ask=forced)), cost=drawn.cost)
            found.append(drawn)
        return found


@every_search
def test_nothing_on_record_is_drawn_again_though_the_model_would_draw_it_otherwise(
    module: ModuleType, preset: str
) -> None:
    """Recorded side by side, resumed alone: every sampled draft would have another first token now."""
    whole = search(module, preset, CountingCritic(match), backbone=Rounding(), budget=5, tasks=tasks(2))
    backbone, critic = Rounding(), CountingCritic(match)
    record = {(t.task.id, t.seed_index): t.drafts for t in whole}
    again = search(module, preset, critic, backbone=backbone, budget=5, tasks=tasks(2), batch=1, resume=record)
    assert [gist(t) for t in again] == [gist(t) for t in whole]
    assert [(t.best, t.stopped, t.notes, t.cost) for t in again] == [
        (t.best, t.stopped, t.notes, t.cost) for t in whole
    ]
    assert (backbone.sampled, critic.calls) == (0, 0)
    wanted = sum(bool(d.ask.text_ratio or d.ask.image_ratio) for t in whole for d in t.drafts)
    assert len(backbone.orders) == wanted  # one pass each, for the latents


@every_search
def test_a_model_that_does_not_take_tokens_as_they_are_draws_afresh_with_a_note(
    module: ModuleType, preset: str
) -> None:
    class Stubborn(Toy):
        def draw(self, orders: Sequence[Order]) -> list[Drawn]:
            return super().draw([replace(order, ask=asks.get(order.stream, order.ask)) for order in orders])

    (whole,) = search(module, preset, CountingCritic(match), budget=4)
    asks = {draft.stream: draft.ask for draft in whole.drafts}
    drafts = [replace(d, drawn=replace(d.drawn, image_tokens=(1,) * 9)) for d in whole.drafts]
    critic = CountingCritic(match)
    (again,) = search(module, preset, critic, backbone=Stubborn(), budget=4, resume={("0", 0): drafts})
    if whole.drafts[0].ask.text_ratio or whole.drafts[0].ask.image_ratio:  # only these meet the model
        assert gist(again) == gist(whole)
        assert critic.calls == len(whole.drafts)
        assert again.notes == (
            f"The model does not give back the tokens of draft 0 on record; it and the {len(drafts) - 1} drafts after "
            "it on record were drawn afresh.",
        )


@every_search
def test_a_perfect_first_draft_ends_the_search(module: ModuleType, preset: str) -> None:
    critic = CountingCritic(lambda tokens, task: 1.0)
    (trajectory,) = search(module, preset, critic)
    assert (critic.calls, trajectory.stopped, trajectory.best) == (1, "threshold", 0)


@every_search
def test_a_critic_of_pure_noise_is_survived(module: ModuleType, preset: str) -> None:
    for trajectory in search(module, preset, CountingCritic(noise), tasks=tasks(3), budget=15):
        assert all(math.isfinite(draft.reward or 0) for draft in trajectory.drafts)
        assert len(trajectory.drafts) == (1 if module.NAME == "single" else 15) or preset == "official"


@every_search
def test_a_critic_that_only_abstains_stops_the_search_after_ten(module: ModuleType, preset: str) -> None:
    critic = CountingCritic(lambda tokens, task: None)
    (trajectory,) = search(module, preset, critic)
    assert critic.calls == (1 if module.NAME == "single" else 10)
    assert trajectory.best == 0
    assert "could be scored" in trajectory.notes[-1]
    if module.NAME != "single":
        assert trajectory.stopped == "abstained"
        assert "no idea" in trajectory.notes[0]


@every_search
def test_now_and_then_no_score_is_no_harm(module: ModuleType, preset: str) -> None:
    def moody(tokens: tuple[int, ...], task: Task) -> float | None:
        return None if noise(tokens, task) < 0.4 else match(tokens, task)

    for trajectory in search(module, preset, CountingCritic(moody), tasks=tasks(4), budget=12):
        if module.NAME != "single" and trajectory.stopped != "search":
            assert len(trajectory.drafts) == 12
        scored = [draft.reward for draft in trajectory.drafts if draft.reward is not None]
        if scored and preset != "official" and (module.NAME != "repair" or trajectory.stopped == "threshold"):
            assert trajectory.best_draft.reward == max(scored)


@every_search
def test_forced_asks_are_honest(module: ModuleType, preset: str) -> None:
    """What a search forces is what the draft shows, and only the rest is charged."""
    for trajectory in search(module, preset, CountingCritic(match), tasks=tasks(3), budget=6):
        for draft in trajectory.drafts:
            text, image = draft.ask.text, draft.ask.image
            if isinstance(text, Forced):
                shown = (*draft.drawn.text_tokens, Toy().text_end())
                assert shown[: len(text.tokens)] == text.tokens
            if isinstance(image, Forced):
                kept = set(range(len(image.tokens))) - (image.free or frozenset())
                assert all(draft.drawn.image_tokens[i] == image.tokens[i] for i in kept)
                assert draft.drawn.cost.image_tokens == 9 - len(kept)


def test_a_text_cut_by_the_limit_is_kept_without_an_end() -> None:
    drafts = [search(MODULES[0], next(iter(MODULES[0].PRESETS)), CountingCritic(match), backbone=Toy(s), budget=1)[0]
              for s in range(30)]  # fmt: skip
    cut = [t.drafts[0].drawn for t in drafts if not t.drafts[0].drawn.text_ended]
    ended = [t.drafts[0].drawn for t in drafts if t.drafts[0].drawn.text_ended]
    assert cut
    assert ended
    assert all(whole_text(drawn, END) == drawn.text_tokens for drawn in cut)
    assert all(whole_text(drawn, END) == (*drawn.text_tokens, END) for drawn in ended)


@pytest.mark.parametrize("module", MODULES, ids=[module.NAME for module in MODULES])
def test_a_search_file_is_complete(module: ModuleType) -> None:
    assert module.NAME.lower() == module.NAME
    assert 10 < len(module.SUMMARY) < 110
    assert all(type(preset) is module.SETTINGS for preset in module.PRESETS.values())
    assert all(field.metadata["meaning"] for field in fields(module.SETTINGS))
    assert module.SETTINGS.__dataclass_params__.frozen
    assert Score(None).abstained
