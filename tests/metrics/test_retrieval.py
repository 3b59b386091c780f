"""Retrieval and k-NN: against pytorch-metric-learning, scikit-learn and small cases by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.neighbors import KNeighborsClassifier

from cssoftmax.metrics import _products, approximate_leave_one_out, knn_accuracy, leave_one_out, map_at_r, recall_at_1
from cssoftmax.metrics import retrieval as module

seeds = st.integers(0, 2**31)


def problem(seed, n=50, d=5, c=6):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(c, (n,), generator=g)
    return torch.randn(c, d, generator=g)[y] + 0.7 * torch.randn(n, d, generator=g), y


def at(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], 1)


def changed(x, seed):
    """The embeddings turned as one and scaled each, and an order."""
    g = torch.Generator().manual_seed(seed + 1)
    n, d = x.shape
    turn = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    scale = torch.exp(5 * torch.randn(n, 1, generator=g, dtype=torch.float64))
    return scale * x.double() @ turn, torch.randperm(n, generator=g)


@pytest.mark.parametrize("side", [1, 7, 1024])
@pytest.mark.parametrize("seed", [0, 1])
def test_leave_one_out_is_that_of_pytorch_metric_learning(side, seed, monkeypatch):
    monkeypatch.setattr(_products, "SIDE", side)
    x, y = problem(seed, c=6 + 20 * seed)  # with 26 classes some have a single sample
    assert (y.unique(return_counts=True)[1] == 1).any() == (seed == 1)
    calculator = AccuracyCalculator(
        include=("mean_average_precision_at_r", "precision_at_1"),
        k="max_bin_count",
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    expected = calculator.get_accuracy(x, y)
    assert recall_at_1(x, y) == pytest.approx(expected["precision_at_1"])
    assert map_at_r(x, y) == pytest.approx(expected["mean_average_precision_at_r"])
    assert leave_one_out(x, y) == (recall_at_1(x, y), map_at_r(x, y))


def test_map_at_r_by_hand():
    # From 0 degrees, R = 2: the nearest are of class 0 (10), 1 (15): (1/1 + 0) / 2. From 10: 1 (15), 0 (0):
    # (0 + 1/2) / 2. From 40: 1 (15), 0 (10): (0 + 1/2) / 2. Class 1 has no others.
    x, y = at(0, 10, 15, 40), torch.tensor([0, 0, 1, 0])
    assert map_at_r(x, y) == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert recall_at_1(x, y) == pytest.approx(1 / 3)


def test_separated_classes_are_found_and_alternating_ones_are_not():
    assert leave_one_out(torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)) == (1.0, 1.0)
    assert recall_at_1(at(*range(0, 80, 10)), torch.arange(8) % 2) == 0.0


def test_collapsed_embeddings_come_out_at_chance_even_if_sorted():
    y = torch.arange(10).repeat_interleave(10)
    for x in (torch.full((100, 3), 0.3), torch.zeros(100, 3)):
        recall, average = leave_one_out(x, y)
        assert recall == pytest.approx(0.1) and average == pytest.approx(0.1)
        assert knn_accuracy(x, y, x, y) == pytest.approx(0.1)


@pytest.mark.parametrize("few", [0, 1])
@pytest.mark.parametrize(
    ("side", "held", "sample"), [(60, 2**22, (4096, 32)), (60, 1, (10, 0)), (29, 60 * 49, (1, 0)), (7, 300, (50, 1))]
)
def test_what_is_looked_at_at_a_time_changes_nothing(side, held, sample, few, monkeypatch):
    x, y = problem(3, n=200, c=4)
    x[50:90] = x[0]  # ties; and the sample of 10 takes them for typical
    expected, told = leave_one_out(x, y), []
    for place, name, value in (
        (_products, "SIDE", side),
        (_products, "FEW", few),
        (module, "HELD", held),
        (module, "FEW", 9),
        (module, "SAMPLE", sample),
    ):
        monkeypatch.setattr(place, name, value)
    assert leave_one_out(x, y, lambda done, total: told.append((done, total))) == pytest.approx(expected, rel=1e-14)
    assert knn_accuracy(x, y, x, y, 9) == knn_accuracy(x, y, x.flip(0), y.flip(0), 9)
    assert told[-1] == (200, 200) and len(told) >= 200 / side
    assert told == sorted(set(told))


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("spread", [1e-8, 1e-4, 1.0])  # below what float32 can tell, near it, above
def test_the_nearest_are_those_of_float64(spread, precision, monkeypatch):
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(50, 32, generator=g, dtype=torch.float64)
    x = centres.repeat(60, 1) + spread * torch.randn(3000, 32, generator=g, dtype=torch.float64)
    x /= x.norm(dim=1, keepdim=True)
    rows = torch.arange(0, 3000, 7)
    cosines = x[rows] @ x.T
    cosines[torch.arange(len(rows)), rows] = -1
    monkeypatch.setattr(module, "SAMPLE", (1000, 0))
    monkeypatch.setattr(_products, "SIDE", 100)
    exact, computed = module._above, []
    monkeypatch.setattr(module, "_above", lambda *a: computed.append(a[-1]) or exact(*a))
    torch.set_float32_matmul_precision(precision)
    try:
        found = module._nearest(x[rows], x, 9, rows)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert any(computed)
    # By cosine, in steps of 2^-40: what differs by less may change places.
    torch.testing.assert_close(cosines.gather(1, found), cosines.topk(9).values, rtol=0, atol=2.0**-39)
    assert all(len(set(line)) == 9 for line in found.tolist())


def test_approximate_search_says_how_much_it_found():
    pytest.importorskip("faiss")
    x, y = problem(0, n=2000, d=8, c=100)
    whole = approximate_leave_one_out(x, y, probes=10**6)
    assert whole.search_recall == 1.0
    assert whole[:2] == pytest.approx(leave_one_out(x, y), abs=1e-3)  # in float32 two neighbours may change places
    part = approximate_leave_one_out(x, y, probes=2)
    assert 0.2 < part.search_recall < 0.999 and part.recall_at_1 < whole.recall_at_1
    assert all(math.isnan(value) for value in approximate_leave_one_out(torch.eye(4), torch.arange(4)))


def test_samples_alone_in_their_class_have_nothing_to_find():
    assert all(math.isnan(value) for value in leave_one_out(torch.eye(4), torch.arange(4)))
    assert math.isnan(recall_at_1(torch.eye(1), torch.tensor([0])))


@settings(max_examples=15)
@given(seed=seeds)
def test_turning_scaling_and_reordering_change_nothing(seed):
    x, y = problem(seed)
    other, order = changed(x, seed)
    assert leave_one_out(other[order], y[order]) == pytest.approx(leave_one_out(x, y))
    queries, labels = problem(seed + 1, n=20)
    assert knn_accuracy(other[order], y[order], changed(queries, seed)[0], labels) == knn_accuracy(
        x, y, queries, labels
    )


@pytest.mark.parametrize("side", [1, 16, 1024])
@pytest.mark.parametrize(("k", "classes"), [(1, 6), (3, 2), (5, 2)])  # where votes cannot be even
def test_knn_is_that_of_scikit_learn(k, classes, side, monkeypatch):
    monkeypatch.setattr(_products, "SIDE", side)
    train, labels = problem(0, c=classes)
    x, y = problem(1, n=33, c=classes)
    expected = KNeighborsClassifier(k, metric="cosine").fit(train, labels).score(x, y)
    assert 0 < expected < 1
    assert knn_accuracy(train, labels, x, y, k) == pytest.approx(expected)


def test_of_even_votes_the_nearest_wins():
    train, labels = at(1, 2, 3, 4, 5), torch.tensor([9, 7, 5, 5, 7])  # one for 9, two each for 7 and 5
    for winner in (5, 7, 9):
        expected = float(winner == 7)
        assert knn_accuracy(train, labels, at(0), torch.tensor([winner]), k=5) == expected
    assert knn_accuracy(train, labels, at(0), torch.tensor([9]), k=2) == 1.0


@pytest.mark.parametrize("angles", [(10.0, -10.0), (-10.0, 10.0)])
def test_of_equally_near_samples_the_lower_index_is_nearer(angles):
    assert knn_accuracy(at(*angles), torch.tensor([0, 1]), at(0), torch.tensor([0]), k=1) == 1.0


def test_more_neighbours_than_there_are_count_as_all():
    train, labels = at(0, 50, 60), torch.tensor([0, 1, 1])
    assert knn_accuracy(train, labels, at(0), torch.tensor([1]), k=100) == 1.0


def test_what_does_not_fit_is_refused_in_one_line():
    x, y = problem(0)
    cases = [
        (lambda: knn_accuracy(x[:, :3], y, x, y), ValueError, "as many as train_embeddings"),
        (lambda: knn_accuracy(x, y[1:], x, y), ValueError, "train_target: expected shape"),
        (lambda: knn_accuracy(x[:0], y[:0], x, y), ValueError, "train_embeddings: .* at least one row"),
        (lambda: knn_accuracy(x, y, x, y, 0), ValueError, "k: expected at least 1"),
        (lambda: knn_accuracy(x, y, x, y, 2.0), TypeError, "k: expected an int"),
        (lambda: knn_accuracy(x * math.nan, y, x, y), ValueError, "train_embeddings: holds NaN"),
    ]
    for function in (recall_at_1, map_at_r, leave_one_out, lambda a, b: knn_accuracy(x, y, a, b)):
        cases += [
            (lambda f=function: f(x[:0], y[:0]), ValueError, "embeddings: .* at least one row"),
            (lambda f=function: f(x, y[1:]), ValueError, "target: expected shape"),
            (lambda f=function: f(x, y.float()), TypeError, "target: expected integer"),
            (lambda f=function: f(x * math.nan, y), ValueError, "embeddings: holds NaN"),
            (lambda f=function: f(x.long(), y), TypeError, "embeddings: expected a floating-point"),
        ]
    for call, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
