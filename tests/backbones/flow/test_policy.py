"""Noise as a policy: z = 0 is the model's own noise, and however far z goes noise stays noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from milr.backbones.flow.noise import coarse_to_fine, gaussian
from milr.backbones.flow.policy import FARTHEST, Coefficients, regions
from milr.drafts import Ask, Cost, Draft, Drawn, Forced, Latents, Noise, Repaint, Sample, Score, UserError

POLICY = Coefficients(channels=3, grid=4)


def draft_of(choice: object, keys: tuple[int, ...] = tuple(range(16))) -> Draft:
    latents = Latents(torch.zeros(0, 4), torch.ones(6))
    drawn = Drawn("", (1,), True, keys, Image.new("RGB", (8, 8)), latents, 1.0, Cost())
    return Draft(0, Ask(image=choice), 0, drawn, Score(0.5))  # type: ignore[arg-type]


def test_it_begins_with_the_models_own_noise() -> None:
    z = POLICY.latents(draft_of(Sample()).drawn)
    assert z.tolist() == [0.0] * 6
    values = np.array([POLICY.values(torch.zeros(48), "sampled", np.random.default_rng(seed)) for seed in range(400)])
    assert abs(values.mean()) < 4 / math.sqrt(values.size)
    assert abs(values.std() - 1) < 4 / math.sqrt(2 * values.size)


@pytest.mark.parametrize("length", [0.0, 0.5, 0.9])
def test_noise_stays_as_long_as_noise_is(length: float) -> None:
    z = torch.full((48,), length)
    squares = [np.square(POLICY.values(z, "sampled", np.random.default_rng(seed))).mean() for seed in range(400)]
    assert abs(np.mean(squares) - 1) < 0.05


def test_a_step_is_a_share_of_the_way_and_never_leaves_the_shell() -> None:
    z = torch.zeros(4, requires_grad=True)
    optimizer = POLICY.optimizer(z, 0.03)
    z.grad = -POLICY.score(z, (1.0, -1.0, 2.0, 0.0, 5.0))  # optimizers descend
    optimizer.step()
    torch.testing.assert_close(z.detach(), 0.4 * torch.tensor([1.0, -1.0, 2.0, 0.0]))
    z.grad = torch.full((4,), -100.0)
    optimizer.step()
    assert float(z.detach().norm()) == pytest.approx(FARTHEST * 2)


def test_what_a_draft_drew_is_what_its_keys_name_or_what_was_given() -> None:
    keys = tuple(range(16))
    noise = coarse_to_fine(gaussian(keys, 3, 4))
    assert POLICY.drew(draft_of(Sample())) == tuple(map(float, noise))
    assert POLICY.drew(draft_of(Noise((0.5, 0.25)))) == (0.5, 0.25)


def test_fresh_noise_for_each_region_is_as_likely_as_the_old() -> None:
    drawn = draft_of(Sample()).drawn
    found = POLICY.others(drawn, {0, 1, 5, 15})
    assert sorted(set(found.positions.tolist())) == [0, 15]
    assert set(found.beliefs.tolist()) == {0.5}
    assert len(found.tokens) == len(set(zip(found.positions.tolist(), found.tokens.tolist(), strict=True)))
    assert len(POLICY.others(drawn).positions) == 0, "where nobody says what is wrong"


def test_regions_are_cells_that_touch() -> None:
    assert regions({0, 5}, 4) == [{0, 5}], "corners touch"
    assert regions({0, 3, 12, 15}, 4) == [{0}, {3}, {12}, {15}]
    assert regions({0, 1, 4, 11, 15}, 4) == [{0, 1, 4}, {11, 15}]
    assert regions((), 4) == []


def test_a_change_names_the_picture_that_it_keeps() -> None:
    keys = tuple(range(100, 116))
    whole = Forced(keys, free=frozenset())
    plain = POLICY.change(draft_of(Sample(), keys), 5, 0, frozenset({6}), Sample())
    assert plain == Repaint(whole, frozenset({5, 6}))
    again = POLICY.change(draft_of(plain, keys), 2, 0, frozenset(), Sample())
    assert again == Repaint(Repaint(whole, frozenset({5, 6}), tokens=keys), frozenset({2}))
    assert POLICY.kept(draft_of(Noise((1.0,)), keys)) == Noise((1.0,), tokens=keys)
    assert POLICY.kept(draft_of(Forced(whole.tokens, Sample(), frozenset({3})), keys)) == Repaint(
        whole, frozenset({3}), tokens=keys
    )


def test_what_noise_has_not_is_said() -> None:
    with pytest.raises(UserError, match="no most probable noise"):
        POLICY.values(torch.zeros(3), "arg-max", np.random.default_rng(0))
    with pytest.raises(UserError, match="no temperature"):
        POLICY.change(draft_of(Sample()), 5, 0, frozenset(), Sample(0.5))
