"""Intervals and tests for counts of successes. Exact where exact is cheap; plain Python throughout."""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # the normal quantile of 97.5 %


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share (Wilson 1927): sound near 0 and 1, where the usual one is not."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials")
    share = successes / trials
    centre = share + Z95**2 / (2 * trials)
    spread = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    scale = 1 + Z95**2 / trials
    low = (centre - spread) / scale if successes > 0 else 0.0  # exactly, without rounding errors
    high = (centre + spread) / scale if successes < trials else 1.0
    return low, high


def sign_test(won: int, lost: int) -> float:
    """Two-sided exact sign test (McNemar's exact test): the p-value of `won` against `lost` if both were a coin."""
    decided = won + lost
    tail = sum(math.comb(decided, count) for count in range(min(won, lost) + 1))
    return float(min(1.0, 2 * tail / 2**decided))


def paired_difference(won: int, lost: int, pairs: int) -> tuple[float, float, float]:
    """Difference of two shares measured on the same tasks, with its 95 % interval.

    The estimate is (won - lost) / pairs; the interval is Agresti and Min's (2005): Wald with half a pair added to
    each cell, which keeps its level where few pairs differ.
    """
    if won < 0 or lost < 0 or won + lost > pairs or pairs < 1:
        raise ValueError(f"{won} won and {lost} lost of {pairs} pairs")
    n, b, c = pairs + 2, won + 0.5, lost + 0.5
    centre = (b - c) / n
    half = Z95 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return (won - lost) / pairs, max(-1.0, centre - half), min(1.0, centre + half)
