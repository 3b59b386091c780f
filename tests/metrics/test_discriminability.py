"""Angles and scatter: closed forms, and what turning and scaling do not change."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cssoftmax.metrics import class_centres, fisher_ratio, inter_class_angles, intra_class_angles
from cssoftmax.metrics import discriminability as module

seeds = st.integers(0, 2**31)
MEASURES = [intra_class_angles, inter_class_angles, fisher_ratio]


def problem(seed, n=40, d=6, c=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64), torch.arange(n) % c


def at(*degrees):
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_classes_on_known_angles():
    x, y = at(0, 10, 20, 70, 80, 90), torch.tensor([4, 4, 4, 9, 9, 9])
    torch.testing.assert_close(intra_class_angles(x, y), torch.tensor([20 / 3, 20 / 3], dtype=torch.float64))
    torch.testing.assert_close(inter_class_angles(x, y), torch.tensor([70.0, 70.0], dtype=torch.float64))


def test_the_nearest_other_centre_counts():
    expected = torch.tensor([30.0, 20.0, 20.0], dtype=torch.float64)
    torch.testing.assert_close(inter_class_angles(at(0, 30, 50), torch.tensor([0, 1, 2])), expected)


def test_one_hot_embeddings_are_at_right_angles():
    x, y = torch.eye(6).repeat(3, 1), torch.arange(6).repeat(3)
    assert torch.equal(intra_class_angles(x, y), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(inter_class_angles(x, y), torch.full((6,), 90.0, dtype=torch.float64))


@pytest.mark.parametrize("tiny", [1e-6, 1e-9, 1e-12])
def test_angles_are_exact_near_zero_and_180(tiny):  # where acos of a float64 cosine gives 0
    x, y = at(0, tiny), torch.tensor([0, 1])
    assert inter_class_angles(x, y)[0].item() == pytest.approx(tiny, rel=1e-3)
    assert intra_class_angles(x, torch.tensor([0, 0])).item() == pytest.approx(tiny / 2, rel=1e-3)
    opposite = inter_class_angles(torch.tensor([[1.0, 0.0], [-1.0, math.radians(tiny)]], dtype=torch.float64), y)
    assert 180 - opposite[0].item() == pytest.approx(tiny, rel=1e-1 if tiny == 1e-12 else 1e-3)


def test_centres_weigh_embeddings_by_direction_not_by_length():
    x = torch.tensor([[100.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    classes, centres = class_centres(x, torch.tensor([2, 2, 5]))
    assert classes.tolist() == [2, 5]
    torch.testing.assert_close(centres, torch.full((2, 2), math.sqrt(0.5), dtype=torch.float64))


def test_fisher_ratio_is_its_definition():
    x, y = problem(0, n=43)
    unit = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    between, within = np.zeros((6, 6)), np.zeros((6, 6))
    for label in range(5):
        members = unit[y.numpy() == label]
        offset = members.mean(0) - unit.mean(0)
        between += len(members) * np.outer(offset, offset)
        within += (members - members.mean(0)).T @ (members - members.mean(0))
    assert fisher_ratio(x, y) == pytest.approx(np.trace(between) / np.trace(within))


def test_a_single_class_has_an_angle_within_but_none_between():
    x, y = at(0, 90), torch.tensor([3, 3])
    assert intra_class_angles(x, y).tolist() == pytest.approx([45.0])
    assert inter_class_angles(x, y).isnan().tolist() == [True]
    assert math.isnan(fisher_ratio(x, y))


def test_classes_that_are_points_have_an_infinite_fisher_ratio():
    assert fisher_ratio(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1])) == math.inf


def test_zero_embeddings_and_cancelled_centres_are_at_90_degrees():
    x = torch.cat([torch.zeros(2, 2), at(0, 120, 240), at(0)])  # the sum of the three is rounding error
    y = torch.tensor([0, 0, 1, 1, 1, 2])
    assert class_centres(x, y)[1][:2].count_nonzero() == 0
    assert intra_class_angles(x, y).tolist() == pytest.approx([90.0, 90.0, 0.0])
    assert inter_class_angles(x, y).tolist() == pytest.approx([90.0, 90.0, 90.0])


def test_centres_are_compared_in_blocks_without_a_trace(monkeypatch):
    x, y = problem(1, c=20)
    whole = inter_class_angles(x, y)
    monkeypatch.setattr(module, "ROWS", 7)
    torch.testing.assert_close(inter_class_angles(x, y), whole)


@given(seed=seeds)
def test_turning_scaling_and_reordering_change_nothing(seed):
    x, y = problem(seed)
    g = torch.Generator().manual_seed(seed + 1)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=torch.float64)).Q
    scale = torch.exp(5 * torch.randn(40, 1, generator=g, dtype=torch.float64))
    order = torch.randperm(40, generator=g)
    for measure in MEASURES:
        before = torch.as_tensor(measure(x, y), dtype=torch.float64)
        after = torch.as_tensor(measure((scale * x @ turn)[order], y[order]), dtype=torch.float64)
        torch.testing.assert_close(before, after, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_lengths_at_the_ends_of_float64_do_not_matter(scale):
    x, y = problem(2)
    torch.testing.assert_close(intra_class_angles(scale * x, y), intra_class_angles(x, y))


def test_tensors_of_inference_mode_and_with_gradients_are_taken():
    x, y = problem(3)
    with torch.inference_mode():
        inferred = x.clone()
    for measure in MEASURES:
        expected = torch.as_tensor(measure(x, y))
        for other in (inferred, x.clone().requires_grad_()):
            got = torch.as_tensor(measure(other, y))
            assert torch.equal(got, expected) and not got.requires_grad


@pytest.mark.parametrize("function", [*MEASURES, class_centres])
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), ValueError, "at least one row"),
        (torch.zeros(3), torch.tensor([0, 1, 2]), ValueError, "embeddings: expected a matrix"),
        (torch.ones(2, 3), torch.tensor([[0, 1]]), ValueError, "target: expected shape"),
        (torch.tensor([[1.0], [math.nan]]), torch.tensor([0, 1]), ValueError, "NaN"),
        (torch.tensor([[1.0], [math.inf]]), torch.tensor([0, 1]), ValueError, "infinite"),
        (torch.ones(2, 3), torch.tensor([True, False]), TypeError, "integer class numbers"),
        (torch.ones(2, 3, dtype=torch.int), torch.tensor([0, 1]), TypeError, "floating-point"),
        (torch.ones(2, 3), [0, 1], TypeError, "target: expected a tensor"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(function, x, y, error, message):
    with pytest.raises(error, match=message) as caught:
        function(x, y)
    assert "\n" not in str(caught.value)
