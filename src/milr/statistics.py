"""Intervals and tests for counts of successes. Exact where exact is cheap; plain Python throughout."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # the normal quantile of 97.5 %


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share (Wilson 1927): sound near 0 and 1, where the usual one is not."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials")
    low, high = _score_interval(successes / trials, trials)
    return low if successes > 0 else 0.0, high if successes < trials else 1.0  # exactly, without rounding errors


def _score_interval(share: float, trials: float) -> tuple[float, float]:
    scale = 1 + Z95**2 / trials
    centre = share + Z95**2 / (2 * trials)
    spread = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    return (centre - spread) / scale, (centre + spread) / scale


def sign_test(won: int, lost: int) -> float:
    """Two-sided exact sign test (McNemar's exact test): the p-value of `won` against `lost` if both were a coin."""
    decided = won + lost
    tail = sum(math.comb(decided, count) for count in range(min(won, lost) + 1))
    return float(min(1.0, 2 * tail / 2**decided))


def clustered_share(shares: Sequence[float], seeds: int) -> tuple[float, float, float]:
    """A share over prompts of which each was tried `seeds` times, with its 95 % interval: (share, low, high).

    `shares` are the prompts' own shares. The interval is Wilson's with the effective number of trials p (1 - p) / v,
    v being the variance of the mean over prompts (Korn and Graubard 1998); with one seed it is the plain one.
    """
    prompts = len(shares)
    share = sum(shares) / prompts
    successes, trials = round(sum(shares) * seeds), prompts * seeds
    if seeds == 1 or successes in (0, trials):
        # All alike: nothing says that the seeds of a prompt are independent, so prompts count, not searches.
        low, high = wilson(round(share * prompts), prompts)
        return share, low, high
    variance = sum((s - share) ** 2 for s in shares) / (prompts - 1) / prompts if prompts > 1 else 0.0
    effective = min(trials, share * (1 - share) / variance) if variance > 0 else prompts
    return share, *_score_interval(share, effective)


def paired_means(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean of differences in [-1, 1], one a prompt, with its 95 % interval: (mean, low, high).

    For differences of two successes the interval is Agresti and Min's (2005): Wald with half a pair added to each
    cell (so two pairs more, one unit of variance), which keeps its level where few pairs differ.
    """
    n = len(differences) + 2
    centre = sum(differences) / n
    half = Z95 * math.sqrt((sum(d * d for d in differences) + 1) / n - centre**2) / math.sqrt(n)
    return sum(differences) / len(differences), max(-1.0, centre - half), min(1.0, centre + half)
