"""Neighbour: keeps the best picture, keeps the first text, and draws near."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from toy import CountingCritic, Toy, match, tasks

from milr.backbones.policies import text_policy
from milr.drafts import Forced, Sample
from milr.searches.driver import drive
from milr.searches.neighbour import Neighbour, neighbour


def run(judge: Any, budget: int = 12, **settings: Any) -> Any:
    (found,) = drive(
        Toy(), CountingCritic(judge), tasks(), neighbour, Neighbour(**settings), budget=budget, threshold=9
    )
    return found


def test_each_draft_is_near_the_best_so_far_and_has_the_first_text() -> None:
    found = run(match, step=0.3)
    best = found.drafts[0]
    for draft in found.drafts[1:]:
        assert draft.ask.note["of_draft"] == best.number
        assert isinstance(draft.ask.image, Forced)
        assert draft.ask.image.tokens == best.drawn.image_tokens
        assert draft.ask.image.free
        kept = set(range(len(best.drawn.image_tokens))) - draft.ask.image.free
        assert all(draft.drawn.image_tokens[at] == best.drawn.image_tokens[at] for at in kept)
        assert draft.drawn.text_tokens == found.drafts[0].drawn.text_tokens
        if draft.reward >= best.reward:
            best = draft
    assert best.number > 0, "something was better than the first"
    assert found.best_draft.reward == best.reward


def test_a_larger_step_changes_more() -> None:
    def freed(step: float) -> float:
        return float(np.mean([len(draft.ask.image.free) for draft in run(match, budget=30, step=step).drafts[1:]]))

    assert 1 <= freed(0.01) < freed(0.3) < freed(0.9)


def test_of_a_round_all_are_near_the_same_draft() -> None:
    found = run(match, width=3, budget=10)
    of = [draft.ask.note["of_draft"] for draft in found.drafts[1:]]
    assert [len(set(of[start : start + 3])) for start in (0, 3, 6)] == [1, 1, 1]


def test_where_the_first_draft_has_no_score_whole_pictures_are_drawn_until_one_has() -> None:
    calls = iter(range(99))
    found = run(lambda tokens, task: None if next(calls) < 3 else 0.5, budget=6)
    assert [isinstance(draft.ask.image, Sample) for draft in found.drafts] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("step", [0.01, 0.5, 1.0])
def test_near_a_text_is_a_beginning_of_it(step: float) -> None:
    policy = text_policy(Toy())
    (found,) = drive(Toy(), CountingCritic(match), tasks(), neighbour, Neighbour(), budget=1, threshold=9)
    draft = found.drafts[0]
    lengths = []
    for seed in range(50):
        choice = policy.near(draft, step, np.random.default_rng(seed), Sample())
        assert choice.tokens == policy.drew(draft)[: len(choice.tokens)]
        lengths.append(len(choice.tokens))
    assert (max(lengths) == 0) == (step == 1.0)
