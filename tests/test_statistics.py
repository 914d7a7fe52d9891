import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milr.statistics import (
    clustered_share,
    holm,
    mean_interval,
    paired_means,
    prompts_needed,
    sign_flip_test,
    sign_test,
    wilson,
)


def paired_difference(won, lost, pairs):
    return paired_means([1.0] * won + [-1.0] * lost + [0.0] * (pairs - won - lost))


def test_wilson_golden():
    # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_sign_test_golden():  # 2 * (1 + 15) / 2^15 by hand, and the tie
    assert sign_test(14, 1) == pytest.approx(2 * 16 / 2**15)
    assert sign_test(0, 0) == sign_test(3, 3) == 1.0
    assert sign_test(23, 5) == sign_test(5, 23) == pytest.approx(0.0009, abs=5e-5)  # the search prototype's own


def test_few_differences_by_hand():  # b = 12.5, c = 5.5, n = 402
    estimate, low, high = paired_difference(12, 5, 400)
    half = 1.959963984540054 * math.sqrt(18 - 7**2 / 402) / 402
    assert estimate == pytest.approx(7 / 400)
    assert (low, high) == pytest.approx((7 / 402 - half, 7 / 402 + half))


def test_many_differences_agree_with_the_normal_interval():
    estimate, low, high = paired_difference(60, 30, 400)
    half = 1.959963984540054 * math.sqrt((90 / 400 - (30 / 400) ** 2) / 400)
    assert (estimate, low, high) == pytest.approx((0.075, 0.075 - half, 0.075 + half), abs=0.004)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_intervals_hold_their_estimate_and_mirror(won, lost, same):
    pairs = won + lost + same
    if not pairs:
        return
    estimate, low, high = paired_difference(won, lost, pairs)
    assert -1 <= low <= high <= 1
    mirrored = paired_difference(lost, won, pairs)
    assert mirrored == pytest.approx((-estimate, -high, -low), abs=3 / pairs)
    low, high = wilson(won, pairs)
    assert 0 <= low <= won / pairs <= high <= 1


def coverage(simulate, truth, times=1000):
    rng = np.random.default_rng(1)
    intervals = [paired_means(simulate(rng)) for _ in range(times)]
    return sum(low <= truth <= high for _, low, high in intervals) / times


@pytest.mark.parametrize(
    ("gain", "prompts"),
    [(0.05, 300), pytest.param(0.0, 300, marks=pytest.mark.slow), pytest.param(0.1, 150, marks=pytest.mark.slow)],
)
def test_the_paired_interval_keeps_its_level(gain, prompts):
    """1,000 data sets of two searches with 4 seeds a prompt; prompts differ in how hard they are, so seeds cluster."""

    def simulate(rng):
        ease = rng.beta(1.5, 0.7, prompts)  # the same for both: their successes are correlated
        first = rng.binomial(4, ease * (1 - gain), prompts)
        second = rng.binomial(4, ease, prompts)
        return (second - first) / 4

    truth = gain * 1.5 / 2.2
    assert 0.93 <= coverage(simulate, truth) <= 0.97


def test_with_few_differences_the_interval_is_wide_enough():
    """One seed, 60 prompts, few of which differ: never below its level (it is Agresti and Min's, a little wide)."""
    for p_won, p_lost in ((0.1, 0.05), (0.05, 0.01), (0.02, 0.02)):

        def simulate(rng, p=(p_won, p_lost)):
            return rng.choice([1.0, -1.0, 0.0], 60, p=[*p, 1 - sum(p)])

        assert 0.93 <= coverage(simulate, p_won - p_lost) <= 1


def test_the_mean_of_scores_by_hand():  # sd .1633, n = 4, t = 3.1824
    half = 3.18245 * 0.163299 / 2
    assert mean_interval([0.3, 0.5, 0.5, 0.7]) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert mean_interval([0.9]) == (0.9, 0.0, 1.0)  # one prompt says nothing; never infinite, which JSON cannot say
    assert mean_interval([1.0, 0.5])[2] == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x .01, 2 x .03, then no less
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_prompts_needed_by_hand():  # sd 1, mean .1: (1.96 + .8416)^2 / .01
    values = [1.1, -0.9] * 50
    assert prompts_needed(values) == math.ceil(2.8015852**2 / 0.01)
    assert prompts_needed([0.0, 0.0]) is None


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match=f"{successes} successes of {trials}"):
        wilson(successes, trials)


def test_a_share_with_one_seed_is_wilsons():
    share, low, high = clustered_share([1.0] * 30 + [0.0] * 10, 1)
    assert (share, low, high) == (0.75, *wilson(30, 40))


def test_seeds_that_always_agree_say_no_more_than_one():
    prompts = [1.0] * 300 + [0.0] * 100
    assert clustered_share(prompts, 2) == pytest.approx(clustered_share(prompts, 1), abs=2e-4)


def test_seeds_that_disagree_say_more():
    mixed = [1.0] * 100 + [0.5] * 200 + [0.0] * 100  # as independent coins would fall: 800 trials
    assert clustered_share(mixed, 2) == pytest.approx((0.5, *wilson(400, 800)), abs=2e-4)
    assert clustered_share([1.0] * 50, 4) == (1.0, *wilson(50, 50))


def test_sign_flips_by_hand():
    assert sign_flip_test([0.2, 0.2, -0.05]) == 0.5  # |sum| .35: +++ and ++- of the four, and their mirrors
    assert sign_flip_test([0.1, 0.1, 0.1, 0.0]) == 0.25  # all three alike: 2 of 8, and no difference counts for nothing
    assert sign_flip_test([0.0, 0.0]) == sign_flip_test([]) == 1.0
    assert sign_flip_test([0.1 + 0.2, -0.3]) == 1.0  # as large as it can be small, in spite of rounding


def test_sign_flips_of_wins_and_losses_are_mcnemars_test():
    for won, lost in ((6, 0), (9, 3), (4, 4)):
        assert sign_flip_test([1.0] * won + [-1.0] * lost) == pytest.approx(sign_test(won, lost))
    assert sign_flip_test([1.0] * 40 + [-1.0] * 20) == pytest.approx(sign_test(40, 20), abs=0.004)  # flips at random


def test_the_paired_interval_of_means_and_its_test_keep_their_level():
    """500 data sets of 60 prompts without a difference, with skewed scores: 5 % are called one, give or take."""
    rng = np.random.default_rng(3)
    sets = [rng.beta(0.5, 1.5, 60) - rng.beta(0.5, 1.5, 60) for _ in range(500)]
    outside = sum(not low <= 0 <= high for _, low, high in (mean_interval(one, least=-1.0) for one in sets))
    called = sum(sign_flip_test(one) < 0.05 for one in sets[:200])
    assert 0.03 <= outside / 500 <= 0.075
    assert 0.01 <= called / 200 <= 0.10


def test_prompts_needed_where_many_are_compared():  # level .05 / 5: z = 2.5758
    values = [1.1, -0.9] * 50
    assert prompts_needed(values, comparisons=5) == math.ceil((2.5758293 + 0.8416212) ** 2 / 0.01)
