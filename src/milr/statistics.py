"""Intervals and tests for shares of successes and for mean scores, paired and clustered by prompt; scipy's wherever
scipy has them (and is quick enough)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

Z95 = float(stats.norm.ppf(0.975))
Z80 = float(stats.norm.ppf(0.8))
RESAMPLES = 5000
MANY = 20  # prompts that differ, from which on the bootstrap keeps its level
FLIPS = 20_000  # random sign flips; up to 2^EXACT all of them are tried
EXACT = 14


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share (Wilson 1927): sound near 0 and 1, where the usual one is not."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials")
    found = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _score_interval(share: float, trials: float) -> tuple[float, float]:
    """Wilson's, for a number of trials that is no whole one."""
    scale = 1 + Z95**2 / trials
    centre = share + Z95**2 / (2 * trials)
    spread = Z95 * math.sqrt(share * (1 - share) / trials + Z95**2 / (4 * trials**2))
    return (centre - spread) / scale, (centre + spread) / scale


def sign_test(won: int, lost: int) -> float:
    """Two-sided exact sign test (McNemar's exact test): the p-value of `won` against `lost` if both were a coin."""
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


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

    A prompt with several seeds counts once, with its mean: the clustered paired bootstrap (percentiles, fixed seed).
    Where fewer than MANY prompts differ, resampling knows too few values; there it is Agresti and Min's interval
    (2005): Wald with half a pair added to each cell (so two pairs more, one unit of variance).
    """
    values = np.asarray(differences, dtype=float)
    if np.count_nonzero(values) < MANY:
        n = len(values) + 2
        centre = float(values.sum()) / n
        half = Z95 * math.sqrt((float(values @ values) + 1) / n - centre**2) / math.sqrt(n)
        return float(values.mean()), max(-1.0, centre - half), min(1.0, centre + half)
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0), batch=500
    ).confidence_interval
    return float(values.mean()), float(found.low), float(found.high)


def auc(scores: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float | None:
    """The chance that a right one has the higher score than a wrong one (ties count half); None without both kinds."""
    good = int(right.sum())
    bad = len(right) - good
    if not good or not bad:
        return None
    ranks = stats.rankdata(scores)
    return float((ranks[right].sum() - good * (good + 1) / 2) / (good * bad))


def mean_interval(values: Sequence[float], least: float = 0.0) -> tuple[float, float, float]:
    """A mean over prompts of values in [`least`, 1] with its 95 % interval (Student's t): (mean, low, high). One prompt
    says nothing of the others. Differences of scores have -1 as their least."""
    found = np.asarray(values, dtype=float)
    mean = math.fsum(found) / len(found)
    if len(found) < 2:
        return mean, least, 1.0
    half = float(stats.t.ppf(0.975, len(found) - 1)) * float(found.std(ddof=1)) / math.sqrt(len(found))
    return mean, max(least, mean - half), min(1.0, mean + half)


def sign_flip_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean difference, one difference a prompt, if their signs were coins (Fisher's paired
    permutation test).

    It is the test for a mean as McNemar's is for a share: its statistic is the very difference that is told, so test
    and interval do not speak of different things, as Wilcoxon's ranks would (many small gains outvote a few large
    losses), and the sizes count, as in a sign test they do not. For differences of 1, 0 and -1 it is McNemar's exact
    test. All flips are tried where at most EXACT prompts differ, else FLIPS at random (fixed seed; scipy's takes 50
    times as long), the observed one among them.
    """
    values = np.asarray([value for value in differences if value != 0], dtype=float)
    plus: np.ndarray[Any, Any]
    count, total = len(values), abs(math.fsum(values))
    if not count:
        return 1.0
    as_large = total - 1e-9 * float(np.abs(values).sum())  # ties in spite of rounding
    if count <= EXACT:
        plus = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float((np.abs((2 * plus - 1) @ values) >= as_large).mean())
    rng, row, hits = np.random.default_rng(0), math.ceil(count / 8), 1
    for _ in range(0, FLIPS, 1000):
        bits = np.frombuffer(rng.bytes(1000 * row), dtype=np.uint8).reshape(1000, row)
        plus = np.unpackbits(bits, axis=1)[:, :count]
        hits += int((np.abs(2 * (plus @ values) - values.sum()) >= as_large).sum())
    return hits / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979) for looking at several tests: adjusted p-values, in the order given."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def prompts_needed(differences: Sequence[float], comparisons: int = 1) -> int | None:
    """About how many prompts would show a difference as large as this one, at 95 % with a power of 80 %, where it is
    the smallest p of so many comparisons that are corrected together; None where there is no difference at all."""
    values = np.asarray(differences, dtype=float)
    mean = float(values.mean())
    if mean == 0:
        return None
    level = float(stats.norm.ppf(1 - 0.025 / comparisons))
    return math.ceil(((level + Z80) * float(values.std()) / mean) ** 2)
