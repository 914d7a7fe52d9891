import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milr.statistics import clustered_share, paired_means, sign_test, wilson


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


def test_paired_difference_by_hand():  # b = 23.5, c = 5.5, n = 402
    estimate, low, high = paired_difference(23, 5, 400)
    half = 1.959963984540054 * math.sqrt(29 - 18**2 / 402) / 402
    assert estimate == pytest.approx(18 / 400)
    assert (low, high) == pytest.approx((18 / 402 - half, 18 / 402 + half))


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_intervals_hold_their_estimate_and_mirror(won, lost, same):
    pairs = won + lost + same
    if not pairs:
        return
    estimate, low, high = paired_difference(won, lost, pairs)
    assert -1 <= low <= high <= 1
    mirrored = paired_difference(lost, won, pairs)
    assert mirrored == pytest.approx((-estimate, -high, -low))
    low, high = wilson(won, pairs)
    assert 0 <= low <= won / pairs <= high <= 1


def test_the_paired_interval_keeps_its_level():
    """Exact coverage by enumeration (no simulation): 60 pairs, three pairs of true probabilities."""
    for p_won, p_lost in ((0.1, 0.05), (0.2, 0.2), (0.05, 0.01)):
        covered = 0.0
        for won in range(61):
            for lost in range(61 - won):
                same = 60 - won - lost
                weight = math.exp(
                    math.lgamma(61) - math.lgamma(won + 1) - math.lgamma(lost + 1) - math.lgamma(same + 1)
                    + won * math.log(p_won) + lost * math.log(p_lost) + same * math.log(1 - p_won - p_lost)
                )  # fmt: skip
                _, low, high = paired_difference(won, lost, 60)
                covered += weight * (low <= p_won - p_lost <= high)
        assert 0.93 <= covered <= 0.99


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
