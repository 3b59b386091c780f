"""Real or noise: the interval, the test and the correction, against scipy, closed forms and simulation."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cssoftmax.metrics import bootstrap_interval, holm, paired_difference, paired_test

numbers = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=8))
def test_the_test_is_the_paired_t_test_wherever_the_differences_vary(pairs):
    a, b = np.array(pairs).T
    if np.ptp(a - b) > 1e-9:
        assert paired_test(a - b) == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_differences_that_do_not_vary_are_as_likely_as_n_equal_throws_of_a_coin(n):
    assert paired_test([0.25] * n) == 2 * 0.5**n
    assert paired_test([0.0] * n) == 1


def test_one_seed_says_nothing_of_noise():
    d = paired_difference([0.9], [0.8])
    assert d.mean == pytest.approx(0.1) and d.n == 1
    assert all(math.isnan(x) for x in (d.std, d.low, d.high, d.p))


def test_few_seeds_need_a_difference_many_times_the_noise():
    # Closed form of Student's t with one degree of freedom: p = 1 - 2 atan(t) / pi.
    assert paired_test([2.0, 4.0]) == pytest.approx(1 - 2 * math.atan(3) / math.pi)
    assert paired_test([2.0, 4.0]) > 0.2
    assert paired_test([2.0, 3.0, 4.0]) < 0.05 < paired_test([1.0, 2.0, 4.0])


def test_all_resamples_are_taken_of_few_seeds():
    d = np.array([0.3, -0.1, 0.4, 0.05])
    means = [np.mean(sample) for sample in product(d, repeat=4)]
    tail = scipy.stats.norm.cdf(math.sqrt(4 / 3) * scipy.stats.t.ppf(0.1, 3))
    assert bootstrap_interval(d, 0.8) == pytest.approx(tuple(np.quantile(means, [tail, 1 - tail])))


def test_of_many_seeds_it_is_the_percentile_bootstrap_of_scipy():
    d = np.random.default_rng(0).exponential(size=300)
    expected = scipy.stats.bootstrap((d,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert bootstrap_interval(d) == pytest.approx((expected.low, expected.high), abs=0.01)


@given(st.lists(numbers, min_size=2, max_size=9), st.sampled_from([0.5, 0.9, 0.95]))
def test_the_interval_holds_the_mean_and_lies_within_the_seeds(d, level):
    low, high = bootstrap_interval(d, level)
    slack = 1e-9 * (1 + max(map(abs, d)))
    assert min(d) - slack <= low <= high <= max(d) + slack
    if level > 0.8:
        assert low - slack <= np.mean(d) <= high + slack
    assert bootstrap_interval(d, level) == (low, high)


def test_the_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for n, least in ((6, 0.89), (10, 0.92)):
        hits = sum(low <= 0 <= high for low, high in (bootstrap_interval(rng.normal(size=n)) for _ in range(250)))
        assert least < hits / 250 < 0.985, n


def test_holm_on_a_worked_example_and_on_its_ends():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == [0.2] and holm([]) == []
    assert holm([0.5, math.nan, 0.01])[::2] == [0.5, 0.02] and math.isnan(holm([0.5, math.nan, 0.01])[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_its_steps_reject(p, level):
    rejected = [False] * len(p)
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[index] > level / (len(p) - rank):
            break
        rejected[index] = True
    for corrected, raw, is_rejected in zip(holm(p), p, rejected, strict=True):
        assert corrected >= raw
        if abs(corrected - level) > 1e-12:
            assert (corrected < level) == is_rejected


def test_false_claims_among_many_losses_stay_rare():
    rng = np.random.default_rng(1)
    claims = 0
    for _ in range(250):
        baseline = rng.normal(size=5)
        claims += min(holm([paired_test(rng.normal(size=5) - baseline) for _ in range(6)])) < 0.05
    assert claims / 250 < 0.08


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: paired_difference([1.0], [1.0, 2.0]), "same seeds"),
        (lambda: paired_test([]), "at least one"),
        (lambda: paired_test([1.0, math.nan]), "NaN"),
        (lambda: bootstrap_interval([1.0, 2.0], 1.5), "level"),
        (lambda: holm([1.5]), "p: 1.5"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(call, words):
    with pytest.raises(ValueError, match=words):
        call()
