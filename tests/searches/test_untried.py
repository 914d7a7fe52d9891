"""Sampling without replacement, against the distribution that it must have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import END, CountingCritic, Toy, match, tasks

from milr.searches import best_of_n
from milr.searches.driver import drive
from milr.searches.untried import Untried

LETTERS, LENGTH = 3, 3


def table(seed):
    """Logits of the next letter after every beginning."""
    generator = torch.Generator().manual_seed(seed)
    words = [word for length in range(LENGTH) for word in itertools.product(range(LETTERS), repeat=length)]
    return {word: torch.randn(LETTERS, generator=generator) for word in words}


def chance(model, word):
    return float(np.prod([torch.softmax(model[word[:i]].double(), -1)[token] for i, token in enumerate(word)]))


def write_on(model, words, rng):
    while len(words) < LENGTH:
        chances = torch.softmax(model[words].double(), -1).numpy()
        words = (*words, int(rng.choice(LETTERS, p=chances / chances.sum())))
    return words


def use(untried, model, word):
    untried.use(word, torch.stack([model[word[:i]] for i in range(len(word))]))


@settings(deadline=None)
@given(seed=st.integers(0, 2**31))
def test_every_word_comes_once_and_then_none_is_left(seed):
    model, rng, untried = table(seed), np.random.default_rng(seed), Untried()
    seen = [write_on(model, (), rng)]
    use(untried, model, seen[0])
    while (words := untried.draw(rng)) is not None:
        seen.append(write_on(model, words, rng))
        use(untried, model, seen[-1])
    assert len(seen) == len(set(seen))
    # Those that are left weigh next to nothing; all that weigh something came.
    assert {word for word in itertools.product(range(LETTERS), repeat=LENGTH) if chance(model, word) > 1e-6} <= set(
        seen
    )


def test_the_next_word_has_the_models_chances_among_the_unused():
    model = table(5)
    used = [(0, 1, 2), (0, 1, 0), (2, 0, 0)]
    untried = Untried()
    for word in used:
        use(untried, model, word)
    words = [word for word in itertools.product(range(LETTERS), repeat=LENGTH) if word not in used]
    expected = np.array([chance(model, word) for word in words])
    expected /= expected.sum()
    rng, draws = np.random.default_rng(0), 4000
    drawn = [write_on(model, untried.draw(rng), rng) for _ in range(draws)]
    found = np.array([drawn.count(word) for word in words]) / draws
    assert not set(drawn) & set(used)
    assert np.abs(found - expected).max() < 5 * 0.5 / draws**0.5  # five standard errors at most


def test_a_used_beginning_bars_all_that_follows_it():
    model, untried, rng = table(1), Untried(), np.random.default_rng(1)
    use(untried, model, (0,))
    use(untried, model, (1, 2))
    use(untried, model, (1, 2, 0))  # begins with a used one: nothing changes
    for _ in range(200):
        word = write_on(model, untried.draw(rng), rng)
        assert word[0] != 0
        assert word[:2] != (1, 2)
    use(untried, model, (1,))  # and a shorter one bars what was left of the longer
    assert {write_on(model, untried.draw(rng), rng)[0] for _ in range(50)} == {2}
    use(untried, model, (2,))
    assert untried.draw(rng) is None


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0])
def test_best_of_n_draws_no_plan_twice(ratio):
    settings = best_of_n.BestOfN(text="distinct", text_ratio=ratio)
    found = drive(Toy(sharpness=1.0), CountingCritic(match), tasks(6), best_of_n.search, settings, budget=12, seed=3)
    for trajectory in found:
        texts = [draft.drawn.text_tokens for draft in trajectory.drafts]
        plans = [text[: int(np.ceil(ratio * len(text) - 1e-9))] for text in texts]
        for earlier, later in itertools.combinations(range(len(texts)), 2):
            if plans[earlier]:
                assert texts[later][: len(plans[earlier])] != plans[earlier]


def test_a_model_that_is_sure_of_its_text_begins_anew():
    toy = Toy(sharpness=60.0)
    settings = best_of_n.BestOfN(text="distinct", text_ratio=1.0)
    (found,) = drive(toy, CountingCritic(lambda tokens, task: 0.5), tasks(1), best_of_n.search, settings, budget=5)
    texts = [draft.drawn.text_tokens for draft in found.drafts]
    assert len(texts) == 5
    assert END not in set(texts[0])
