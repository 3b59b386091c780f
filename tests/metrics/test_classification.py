"""Accuracy, likelihood, calibration and confusion: against scikit-learn, plain loops and closed forms."""

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cssoftmax.metrics import (
    confusion_matrix,
    expected_calibration_error,
    negative_log_likelihood,
    top_k_accuracy,
)

seeds = st.integers(0, 2**31)
FUNCTIONS = [top_k_accuracy, negative_log_likelihood, expected_calibration_error, confusion_matrix]


def problem(seed, n=60, c=7):
    g = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, c, generator=g), torch.randint(c, (n,), generator=g)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_is_that_of_scikit_learn(k):
    logits, target = problem(0)
    expected = sklearn.metrics.top_k_accuracy_score(target, logits, k=k, labels=range(7))
    assert top_k_accuracy(logits, target, k) == pytest.approx(expected)


def test_k_beyond_the_classes_counts_as_their_number():
    logits, target = problem(1)
    assert top_k_accuracy(logits, target, 7) == top_k_accuracy(logits, target, 100) == 1.0


@pytest.mark.parametrize("k", [1, 3])
def test_constant_logits_are_right_for_k_classes_only(k):
    assert top_k_accuracy(torch.ones(10, 10), torch.arange(10), k) == pytest.approx(k / 10)


@settings(max_examples=15)
@given(seed=seeds)
def test_accuracy_is_the_share_of_the_confusion_matrix_on_its_diagonal(seed):
    logits, target = problem(seed)
    logits = logits.round()  # with ties
    matrix = confusion_matrix(logits, target)
    assert top_k_accuracy(logits, target) == pytest.approx(float(matrix.trace() / matrix.sum()))


def test_confusion_matrix_counts_true_rows_and_taken_columns():
    logits, target = problem(2)
    target[target == 3] = 4  # a class without samples keeps its row
    expected = torch.zeros(7, 7, dtype=torch.int64)
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        expected[label, row.index(max(row))] += 1
    assert torch.equal(confusion_matrix(logits, target), expected)


def test_likelihood_is_log_loss_of_scikit_learn():
    logits, target = problem(3)
    expected = sklearn.metrics.log_loss(target, logits.double().softmax(1), labels=range(7))
    assert negative_log_likelihood(logits, target) == pytest.approx(expected)


def test_likelihood_of_large_logits_does_not_overflow():
    assert negative_log_likelihood(torch.tensor([[1e4, -1e4]]), torch.tensor([1])) == pytest.approx(2e4)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_its_definition(bins):
    logits, target = problem(4, n=300)
    probabilities = logits.double().softmax(1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == target.numpy()
    expected = 0.0
    for i in range(bins):
        inside = (confidence > i / bins) & (confidence <= (i + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected > 0.01
    assert expected_calibration_error(logits, target, bins) == pytest.approx(expected, abs=1e-6)


def test_certain_predictions_share_the_last_bin_with_nearly_certain_ones():
    nearly = math.log(0.96 / 0.04)  # confidence 0.96, right; confidence 1, wrong: together 1/2 right at 0.98
    logits = torch.tensor([[nearly, 0.0], [100.0, 0.0]])
    assert expected_calibration_error(logits, torch.tensor([0, 1])) == pytest.approx(0.48, abs=1e-6)


def test_one_class_is_calibrated():
    assert expected_calibration_error(torch.randn(4, 1), torch.zeros(4, dtype=torch.long)) == 0.0


@settings(max_examples=15)
@given(seed=seeds, shift=st.floats(-20, 20))
def test_measures_know_neither_the_order_of_samples_nor_a_constant_in_the_logits(seed, shift):
    logits, target = problem(seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(target)))
    for function in FUNCTIONS:
        before = torch.as_tensor(function(logits.double(), target)).double()
        after = torch.as_tensor(function(logits.double()[order] + shift, target[order])).double()
        torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), ValueError, "at least one row"),
        (torch.zeros(3), torch.tensor([0, 1, 2]), ValueError, "logits: expected a matrix"),
        (torch.zeros(2, 3), torch.tensor([0]), ValueError, r"target: expected shape \(2,\)"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, "classes from 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), ValueError, "classes from 0 to 2"),
        (torch.full((2, 3), math.nan), torch.tensor([0, 1]), ValueError, "NaN"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), TypeError, "integer class numbers"),
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1]), TypeError, "floating-point"),
        ([[0.0]], torch.tensor([0]), TypeError, "expected a tensor"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(function, logits, target, error, message):
    with pytest.raises(error, match=message) as caught:
        function(logits, target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", [top_k_accuracy, expected_calibration_error])
def test_numbers_of_places_and_bins_are_whole_and_positive(function):
    with pytest.raises(ValueError, match="at least 1"):
        function(*problem(0), 0)
    with pytest.raises(TypeError, match="an int"):
        function(*problem(0), 2.0)
