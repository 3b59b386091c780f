"""Is a difference between two ways of training real, or noise? Paired by seed.

The unit is the seed: one training from fresh random weights in a fresh random order, once with each loss. The question
is whether the difference in the mean would be there again with other seeds, on the same data. (Whether it would be
there on other test samples is another question; McNemar's test and a bootstrap over samples answer that one, for the
one pair of networks they are given, and cannot see how far the next seed would land from it.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Numbers = Sequence[float] | Array

# Up to so many seeds all n ** n resamples are taken, each as often as it occurs; above, this many drawn ones.
ENUMERATED, DRAWN = 7, 20_000


@dataclass(frozen=True)
class PairedDifference:
    """What seeds say about the difference of two means.

    Attributes:
        mean: of the differences.
        std: of the differences (n - 1); nan with one seed.
        low, high: the bootstrap interval; nan with one seed.
        p: of the paired test; nan with one seed.
        n: number of pairs.
    """

    mean: float
    std: float
    low: float
    high: float
    p: float
    n: int


def paired_difference(values: Sequence[float], baseline: Sequence[float], level: float = 0.95) -> PairedDifference:
    """Mean difference ``values - baseline``, its bootstrap interval and the p of its paired test.

    Args:
        values, baseline: (n,) one number a seed, the same seeds in the same order; finite.
        level: of the interval, in (0, 1).

    Raises:
        ValueError: lengths that differ, no seed, values that are not finite, a level out of range.

    >>> difference = paired_difference([0.93, 0.94, 0.95], [0.90, 0.92, 0.91])
    >>> round(difference.mean, 4), round(difference.low, 4), round(difference.high, 4), round(difference.p, 3)
    (0.03, 0.02, 0.04, 0.035)
    """
    if len(values) != len(baseline):
        raise ValueError(f"values, baseline: expected the same seeds in both, got {len(values)} and {len(baseline)}")
    d = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    low, high = bootstrap_interval(d, level)
    std = float(d.std(ddof=1)) if len(d) > 1 else math.nan
    return PairedDifference(float(d.mean()), std, low, high, paired_test(d), len(d))


def bootstrap_interval(differences: Numbers, level: float = 0.95) -> tuple[float, float]:
    """The expanded percentile bootstrap interval of the mean.

    Resampling n numbers gives means that vary too little, by the factor sqrt((n - 1) / n), and knows nothing of how
    uncertain the spread itself is; the percentiles are therefore taken further out, where a normal distribution would
    give the t interval: at Phi(-sqrt(n / (n - 1)) t), with t the quantile for n - 1 degrees of freedom. No percentile
    lies outside the numbers themselves: below about five the interval is all but their range, and the test says more.

    Source: T. Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69(4), 2015,
    section 3.3.

    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    import scipy.stats

    d = _checked(differences)
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is outside (0, 1)")
    n = len(d)
    if n == 1:
        return math.nan, math.nan
    if np.ptp(d) == 0:
        return float(d[0]), float(d[0])
    tail = scipy.stats.norm.cdf(math.sqrt(n / (n - 1)) * scipy.stats.t.ppf((1 - level) / 2, n - 1))
    low, high = np.quantile(_resampled_means(d), [tail, 1 - tail])
    return float(low), float(high)


def paired_test(differences: Numbers) -> float:
    """Two-sided p of the paired t-test: differences as large, were the true mean zero.

    A rank test has no chance with few seeds: Wilcoxon's smallest p at n = 5 is 0.0625. The t-test pays for fewer seeds
    with assuming that the differences are about normal. Where they do not vary at all (a measure in steps of one sample
    may do that by chance) it would claim certainty; then p is that of the sign test, 2 ** (1 - n), or 1 where they are
    all zero. nan with one seed, which says nothing about noise.

    >>> round(paired_test([1.0, 2.0, 3.0]), 4)
    0.0742
    >>> paired_test([0.1, 0.1, 0.1]), paired_test([0.0, 0.0])
    (0.25, 1.0)
    """
    import scipy.stats

    d = _checked(differences)
    if len(d) == 1:
        return math.nan
    if np.ptp(d) <= 1e-12 * np.abs(d).max():
        return 1.0 if not d.any() else 2.0 ** (1 - len(d))
    return float(scipy.stats.ttest_1samp(d, 0.0).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number, so that the chance of any false claim among them stays at the level.

    The smallest is multiplied by their number m, the next by m - 1, and so on; none falls below one before it, none
    passes 1. nan stays nan and does not count.

    Source: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6(2),
    1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [math.nan] * len(p)
    order = sorted((index for index, value in enumerate(p) if not math.isnan(value)), key=lambda index: p[index])
    highest = 0.0
    for rank, index in enumerate(order):
        if not 0 <= p[index] <= 1:
            raise ValueError(f"p: {p[index]} is outside [0, 1]")
        highest = max(highest, min(1.0, (len(order) - rank) * p[index]))
        corrected[index] = highest
    return corrected


def _checked(differences: Numbers) -> Array:
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or len(d) == 0:
        raise ValueError(f"differences: expected one number a seed, at least one, got shape {d.shape}")
    if not np.isfinite(d).all():
        raise ValueError("differences: holds NaN or infinite values")
    return d


def _resampled_means(d: Array) -> Array:
    n = len(d)
    if n > ENUMERATED:
        return np.asarray(np.random.default_rng(0).choice(d, (DRAWN, n)).mean(1))
    rows = np.array(list(combinations_with_replacement(range(n), n)))
    counts = (rows[:, :, None] == np.arange(n)).sum(1)
    factorial = np.array([math.factorial(k) for k in range(n + 1)])
    ways = factorial[n] // factorial[counts].prod(1)
    return np.asarray(np.repeat(d[rows].mean(1), ways))
