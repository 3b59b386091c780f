"""Rejecting unknown classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cssoftmax.metrics import max_cosine, max_log_odds, measure, unknown_auroc

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12).map(torch.tensor)


@given(scores, scores)
def test_auroc_is_the_chance_that_a_known_sample_scores_higher(known, unknown):
    gap = known[:, None] - unknown
    assert unknown_auroc(known, unknown) == pytest.approx(float(((gap > 0) + 0.5 * (gap == 0)).double().mean()))


def test_maximum_cosine_sees_directions_alone_and_the_nearest_centre_of_any_class():
    x, w = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.randn(2, 3, 4)
    expected = torch.nn.functional.cosine_similarity(x[:, None].double(), w.reshape(6, 4)[None].double(), dim=2).amax(1)
    assert torch.allclose(max_cosine(3 * x, w), expected)
    assert torch.allclose(max_cosine(x, 5 * w), expected)


def test_log_odds_order_samples_as_the_largest_probability_does():
    logits = 3 * torch.randn(50, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.softmax(1).amax(1)
    assert torch.allclose(max_log_odds(logits), (p / (1 - p)).log())


@pytest.mark.parametrize("bad", [torch.empty(0), torch.tensor([float("nan")]), torch.zeros(2, 2)])
def test_scores_that_cannot_be_compared(bad):
    with pytest.raises(ValueError, match="unknown: "):
        unknown_auroc(torch.zeros(2), bad)


def test_classes_never_trained_on_are_measured_without_what_needs_logits():
    x, y = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)
    whole = measure(x, y, 9 * x)
    assert measure(x, y, None) == {
        k: v for k, v in whole.items() if k not in ("accuracy", "top5_accuracy", "nll", "ece")
    }
