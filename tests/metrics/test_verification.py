"""Pairs, ROC, EER and TAR at FAR: against plain loops, scikit-learn and Gaussian scores with known rates."""

import math
import warnings
from statistics import NormalDist
from unittest import mock

import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cssoftmax.metrics import _products, equal_error_rate, pair_scores, roc, true_accept_rate, verify_all_pairs
from cssoftmax.metrics import verification as module

seeds = st.integers(0, 2**31)


def problem(seed, n=30, d=4, c=4):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(c, (n,), generator=g)
    return torch.randn(c, d, generator=g)[y] + torch.randn(n, d, generator=g), y


def gaussian(n, seed=0, gap=2.0):
    """Scores N(gap, 1) of same pairs and N(0, 1) of different ones: EER = Phi(-gap / 2)."""
    g = torch.Generator().manual_seed(seed)
    same = torch.arange(2 * n) < n
    return torch.randn(2 * n, generator=g, dtype=torch.float64) + gap * same, same


def trials(scores, same):
    return sorted(zip(scores.tolist(), same.tolist(), strict=True))


@pytest.mark.parametrize("n", [2, 3, 10, 31])
def test_all_pairs_come_once_each(n, monkeypatch):
    monkeypatch.setattr(module, "ROWS", (3, 7))
    x, y = problem(n, n)
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    expected = [(float(unit[i] @ unit[j]), bool(y[i] == y[j])) for i in range(n) for j in range(i)]
    got = trials(*pair_scores(x, y))
    assert len(got) == n * (n - 1) // 2
    for (score, same), (expected_score, expected_same) in zip(got, sorted(expected), strict=True):
        assert score == pytest.approx(expected_score, abs=1e-12) and same == expected_same


@given(seed=seeds)
def test_turning_scaling_and_reordering_leave_the_same_trials(seed):
    x, y = problem(seed)
    g = torch.Generator().manual_seed(seed + 1)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64)).Q
    order = torch.randperm(30, generator=g)
    scale = torch.exp(5 * torch.randn(30, 1, generator=g, dtype=torch.float64))
    before = trials(*pair_scores(x, y))
    after = trials(*pair_scores((scale * x.double() @ turn)[order], y[order], seed=5))
    for (a, same_a), (b, same_b) in zip(before, after, strict=True):
        assert a == pytest.approx(b, abs=1e-9) and same_a == same_b


@pytest.mark.parametrize("max_pairs", [1, 29, 100, 434])
def test_a_sample_has_different_pairs_of_the_data_and_as_many_as_asked(max_pairs):
    x, y = problem(0)
    everything = {round(score, 9): same for score, same in zip(*(t.tolist() for t in pair_scores(x, y)), strict=True)}
    assert len(everything) == 435  # no two alike, so that a score tells its pair
    scores, same = pair_scores(x, y, max_pairs=max_pairs, seed=3)
    assert len({round(score, 9) for score in scores.tolist()}) == max_pairs
    assert all(everything[round(score, 9)] == pair for score, pair in zip(scores.tolist(), same.tolist(), strict=True))


def test_every_pair_is_as_likely_and_the_seed_decides():
    x, y = problem(1, n=6)
    seen = {}
    for seed in range(600):
        for score in pair_scores(x, y, max_pairs=5, seed=seed)[0].tolist():
            seen[round(score, 9)] = seen.get(round(score, 9), 0) + 1
    assert len(seen) == 15
    assert all(140 < count < 260 for count in seen.values())  # 200 expected, standard deviation 11.5
    assert torch.equal(pair_scores(x, y, max_pairs=5, seed=1)[0], pair_scores(x, y, max_pairs=5, seed=1)[0])


def test_a_sample_of_sorted_data_keeps_the_ratio_of_same_to_different():
    y = torch.arange(10).repeat_interleave(100)
    x = torch.nn.functional.one_hot(y, 10).float()
    _, same = pair_scores(x, y, max_pairs=50_000)
    assert same.double().mean().item() == pytest.approx(99 / 999, abs=0.006)


def test_roc_is_that_of_scikit_learn_with_every_threshold():
    scores, same = gaussian(50)
    scores = scores.round(decimals=1)
    far, tar, threshold = roc(scores, same)
    assert len(threshold) == len(scores.unique()) + 1
    assert float(torch.trapezoid(tar, far)) == pytest.approx(sklearn.metrics.roc_auc_score(same, scores))
    for f, t, h in zip(far.tolist(), tar.tolist(), threshold.tolist(), strict=True):
        accepted = scores >= h
        assert f == pytest.approx((accepted & ~same).sum().item() / 50)
        assert t == pytest.approx((accepted & same).sum().item() / 50)


@pytest.mark.parametrize("gap", [0.0, 1.0, 3.0])
def test_gaussian_scores_have_the_known_error_rate(gap):
    assert equal_error_rate(*gaussian(100_000, gap=gap)) == pytest.approx(NormalDist().cdf(-gap / 2), abs=0.005)


@pytest.mark.parametrize("far", [0.1, 0.01])
def test_gaussian_scores_have_the_known_true_accept_rate(far):
    expected = NormalDist().cdf(2 + NormalDist().inv_cdf(far))
    assert true_accept_rate(*gaussian(100_000), far=far) == pytest.approx(expected, abs=0.015)


def test_equal_scores_are_a_coin_toss():
    scores, same = pair_scores(torch.full((20, 3), 0.7), torch.arange(20) % 2)
    assert equal_error_rate(scores, same) == pytest.approx(0.5)
    assert true_accept_rate(scores, same, 0.5) == 0.0


@pytest.mark.parametrize(("sign", "expected"), [(1, 0.0), (-1, 1.0)])
def test_separated_scores_have_no_error_and_inverted_ones_nothing_else(sign, expected):
    scores, same = sign * torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert equal_error_rate(scores, same) == expected


def test_the_error_rate_is_interpolated():
    # FAR, FRR: (0, 1/2) above, then (1, 0) at one threshold for all the rest; the line crosses at 1/3.
    scores, same = torch.tensor([3.0, 1.0, 1.0]), torch.tensor([True, True, False])
    assert equal_error_rate(scores, same) == pytest.approx(1 / 3)


def test_true_accept_rate_takes_the_best_threshold_within_the_limit():
    scores = torch.arange(20, 0, -1).double()  # every same pair followed by a different one
    same = torch.arange(20) % 2 == 0
    rates = [true_accept_rate(scores, same, far) for far in (0.0, 0.0999, 0.1, 0.25, 0.3, 1.0)]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.4, 1.0])


@given(seed=seeds)
def test_rates_know_only_the_order_of_the_scores(seed):
    scores, same = gaussian(40, seed)
    for function in (equal_error_rate, lambda a, b: true_accept_rate(a, b, 0.1)):
        assert function(scores, same) == pytest.approx(function(torch.sigmoid(scores / 4) - 7, same))
    assert equal_error_rate(scores, same) == pytest.approx(equal_error_rate(-scores, ~same))


@pytest.mark.parametrize("kind", [True, False])
def test_without_pairs_of_either_kind_rates_are_nan(kind):
    scores, same = torch.rand(5), torch.full((5,), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        far, tar, _ = roc(scores, same)
        assert math.isnan(equal_error_rate(scores, same)) and math.isnan(true_accept_rate(scores, same, 0.1))
    assert far.isnan().all() == kind and tar.isnan().all() == (not kind)


def test_zero_embeddings_score_zero():
    scores, _ = pair_scores(torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]), torch.tensor([0, 0, 1]))
    assert scores.tolist() == [0.0, 0.0, 0.0]


def test_what_does_not_fit_is_refused_in_one_line():
    x, y = problem(0)
    cases = [
        (lambda: pair_scores(x[:1], y[:1]), ValueError, "two samples"),
        (lambda: pair_scores(x, y[:-1]), ValueError, "target: expected shape"),
        (lambda: pair_scores(x * math.nan, y), ValueError, "NaN"),
        (lambda: pair_scores(x, y, max_pairs=0), ValueError, "max_pairs"),
        (lambda: pair_scores(x, y, max_pairs=1e6), TypeError, "max_pairs"),
        (lambda: true_accept_rate(torch.rand(2), torch.tensor([True, False]), 1.5), ValueError, "far"),
    ]
    for function in (roc, equal_error_rate, lambda a, b: true_accept_rate(a, b, 0.1)):
        cases += [
            (lambda f=function: f(torch.rand(0), torch.rand(0) > 0), ValueError, "at least one pair"),
            (lambda f=function: f(torch.rand(3), torch.rand(2) > 0), ValueError, "same shape"),
            (lambda f=function: f(torch.tensor([math.nan]), torch.tensor([True])), ValueError, "NaN"),
            (lambda f=function: f(torch.rand(3), torch.ones(3)), TypeError, "bool"),
            (lambda f=function: f(torch.ones(3, dtype=torch.int), torch.rand(3) > 0), TypeError, "floating-point"),
            (lambda f=function: f([0.5], torch.tensor([True])), TypeError, "expected a tensor"),
        ]
    for call, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@settings(max_examples=30)
@given(
    seed=seeds,
    side=st.sampled_from([5, 64, 1024]),
    few=st.sampled_from([0, 1]),
    classes=st.sampled_from([1, 2, 7, 120]),
    size=st.sampled_from([4, 1024, 3000]),
    spread=st.sampled_from([1.0, 1e-2, 1e-5, 1e-9]),  # down to what float32 cannot tell
)
def test_all_pairs_at_once_or_in_blocks_are_the_same_trials(seed, side, few, classes, size, spread):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (120,), generator=g)
    x = torch.randn(classes, size, generator=g).double()[y]
    x += spread * torch.randn(120, size, generator=g, dtype=torch.float64)
    x[:30] = x[0]  # pairs with equal scores, same and different
    scores, same = pair_scores(x, y)
    fars, told = (0, 1e-3, 0.1, 1), []
    with mock.patch.object(_products, "SIDE", side), mock.patch.object(_products, "FEW", few):
        found = verify_all_pairs(x, y, fars, lambda done, total: told.append((done, total)))
    scores = (scores * module.STEPS).round()  # as the blocks have them: rounding neither parts nor joins equal ones
    assert found.equal_error_rate == pytest.approx(equal_error_rate(scores, same), abs=1e-12, nan_ok=True)
    expected = [true_accept_rate(scores, same, far) for far in fars]
    assert list(found.true_accept_rates) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert (found.same_pairs, found.different_pairs) == (int(same.sum()), int((~same).sum()))
    assert told[-1][0] == told[-1][1] or found.same_pairs * found.different_pairs == 0


def test_rates_of_all_pairs_need_pairs_and_rates():
    with pytest.raises(ValueError, match="embeddings: expected at least two samples"):
        verify_all_pairs(torch.eye(1), torch.tensor([0]))
    with pytest.raises(ValueError, match="fars: expected rates from 0 to 1, got 2"):
        verify_all_pairs(torch.eye(2), torch.tensor([0, 1]), [2])
