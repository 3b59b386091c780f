"""Facts of the family: reductions, invariances, margins, PyTorch's meaning of options, hard inputs, errors."""

import copy
import gc
import inspect
import json
import math
import os
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import cssoftmax
from cssoftmax import (
    AdaCosLoss,
    AdaFaceLoss,
    ArcFaceLoss,
    CenterLoss,
    CircleLoss,
    CosFaceLoss,
    CSSoftmaxLoss,
    CurricularFaceLoss,
    ElasticFaceLoss,
    MagFaceLoss,
    NormFaceLoss,
    Schedule,
    SoftmaxLoss,
    SphereFaceLoss,
    SubCenterArcFaceLoss,
    reference,
)
from cssoftmax.functional import cs_softmax_loss, similarity_loss
from cssoftmax.losses import LOSSES, build, settings_of, warmed_up
from cssoftmax.losses.base import PATIENCE
from cssoftmax.similarity import ArcFace, CosFace, CSSoftmax, SOSoftmax

FAMILY = list(LOSSES.values())
COSINE = [loss for loss in FAMILY if loss not in (SoftmaxLoss, SphereFaceLoss)]
SCALED = [loss for loss in COSINE if loss is not AdaCosLoss]
DTYPES = [torch.float32, torch.float64]

seeds = st.integers(0, 2**31)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 15))
scales = st.floats(0.5, 64)
margins = st.floats(0, 0.95)
factors = st.floats(0, 1)


def problem(seed, shape, dtype=torch.float64):
    """Lengths from 0.5 to 2: a gradient is divided by the length, and so is its rounding."""
    n, d, c = shape
    g = torch.Generator().manual_seed(seed)
    x, w = (
        F.normalize(torch.randn(count, d, generator=g, dtype=dtype))
        * (0.5 + 1.5 * torch.rand(count, 1, generator=g, dtype=dtype))
        for count in (n, c)
    )
    return x.requires_grad_(), w.requires_grad_(), torch.randint(c, (n,), generator=g)


def value_and_gradients(loss, x, w):
    value = loss(x, w)
    return value, *torch.autograd.grad(value, (x, w))


def assert_same(first, second, x, w):
    rtol, atol = (1e-9, 1e-10) if x.dtype == torch.float64 else (2e-4, 2e-4)
    for a, b in zip(value_and_gradients(first, x, w), value_and_gradients(second, x, w), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


# What CS-Softmax is at the ends of its factors


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=seeds, shape=shapes, scale=scales)
def test_no_margin_and_no_update_is_cross_entropy_of_scaled_cosines(dtype, seed, shape, scale):
    x, w, y = problem(seed, shape, dtype)
    assert_same(
        lambda x, w: cs_softmax_loss(x, w, y, margin=0.0, weight_update=0.0, scale=scale),
        lambda x, w: F.cross_entropy(scale * F.normalize(x) @ F.normalize(w).T, y),
        x,
        w,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=seeds, shape=shapes, scale=scales, margin=margins, per_class=st.booleans())
def test_no_update_is_cosface(dtype, seed, shape, scale, margin, per_class):
    x, w, y = problem(seed, shape, dtype)
    if per_class:
        margin = torch.rand(shape[2], generator=torch.Generator().manual_seed(seed))
    assert_same(
        lambda x, w: cs_softmax_loss(x, w, y, margin=margin, weight_update=0.0, scale=scale),
        lambda x, w: similarity_loss(x, w, y, CosFace(margin), scale=scale),
        x,
        w,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=seeds, shape=shapes, scale=scales, margin=margins)
def test_full_update_is_class_level_circle_loss(dtype, seed, shape, scale, margin):
    x, w, y = problem(seed, shape, dtype)
    m = (1 - margin) / 2

    def circle(x, w):  # equations 6 to 8 of Sun et al. 2020
        s = F.normalize(x) @ F.normalize(w).T
        alpha_p, alpha_n = (1 + m - s).clamp(min=0).detach(), (s + m).clamp(min=0).detach()
        own = F.one_hot(y, len(w)).bool()
        return F.cross_entropy(scale * torch.where(own, alpha_p * (s - (1 - m)), alpha_n * (s - m)), y)

    assert_same(lambda x, w: cs_softmax_loss(x, w, y, margin=margin, weight_update=1.0, scale=scale), circle, x, w)
    assert_same(CircleLossOn(y, m, scale), circle, x, w)


class CircleLossOn:
    """CircleLoss as a function of the class weights."""

    def __init__(self, target, relaxation, scale):
        self.target, self.relaxation, self.scale = target, relaxation, scale

    def __call__(self, x, w):
        loss = CircleLoss(w.shape[1], len(w), relaxation=self.relaxation, scale=self.scale, dtype=w.dtype)
        return torch.func.functional_call(loss, {"weight": w}, (x, self.target))


@given(seed=seeds, shape=shapes, scale=scales, margin=margins)
def test_full_update_not_detached_is_so_softmax_where_no_clamp_is_active(seed, shape, scale, margin):
    x, w, y = problem(seed, shape)
    with torch.no_grad():  # a common part keeps every cosine above -r
        direction = F.normalize(torch.ones(1, shape[1], dtype=torch.float64))
        x += 50 * direction
        w += 50 * direction
    assert_same(
        lambda x, w: cs_softmax_loss(x, w, y, margin=margin, weight_update=1.0, scale=scale, detach_update=False),
        lambda x, w: similarity_loss(x, w, y, SOSoftmax(margin), scale=scale),
        x,
        w,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=seeds, shape=shapes, scale=scales, margin=margins, u=factors, detach=st.booleans())
def test_equal_margins_per_class_are_one_margin(dtype, seed, shape, scale, margin, u, detach):
    x, w, y = problem(seed, shape, dtype)
    settings = {"weight_update": u, "scale": scale, "detach_update": detach}
    vector = torch.full((shape[2],), margin, dtype=torch.float64)
    assert_same(
        lambda x, w: cs_softmax_loss(x, w, y, margin=vector, **settings),
        lambda x, w: cs_softmax_loss(x, w, y, margin=margin, **settings),
        x,
        w,
    )


@pytest.mark.parametrize("implementation", ["eager", "fused", "compiled", "chunked"])
def test_a_factor_that_float32_cannot_hold_is_not_quite_none(implementation):
    x, w = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [-1.0]])
    settings = {"margin": 0.0, "scale": 1.0, "implementation": implementation}
    tiny, small = (
        cs_softmax_loss(x, w, torch.arange(2), weight_update=factor, **settings) for factor in (4e-182, 1e-30)
    )
    torch.testing.assert_close(tiny, small)


# Invariances and shape of the loss


@pytest.mark.parametrize("family", [loss for loss in COSINE if loss not in (MagFaceLoss, AdaFaceLoss)])
@given(seed=seeds, shape=shapes, length_x=st.floats(1e-3, 1e3), length_w=st.floats(1e-3, 1e3))
def test_lengths_do_not_matter(family, seed, shape, length_x, length_w):
    x, w, y = problem(seed, shape)
    loss = family(shape[1], shape[2], dtype=torch.float64).eval()
    w = w.repeat_interleave(loss.sub_centers, 0)
    plain = torch.func.functional_call(loss, {"weight": w}, (x, y))
    scaled = torch.func.functional_call(loss, {"weight": length_w * w}, (length_x * x, y))
    torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-10)


@given(seed=seeds, shape=st.tuples(st.integers(1, 6), st.integers(2, 8), st.integers(2, 9)), scale=scales)
def test_margin_per_class_is_the_lead_over_each_other_class_at_the_boundary(seed, shape, scale):
    x, w, y = problem(seed, shape)
    margin = torch.rand(shape[2], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    similarity = CSSoftmax(margin, 0.0)
    own = torch.rand(len(y), dtype=torch.float64)
    rows = similarity.rows(own, torch.ones_like(own), y)
    torch.testing.assert_close(similarity.positive(own, rows), similarity.negative(own - margin[y], rows))


@given(margin=margins, u=factors, scale=scales, seed=seeds, detach=st.booleans())
def test_loss_falls_as_the_positive_cosine_rises(margin, u, scale, seed, detach):
    c = torch.linspace(-1, 1, 201, dtype=torch.float64)
    similarity = CSSoftmax(margin, u, detach)
    rows = similarity.rows(c, torch.ones_like(c), torch.zeros(201, dtype=torch.int64))
    positive = similarity.positive(c, rows)
    assert (positive.diff() >= -1e-12).all()
    assert (positive.diff()[:-1] > 0).all()
    others = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    losses = torch.logsumexp(torch.cat([scale * positive[:, None], others.expand(201, 5)], 1), 1) - scale * positive
    assert (losses.diff() <= 0).all()


@pytest.mark.parametrize("family", FAMILY)
def test_gradcheck(family):
    x, w, y = problem(3, (4, 5, 6))
    loss = family(5, 6, **({"scale": 4.0} if family in SCALED else {})).double().eval()
    if family in (CSSoftmaxLoss, CircleLoss):  # constants in the backward pass: not the derivative of the value
        loss = CSSoftmaxLoss(5, 6, margin=0.3, weight_update=0.4, detach_update=False, scale=4.0, dtype=torch.float64)
    lengths = torch.tensor([5.0, 20.0, 60.0, 120.0], dtype=torch.float64)[:, None]
    w = w.detach().repeat_interleave(loss.sub_centers, 0).requires_grad_()
    if loss.sub_centers > 1:
        w = (w.detach() + torch.randn_like(w)).requires_grad_()

    def call(x, w):
        if family is MagFaceLoss:
            x = lengths * x
        if family is AdaFaceLoss:  # to which the length is a constant
            x = lengths * F.normalize(x)
        return torch.func.functional_call(loss, {"weight": w}, (x, y))

    assert torch.autograd.gradcheck(call, (x, w))
    assert torch.autograd.gradgradcheck(call, (x, w))


@given(u=st.floats(0, 1), margin=margins, detach=st.booleans())
def test_slope_is_the_derivative_that_autograd_takes(u, margin, detach):
    for similarity in (CSSoftmax(margin, u, detach), SOSoftmax(margin), CosFace(margin)):
        c = torch.linspace(-0.99, 0.99, 67, dtype=torch.float64, requires_grad=True)
        rows = similarity.rows(c.detach(), torch.ones(67), torch.zeros(67, dtype=torch.int64))
        (gradient,) = torch.autograd.grad(similarity.negative(c, rows).sum(), c)
        torch.testing.assert_close(similarity.negative_slope(c.detach(), rows), gradient)


def test_arcface_never_rewards_an_angle_past_pi():
    c = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    for margin in (0.1, 0.5, 1.5):
        positive = cssoftmax.ArcFaceLoss(2, 2, margin=margin).similarity.positive(c, (margin,))
        assert (positive <= c + 1e-12).all()
        assert (positive.diff()[c[1:] > -math.cos(margin) + 1e-3] > 0).all()


# PyTorch's meaning of its options


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_options_mean_what_they_mean_in_cross_entropy(family, reduction, smoothing):
    x, _, y = problem(5, (7, 6, 4), torch.float32)
    y[2] = y[5] = -1
    rescale = torch.tensor([0.5, 2.0, 1.0, 0.1])
    options = {"reduction": reduction, "ignore_index": -1, "label_smoothing": smoothing}
    own = {"norm_weight": 0.0} if family is MagFaceLoss else {}  # its other term: another test
    loss = family(6, 4, weight=rescale, **options, **own).eval()
    positive, negative = loss.similarities(x, y.clamp(min=0))
    logits = loss.scale * torch.where(negative == -math.inf, positive[:, None], negative)
    torch.testing.assert_close(loss(x, y), F.cross_entropy(logits, y, weight=rescale, **options))


@pytest.mark.parametrize("family", FAMILY)
def test_all_rows_ignored_is_as_in_cross_entropy(family):
    x, _, _ = problem(1, (3, 6, 4), torch.float32)
    y = torch.full((3,), -100)
    assert family(6, 4)(x, y).isnan() and F.cross_entropy(torch.zeros(3, 4), y).isnan()
    assert family(6, 4, reduction="sum")(x, y) == 0
    assert family(6, 4, reduction="none")(x, y).tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad(family(6, 4, reduction="sum")(x, y), x)
    assert not gradient.any()


@pytest.mark.parametrize("family", FAMILY)
def test_an_embedding_that_is_not_a_number_does_not_pass_for_a_zero(family):
    x, _, y = problem(1, (3, 6, 4), torch.float32)
    x = x.detach().clone()
    x[1, 2] = math.nan
    loss = family(6, 4)
    assert loss(x, y).isnan()
    assert loss.logits(x).isnan().any(1).tolist() == [False, True, False]


def test_ignored_rows_receive_no_gradient_and_change_nothing():
    x, w, y = problem(2, (5, 4, 3))
    y[1] = -100
    kept = y != -100
    settings = {"margin": 0.2, "weight_update": 0.5, "scale": 9.0}
    value, gradient, _ = value_and_gradients(lambda x, w: cs_softmax_loss(x, w, y, **settings), x, w)
    torch.testing.assert_close(value, cs_softmax_loss(x[kept], w, y[kept], **settings))
    assert not gradient[1].any() and gradient[kept].abs().sum(1).all()


def test_softmax_is_linear_and_cross_entropy():
    torch.manual_seed(0)
    linear, loss = nn.Linear(6, 4), SoftmaxLoss(6, 4)
    loss.load_state_dict(linear.state_dict())
    x, _, y = problem(0, (5, 6, 4), torch.float32)
    torch.testing.assert_close(loss(x, y), F.cross_entropy(linear(x), y))
    torch.testing.assert_close(loss.logits(x), linear(x))


def test_logits_are_scaled_cosines_without_margin():
    loss = CSSoftmaxLoss(6, 4, margin=0.5, scale=7.0)
    x = torch.randn(5, 6)
    torch.testing.assert_close(loss.logits(x), 7 * F.cosine_similarity(x[:, None], loss.weight[None], dim=-1))


# Precision


@pytest.mark.parametrize("family", SCALED)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_loss_in_float32(family, half):
    torch.manual_seed(0)
    x, y = torch.randn(64, 32).to(half), torch.randint(50, (64,))
    loss = family(32, 50, scale=64.0).eval()
    exact = copy.deepcopy(loss).double()(x.double(), y)
    with torch.autocast("cpu", dtype=half):
        value = loss(x, y)
    assert value.dtype == torch.float32
    assert loss.weight.dtype == torch.float32
    assert abs(value - exact) / exact < 1e-6


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_and_weights_are_computed_in_float32(half):
    x, y = torch.randn(8, 16).to(half).requires_grad_(), torch.randint(5, (8,))
    loss = CSSoftmaxLoss(16, 5, dtype=half)
    value = loss(x, y)
    value.backward()
    assert value.dtype == torch.float32
    assert loss.weight.dtype == x.grad.dtype == loss.weight.grad.dtype == half


# Hard inputs


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["equal", "opposite", "multiple", "zero", "tiny", "one class", "one row"])
def test_hard_inputs_give_finite_values_and_gradients(family, dtype, kind):
    torch.manual_seed(1)
    loss = family(8, 1 if kind == "one class" else 5, dtype=dtype)
    w = loss.weight.detach()
    x = {
        "equal": w.clone(),
        "opposite": -w,
        "multiple": 1e4 * w,
        "zero": torch.zeros_like(w),
        "tiny": 1e-30 * w,
        "one class": torch.randn(3, 8, dtype=dtype),
        "one row": torch.randn(1, 8, dtype=dtype),
    }[kind].requires_grad_()
    value = loss(x, torch.arange(len(x)) // loss.sub_centers % loss.num_classes)
    value.backward()
    assert value.isfinite()
    assert x.grad.isfinite().all() and loss.weight.grad.isfinite().all()
    assert x.grad.abs().max() < 1e4


@pytest.mark.parametrize("family", COSINE)
def test_a_zero_embedding_has_cosine_zero_and_no_gradient(family):
    loss = family(8, 5)
    x = torch.zeros(2, 8, requires_grad=True)
    loss(x, torch.tensor([0, 1])).backward()
    assert not x.grad.any()
    assert not loss.logits(x).any()


def test_an_empty_batch_is_an_error_for_the_mean_and_nothing_for_the_sum():
    x, y = torch.randn(0, 4), torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="empty batch"):
        CSSoftmaxLoss(4, 3)(x, y)
    assert CSSoftmaxLoss(4, 3, reduction="sum")(x, y) == 0
    assert CSSoftmaxLoss(4, 3, reduction="none")(x, y).shape == (0,)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"margin": 1.0}, ValueError, r"margin: 1.0 is outside \[0, 1\)"),
        ({"margin": -0.1}, ValueError, "margin: -0.1"),
        ({"margin": math.nan}, ValueError, "margin: nan"),
        ({"margin": "0.1"}, TypeError, "margin: .*str"),
        ({"margin": torch.zeros(4)}, ValueError, r"margin: .*shape \(3,\), got \(4,\)"),
        ({"margin": torch.tensor([0.1, 1.5, 0.2])}, ValueError, "margin: 1.5 of class 1"),
        ({"margin": torch.tensor([0, 0, 0])}, TypeError, "margin: .*int64"),
        ({"scale": 0.0}, ValueError, "scale: 0.0"),
        ({"scale": -3.0}, ValueError, "scale: -3.0"),
        ({"scale": math.inf}, ValueError, "scale: inf"),
        ({"scale": "64"}, TypeError, "scale: .*str"),
        ({"weight_update": 1.1}, ValueError, r"weight_update: 1.1 is outside \[0, 1\]"),
        ({"weight_update": True}, TypeError, "weight_update: .*bool"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing: 2.0"),
        ({"reduction": "avg"}, ValueError, "reduction: 'avg' is not one of 'mean', 'sum', 'none'"),
        ({"implementation": "fast"}, ValueError, "implementation: 'fast'"),
        ({"weight": torch.ones(2)}, ValueError, r"weight: .*\(3,\), got \(2,\)"),
        ({"weight": [1.0, 1.0, 1.0]}, TypeError, "weight: .*list"),
    ],
)
def test_wrong_settings_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        CSSoftmaxLoss(4, 3, **arguments)


@pytest.mark.parametrize(
    ("embeddings", "target", "error", "message"),
    [
        (torch.randn(2, 5), torch.tensor([0, 1]), ValueError, "embeddings: 5 features a row, .* have 4"),
        (torch.randn(4), torch.tensor([0]), ValueError, r"embeddings: shape \(N, D\)"),
        (torch.ones(2, 4, dtype=torch.int64), torch.tensor([0, 1]), TypeError, "embeddings: .*int64"),
        ([[0.0] * 4], torch.tensor([0]), TypeError, "embeddings: .*list"),
        (torch.randn(2, 4), torch.tensor([0, 3]), IndexError, r"target: label 3 in row 1 is outside 0\.\.2"),
        (torch.randn(2, 4), torch.tensor([-1, 0]), IndexError, "target: label -1 in row 0"),
        (torch.randn(2, 4), torch.tensor([0.0, 1.0]), TypeError, "target: int64 .*float32"),
        (torch.randn(2, 4), torch.tensor([0, 1, 2]), ValueError, r"target: shape \(N,\).*N = 2.*\(3,\)"),
        (torch.randn(2, 4), torch.tensor([[0, 1]]), ValueError, "target: shape"),
        (torch.randn(2, 4), [0, 1], TypeError, "target: .*list"),
    ],
)
@pytest.mark.parametrize("family", FAMILY)
def test_wrong_inputs_are_named(family, embeddings, target, error, message):
    with pytest.raises(error, match=message):
        family(4, 3)(embeddings, target)


@pytest.mark.parametrize("sizes", [(0, 3), (4, 0), (-1, 3)])
def test_sizes_below_one_are_named(sizes):
    with pytest.raises(ValueError, match="is below 1"):
        CSSoftmaxLoss(*sizes)


def test_unknown_names_list_what_there_is():
    with pytest.raises(ValueError, match="loss: 'tripple' is not one of cs-softmax, softmax"):
        build("tripple", 4, 3)
    with pytest.raises(ValueError, match="sub_centers: an integer >= 1 is needed, got str"):
        build("subcenter-arcface", 4, 3, sub_centers="two")
    with pytest.raises(ValueError, match="weight_update: cosface has no such setting; it has .*margin"):
        build("cosface", 4, 3, weight_update=0.5)


# The commonest mistake


WATCHED = [CSSoftmaxLoss, SoftmaxLoss, SubCenterArcFaceLoss, MagFaceLoss]


def steps(loss, parameters, count):
    network = nn.Linear(6, 4)
    optimizer = torch.optim.SGD([*network.parameters(), *parameters], lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        loss(network(torch.randn(8, 6)), torch.randint(3, (8,))).backward()
        optimizer.step()


@pytest.mark.parametrize("family", WATCHED)
def test_class_weights_left_out_of_the_optimizer_are_noticed_once(family):
    loss = family(4, 3)
    with pytest.warns(UserWarning, match="did not change") as caught:
        steps(loss, [], 3 * PATIENCE)
    assert len(caught) == 1
    assert family.__name__ in str(caught[0].message)


@pytest.mark.parametrize("family", WATCHED)
def test_class_weights_in_the_optimizer_are_not_complained_about(family):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = family(4, 3)
        steps(loss, loss.parameters(), 2 * PATIENCE)
        frozen = family(4, 3).requires_grad_(False)
        steps(frozen, [], 2 * PATIENCE)


# Life as a module


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_let_go_of_after_a_few_steps_is_freed(name):
    loss = build(name, 4, 3)
    loss(torch.randn(5, 4, requires_grad=True), torch.randint(3, (5,))).backward()
    left = weakref.ref(loss)
    del loss
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("name", LOSSES)
def test_state_copies_and_moves(name, tmp_path):
    loss = build(name, 4, 3).eval()
    x, y = torch.randn(5, 4), torch.randint(3, (5,))
    twin = build(name, 4, 3).eval()
    twin.load_state_dict(loss.state_dict())
    assert twin(x, y) == loss(x, y) == copy.deepcopy(loss)(x, y)
    assert loss.double()(x, y).dtype == torch.float64
    assert loss.weight.shape == (3 * loss.sub_centers, 4)
    assert name.replace("-", "").lower() in repr(loss).lower()


def test_margins_per_class_are_saved_and_cast_with_the_module():
    loss = CSSoftmaxLoss(4, 3, margin=torch.tensor([0.1, 0.2, 0.3]), scale=9.0)
    assert "margin" in loss.state_dict()
    twin = CSSoftmaxLoss(4, 3, margin=torch.zeros(3), scale=9.0)
    twin.load_state_dict(loss.state_dict())
    x, y = torch.randn(5, 4), torch.randint(3, (5,))
    torch.testing.assert_close(twin(x, y), loss(x, y))
    assert loss.half()(x, y).dtype == torch.float32


@pytest.mark.parametrize("family", FAMILY)
def test_from_linear_shares_the_weights_of_the_layer(family):
    linear = nn.Linear(4, 3)
    loss = family.from_linear(linear, **({"sub_centers": 1} if family is SubCenterArcFaceLoss else {}))
    assert loss.weight is linear.weight
    with pytest.raises(TypeError, match="linear: an nn.Linear is needed, got Conv2d"):
        family.from_linear(nn.Conv2d(1, 1, 1))


def test_compiles_without_a_graph_break():
    loss = CSSoftmaxLoss(4, 3)
    x, y = torch.randn(5, 4, requires_grad=True), torch.randint(3, (5,))
    explanation = torch._dynamo.explain(loss)(x, y)
    assert explanation.graph_break_count == 0
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), loss(x, y))


@pytest.mark.parametrize("classes", [3, 5_000, 50_000])
def test_compiles_without_a_warning_whatever_the_size(classes):
    loss = CSSoftmaxLoss(4, classes)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.compile(loss, backend="eager")(torch.randn(300, 4), torch.arange(300) % classes)


@pytest.mark.parametrize("family", [SphereFaceLoss, AdaCosLoss, CurricularFaceLoss, MagFaceLoss, AdaFaceLoss])
def test_state_moves_without_a_value_read_back_from_the_device(family):
    """One graph: what reads a value back would break it."""
    loss = family(4, 3)
    twin, (x, y) = copy.deepcopy(loss), (torch.randn(5, 4), torch.randint(3, (5,)))
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(x, y), twin(x, y))
    torch.testing.assert_close(loss.state_dict(), twin.state_dict())


# The rule for the scale


@given(c=st.integers(2, 100_000), margin=margins, u=factors)
def test_default_scale_gives_a_perfect_embedding_its_probability(c, margin, u):
    c = min(c, 2000)
    loss = CSSoftmaxLoss(c, c, margin=margin, weight_update=u, dtype=torch.float64)
    loss.weight.data = torch.eye(c, dtype=torch.float64)
    value = loss(loss.weight[:1], torch.tensor([0])).item()
    assert math.exp(-value) == pytest.approx(max(0.9, 1 - c**-1.5), abs=1e-9)


# The rest of the family: what each is at the ends of its factors


@given(seed=seeds, shape=shapes, margin=st.floats(0, 1.5))
def test_one_sub_center_is_arcface(seed, shape, margin):
    x, w, y = problem(seed, shape)
    assert_same(
        on(SubCenterArcFaceLoss(*shape[1:], margin=margin, sub_centers=1), y),
        on(ArcFaceLoss(*shape[1:], margin=margin), y),
        x,
        w,
    )


@given(seed=seeds, shape=shapes)
def test_equal_sub_centers_are_one(seed, shape):
    x, w, y = problem(seed, shape)
    many = SubCenterArcFaceLoss(*shape[1:], sub_centers=3, reduction="sum")
    one = ArcFaceLoss(*shape[1:], reduction="sum")
    assert_same(lambda x, w: on(many, y)(x, w.repeat_interleave(3, 0)), on(one, y), x, w)


@given(seed=seeds, shape=shapes)
def test_a_sub_center_nearer_than_the_others_is_the_class(seed, shape):
    x, w, y = problem(seed, shape)
    away = F.normalize(-x.detach().sum(0, keepdim=True)) * 100  # no row's nearest
    both = torch.stack([w, w - w.detach() + away], 1).flatten(0, 1)
    loss = SubCenterArcFaceLoss(*shape[1:], sub_centers=2)
    cosines = F.normalize(x) @ F.normalize(both).T
    expected = cosines.view(len(x), -1, 2).amax(2)
    torch.testing.assert_close(
        torch.func.functional_call(loss.double(), {"weight": both}, (x, y)),
        (
            similarity_loss(
                expected, torch.eye(shape[2], dtype=torch.float64), y, Given(loss.similarity), scale=loss.scale
            )
        ),
    )


class Given:
    """A similarity on products that are already cosines."""

    normalized = "none"

    def __init__(self, similarity):
        self.rows, self.positive = similarity.rows, similarity.positive
        self.negative, self.negative_slope = similarity.negative, similarity.negative_slope


def on(loss, y):
    """A loss as a function of embeddings and class weights, in their precision, in evaluation."""
    loss = loss.double().eval()
    return lambda x, w: torch.func.functional_call(loss, {"weight": w}, (x, y))


def test_sub_centers_run_eagerly_or_say_that_they_cannot():
    with pytest.raises(ValueError, match="implementation: 'chunked' has no sub-centers; take 'auto' or 'eager'"):
        cssoftmax.functional.check_sub_centers(2, "chunked")
    with pytest.raises(ValueError, match="sub_centers: 0 is below 1"):
        SubCenterArcFaceLoss(4, 3, sub_centers=0)
    with pytest.raises(ValueError, match=r"linear: its weights are \(3, 4\), SubCenterArcFaceLoss needs \(9, 4\)"):
        SubCenterArcFaceLoss.from_linear(nn.Linear(4, 3))


@given(seed=seeds, shape=shapes, annealing=st.floats(0, 10))
def test_sphereface_at_margin_one_is_softmax_on_unit_class_weights(seed, shape, annealing):
    x, w, y = problem(seed, shape)
    loss = SphereFaceLoss(*shape[1:], margin=1.0, annealing=annealing)
    assert_same(on(loss, y), lambda x, w: F.cross_entropy(x @ F.normalize(w).T, y), x, w)


@given(seed=seeds, shape=shapes)
def test_sphereface_annealed_without_end_is_margin_one(seed, shape):
    x, w, y = problem(seed, shape)
    loss = SphereFaceLoss(*shape[1:], annealing=1e14)
    assert_same(on(loss, y), on(SphereFaceLoss(*shape[1:], margin=1.0), y), x, w)


@pytest.mark.parametrize("margin", [1.0, 2.0, 2.5, 3.0, 4.0])
def test_spherefaces_angle_falls_all_the_way_and_has_its_corners_where_the_paper_says(margin):
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    loss = SphereFaceLoss(2, 2, margin=margin, annealing=0.0)
    rows = loss.similarity.rows(theta.cos(), torch.ones_like(theta), torch.zeros(2001, dtype=torch.int64))
    psi = loss.similarity.positive(theta.cos(), rows)
    assert (psi.diff() < 1e-9).all() and (psi.diff().abs() < 0.01).all()  # no jump
    for k in range(int(margin) + 1):  # psi(k pi / m) = (-1)^k cos(k pi) - 2 k = 1 - 2 k
        corner = (theta - k * math.pi / margin).abs().argmin()
        assert psi[corner].item() == pytest.approx(1 - 2 * k, abs=1e-4)


def test_sphereface_gives_a_zero_embedding_the_gradient_of_margin_one():
    loss, plain = SphereFaceLoss(4, 3), SphereFaceLoss(4, 3, margin=1.0)
    plain.weight = loss.weight
    y = torch.tensor([1])
    gradients = []
    for module in (loss, plain):
        x = torch.zeros(1, 4, requires_grad=True)
        gradients.append(torch.autograd.grad(module(x, y), x)[0])
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


@given(seed=seeds, shape=shapes, t=st.floats(-1, 1))
def test_curricularface_without_hard_negatives_is_arcface(seed, shape, t):
    x, w, y = problem(seed, shape)
    with torch.no_grad():  # near its own class, and classes at right angles
        w = torch.eye(max(shape[1:]), dtype=torch.float64)[: shape[2]]
        x = w[y] + 0.01 * torch.rand(len(y), w.shape[1], generator=torch.Generator().manual_seed(seed))
    loss = CurricularFaceLoss(w.shape[1], shape[2])
    loss.t.fill_(t)
    assert_same(on(loss, y), on(ArcFaceLoss(w.shape[1], shape[2]), y), x.requires_grad_(), w.requires_grad_())


@given(seed=seeds, margin=st.floats(0, 1.5), t=st.floats(-1, 1))
def test_curricularface_weighs_a_hard_negative_by_t_and_its_cosine(seed, margin, t):
    c = torch.linspace(-1, 1, 201, dtype=torch.float64)
    similarity = CurricularFaceLoss(2, 2, margin=margin).double()
    similarity.t.fill_(t)
    similarity = similarity.similarity
    own = torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).expand(201)
    rows = similarity.rows(own, torch.ones(201), torch.zeros(201, dtype=torch.int64))
    hard = c > similarity.positive(own, rows)
    torch.testing.assert_close(similarity.negative(c, rows), torch.where(hard, c * (t + c), c))
    torch.testing.assert_close(similarity.negative_slope(c, rows), torch.where(hard, t + 2 * c, 1))


@given(seed=seeds, shape=shapes, length=st.floats(1, 200), margin=st.floats(0, 1.5), upper=st.floats(0, 1.5))
def test_magface_at_one_length_is_arcface_with_the_margin_of_that_length(seed, shape, length, margin, upper):
    x, w, y = problem(seed, shape)
    share = min(max((length - 10) / 100, 0), 1)
    mag = MagFaceLoss(*shape[1:], margin=margin, upper_margin=upper, norm_weight=0.0, scale=9.0)
    arc = ArcFaceLoss(*shape[1:], margin=margin + (upper - margin) * share, scale=9.0)
    value, _, weights = value_and_gradients(on(mag, y), length * F.normalize(x).detach().requires_grad_(), w)
    expected, _, expected_weights = value_and_gradients(on(arc, y), x, w)
    torch.testing.assert_close((value, weights), (expected, expected_weights), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_magface_pulls_lengths_towards_its_upper_bound(reduction):
    x, _, y = problem(0, (6, 4, 3))
    x = (F.normalize(x.detach()) * torch.tensor([0.5, 5, 10, 50, 110, 200])[:, None]).requires_grad_()
    y[1] = -100
    rescale = torch.tensor([0.5, 2.0, 1.0]).double()
    options = {"margin": 0.5, "upper_margin": 0.5, "scale": 9.0, "reduction": reduction, "weight": rescale}
    loss, plain = (MagFaceLoss(4, 3, **options, norm_weight=weight).double() for weight in (35.0, 0.0))
    plain.load_state_dict(loss.state_dict())
    added = loss(x, y) - plain(x, y)
    (gradient,) = torch.autograd.grad(added.sum(), x)
    terms = [reference.magface_penalty(length, 10.0, 110.0) for length in x.norm(dim=1).tolist()]
    share = torch.where(y == -100, 0, rescale[y.clamp(min=0)])
    divisor = share.sum() if reduction == "mean" else 1
    values = 35 * share * torch.tensor([value for value, _ in terms]).double() / divisor
    torch.testing.assert_close(added, values if reduction == "none" else values.sum())
    slopes = 35 * share * torch.tensor([slope for _, slope in terms]).double() / divisor
    torch.testing.assert_close(gradient, slopes[:, None] * F.normalize(x.detach()))
    assert [math.copysign(1, s) for _, s in terms if abs(s) > 1e-9] == [-1, -1, -1, -1, 1]


@given(seed=seeds, shape=shapes, margin=st.floats(0, 1.5), quality=st.sampled_from([-1.0, 0.0, 1.0]))
def test_adaface_is_arcface_for_poor_cosface_for_mean_and_the_reverse_for_good_embeddings(seed, shape, margin, quality):
    x, w, y = problem(seed, shape)
    x = (20.0 * F.normalize(x.detach())).requires_grad_()
    assume((F.cosine_similarity(x, w[y]).clamp(-1, 1).acos() - margin).abs().min() > 1e-3)
    assume((F.cosine_similarity(x, w[y]).clamp(-1, 1).acos() + margin - math.pi).max() < 0)
    loss = AdaFaceLoss(*shape[1:], margin=margin, concentration=1.0, scale=9.0).double()
    loss.norm_mean.fill_(20.0 - 5 * quality)
    loss.norm_std.fill_(1.0)

    def closed_form(x, w):
        c = F.normalize(x) @ F.normalize(w).T
        own = c.gather(1, y[:, None])
        theta = torch.where(own.abs() < 1, own.clamp(-0.999999999, 0.999999999), own.detach()).acos()
        p = {
            -1.0: torch.cos(theta + margin),
            0.0: own - margin,
            1.0: torch.where(theta > margin, torch.cos(theta - margin), 1) - 2 * margin,
        }[quality]
        return F.cross_entropy(9 * c.scatter(1, y[:, None], p), y)

    assume(F.cosine_similarity(x, w[y]).abs().max() < 0.9999)
    assert_same(on(loss, y), closed_form, x, w)


@pytest.mark.parametrize(("kind", "plain"), [("arc", ArcFaceLoss), ("cos", CosFaceLoss)])
def test_elasticface_without_deviation_is_arcface_or_cosface(kind, plain):
    x, w, y = problem(4, (9, 5, 6))
    elastic = ElasticFaceLoss(5, 6, kind=kind, margin=0.4, std=0.0).double()
    call = lambda x, w: torch.func.functional_call(elastic, {"weight": w}, (x, y))  # noqa: E731
    assert_same(call, on(plain(5, 6, margin=0.4), y), x, w)
    assert elastic.scale == plain(5, 6, margin=0.4).scale


@pytest.mark.parametrize("kind", ["arc", "cos"])
def test_elasticface_draws_each_rows_margin_from_the_generator(kind):
    x, w, _ = problem(4, (6, 5, 6))
    y = torch.arange(6)
    elastic = ElasticFaceLoss(5, 6, kind=kind, margin=0.4, std=0.1, generator=torch.Generator().manual_seed(3)).double()
    margins = (0.4 + 0.1 * torch.randn(6, generator=torch.Generator().manual_seed(3))).double()
    plain = similarity_loss(x, w, y, (ArcFace if kind == "arc" else CosFace)(margins), scale=elastic.scale)
    torch.testing.assert_close(torch.func.functional_call(elastic, {"weight": w}, (x, y)), plain)
    plain = similarity_loss(x, w, y, (ArcFace if kind == "arc" else CosFace)(0.4), scale=elastic.scale)
    torch.testing.assert_close(torch.func.functional_call(elastic.eval(), {"weight": w}, (x, y)), plain)


@given(classes=st.integers(1, 50), seed=seeds)
def test_adacos_is_normface_with_the_papers_scale(classes, seed):
    x, w, y = problem(seed, (5, 4, classes))
    scale = math.sqrt(2) * math.log(max(classes - 1, 2))
    fixed = AdaCosLoss(4, classes, dynamic=False)
    assert fixed.scale == scale > 0 and AdaCosLoss(4, classes).scale.item() == pytest.approx(scale)
    assert_same(on(fixed, y), on(NormFaceLoss(4, classes, scale=scale), y), x, w)


@given(seed=seeds, shape=st.tuples(st.integers(1, 9), st.integers(2, 8), st.integers(3, 12)))
def test_adacos_moves_its_scale_as_the_paper_says(seed, shape):
    x, w, y = problem(seed, shape, torch.float64)
    loss = AdaCosLoss(*shape[1:]).double()
    loss.weight.data = w.detach()
    scale = loss.scale.item()
    for _ in range(3):
        cosines = F.normalize(x.detach()) @ F.normalize(w.detach()).T
        scale = max(reference.adacos_scale(cosines, y, scale), math.sqrt(2) * math.log(2))
        value = loss(x, y)
        assert loss.scale.item() == pytest.approx(scale, rel=1e-6)
        torch.testing.assert_close(value, F.cross_entropy(scale * cosines, y))


def test_adacos_stays_finite_where_all_embeddings_lie_on_other_classes():
    loss, x = AdaCosLoss(3, 5), torch.ones(4, 3, requires_grad=True)
    loss.weight.data.fill_(1.0)
    loss.weight.data[0] = -1.0
    for _ in range(300):
        (gradient,) = torch.autograd.grad(loss(x, torch.zeros(4, dtype=torch.int64)), x)
    assert loss.scale == 1000 and gradient.isfinite().all()


def test_magface_in_float16_has_infinite_gradients_at_worst_which_loss_scaling_takes_for_what_they_are():
    loss = MagFaceLoss(2, 3, lower_norm=1e-3, upper_norm=2e-3, scale=1e4)
    x = torch.tensor([[1e-4, 1e-4]], dtype=torch.float16, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(x, torch.tensor([1])), x)
    assert gradient.dtype == torch.float16 and gradient.isinf().any() and not gradient.isnan().any()


@pytest.mark.parametrize("classes", [1, 2])
def test_adacos_keeps_a_scale_above_zero_with_two_classes(classes):
    loss = AdaCosLoss(4, classes)
    for _ in range(5):
        loss(torch.randn(6, 4), torch.arange(6) % classes)
    assert loss.scale.item() >= math.sqrt(2) * math.log(2) - 1e-6
    assert loss.scale.isfinite()


def test_arcface_past_pi_is_as_chosen():
    margin, theta = 0.5, torch.tensor([1.0, 2.0, 2.6, 2.7, 3.1], dtype=torch.float64)
    added = torch.cos(theta + margin)
    expected = {
        "linear": torch.where(theta + margin < math.pi, added, theta.cos() - margin * math.sin(margin)),
        "easy_margin": torch.where(theta < math.pi / 2, added, theta.cos()),
        "none": added,
    }
    for past_pi, wanted in expected.items():
        loss = ArcFaceLoss(2, 2, margin=margin, past_pi=past_pi)
        torch.testing.assert_close(loss.similarity.positive(theta.cos(), (margin,)), wanted)
    with pytest.raises(ValueError, match="past_pi: 'wrap' is not one of 'linear', 'easy_margin', 'none'"):
        ArcFaceLoss(2, 2, past_pi="wrap")


# State

STATEFUL = {
    "adacos": lambda: AdaCosLoss(4, 6),
    "curricularface": lambda: CurricularFaceLoss(4, 6),
    "adaface": lambda: AdaFaceLoss(4, 6),
    "sphereface": lambda: SphereFaceLoss(4, 6),
    "scheduled": lambda: CSSoftmaxLoss(4, 6, margin=Schedule(0.0, 0.3, 4, "cosine"), scale=Schedule(8.0, 16.0, 3)),
    "center": lambda: CenterLoss(4, 6),
}


def batch(seed, n=8):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=g), torch.randint(6, (n,), generator=g)


def buffers(loss):
    return {name: buffer.clone() for name, buffer in loss.named_buffers()}


@pytest.mark.parametrize("name", STATEFUL)
def test_evaluation_does_not_move_the_state_and_training_does(name):
    loss = STATEFUL[name]()
    before = buffers(loss)
    loss.eval()(*batch(0))
    torch.testing.assert_close(buffers(loss), before, rtol=0, atol=0)
    loss.train()(*batch(0))
    assert all((before[name] != buffer).any() for name, buffer in buffers(loss).items())
    assert not any(buffer.requires_grad for buffer in loss.buffers())


@pytest.mark.parametrize("name", STATEFUL)
def test_a_resumed_training_is_the_uninterrupted_one(name):
    whole, values = STATEFUL[name](), []
    start = copy.deepcopy(whole.state_dict())
    for step in range(6):
        values.append(whole(*batch(step)))
    first, second = STATEFUL[name](), STATEFUL[name]()
    first.load_state_dict(start)
    for step in range(3):
        assert first(*batch(step)) == values[step]
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        assert second(*batch(step)) == values[step]
    torch.testing.assert_close(buffers(second), buffers(whole), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adacos", "curricularface", "adaface", "center"])
def test_rows_that_do_not_count_leave_the_statistics_alone(name):
    x, y = batch(1)
    y[2] = y[5] = -100
    loss, kept = STATEFUL[name](), STATEFUL[name]()
    kept.load_state_dict(loss.state_dict())
    torch.testing.assert_close(loss(x, y), kept(x[y >= 0], y[y >= 0]))
    torch.testing.assert_close(buffers(loss), buffers(kept))
    before = buffers(loss)
    loss(x, torch.full_like(y, -100))
    torch.testing.assert_close(buffers(loss), before, rtol=0, atol=0)
    x[3] = math.inf  # as an overflowing fp16 step leaves behind, which the gradient scaler skips
    x[4] = math.nan
    loss(x, y)
    assert all(buffer.isfinite().all() for buffer in loss.buffers())


@pytest.mark.parametrize("name", STATEFUL)
def test_two_forwards_may_come_before_one_backward(name):
    loss, (x, y) = STATEFUL[name](), batch(2)
    x.requires_grad_()
    (loss(x, y) + loss(x, y.flip(0))).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", ["adacos", "curricularface", "adaface", "center"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_moves_the_state_in_float32(name, half):
    loss, (x, y) = STATEFUL[name](), batch(3)
    exact = copy.deepcopy(loss).double()
    exact(x.to(half).double(), y)
    with torch.autocast("cpu", dtype=half):
        value = loss(x.to(half), y)
    assert value.dtype == torch.float32
    for got, wanted in zip(loss.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_running_statistics_follow_their_papers():
    x, y = batch(4)
    own = F.cosine_similarity(x, (loss := CurricularFaceLoss(4, 6)).weight[y]).mean().item()
    loss(x, y)
    assert loss.t.item() == pytest.approx(0.01 * own)
    loss(x, y)
    assert loss.t.item() == pytest.approx(0.01 * own + 0.99 * 0.01 * own)
    loss = AdaFaceLoss(4, 6, momentum=0.25)
    loss(x, y)
    norm = x.norm(dim=1)
    assert loss.norm_mean.item() == pytest.approx(0.75 * 20 + 0.25 * norm.mean().item())
    assert loss.norm_std.item() == pytest.approx(0.75 * 100 + 0.25 * norm.std().item())
    deviation = loss.norm_std.clone()
    loss(x[:1], y[:1])
    assert loss.norm_std == deviation


def test_spherefaces_annealing_is_the_authors():
    loss = SphereFaceLoss(4, 6)
    for step in range(5):
        assert loss.annealing.item() == pytest.approx(1000 / (1 + 0.12 * step), rel=1e-3)
        loss(*batch(step))
    loss.step.fill_(3000)
    loss(*batch(0))
    assert loss.annealing == 5


def test_state_is_the_same_in_two_processes(tmp_path):
    """Each sees half of the batch, or one of them nothing that counts: the statistics are the whole batch's."""
    script = Path(__file__).with_name("two_processes.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=150)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(first["apart"], second["apart"], rtol=0, atol=0)
    torch.testing.assert_close(first["apart"], first["together"], rtol=1e-5, atol=1e-6)


# Schedules


@pytest.mark.parametrize("shape", ["linear", "cosine", "inverse"])
def test_a_schedule_goes_from_start_to_end_and_stays(shape):
    schedule = Schedule(8.0, 2.0, 10, shape)
    values = schedule.at(torch.arange(15))
    assert values[0] == 8 and (values[10:] == 2).all() and (values[:11].diff() < 0).all()
    middle = {"linear": 5.0, "cosine": 5.0, "inverse": 8 / 2.5}[shape]
    assert values[5].item() == pytest.approx(middle)


@pytest.mark.parametrize("family", SCALED)
def test_margin_and_scale_may_be_scheduled_in_every_loss(family):
    signature = inspect.signature(family).parameters
    factor = next((name for name in ("margin", "relaxation") if name in signature), None)
    ends = (0.1, 0.3)
    scheduled = {factor: Schedule(*ends, 2)} if factor else {}
    loss = family(4, 6, scale=Schedule(8.0, 12.0, 4), **scheduled)
    loss.weight.data.copy_(torch.randn(loss.weight.shape, generator=torch.Generator().manual_seed(0)))
    for step in range(4):
        share = min(step / 2, 1)
        now = {factor: ends[0] * (1 - share) + ends[1] * share} if factor else {}
        fixed = family(4, 6, scale=8.0 + step, **now)
        fixed.load_state_dict({name: v for name, v in loss.state_dict().items() if name in fixed.state_dict()})
        torch.testing.assert_close(loss.eval()(*batch(step)), fixed.eval()(*batch(step)), rtol=1e-5, atol=1e-6)
        loss.train()(*batch(step))
    assert loss.step == 4


def test_spherefaces_margin_may_be_scheduled():
    loss = SphereFaceLoss(4, 6, margin=Schedule(1.0, 4.0, 2), annealing=0.0)
    x, y = batch(0)
    values = [loss(x, y).item() for _ in range(3)]
    assert values[0] == pytest.approx(F.cross_entropy(x @ F.normalize(loss.weight).T, y).item(), rel=1e-5)
    assert values[0] < values[1] < values[2]


def test_the_default_scale_is_that_of_the_schedules_end():
    assert CosFaceLoss(4, 6, margin=Schedule(0.0, 0.3, 9)).scale == CosFaceLoss(4, 6, margin=0.3).scale


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.0, math.inf, 3), ValueError, "end: inf is not finite"),
        (("0", 1.0, 3), TypeError, "start: a number is needed, got str"),
        ((0.0, 1.0, 0), ValueError, "steps: 0 is below 1"),
        ((0.0, 1.0, 2.5), TypeError, "steps: an integer >= 1 is needed, got float"),
        ((0.0, 1.0, 3, "cubic"), ValueError, "shape: 'cubic' is not one of 'linear', 'cosine', 'inverse'"),
        ((0.0, 1.0, 3, "inverse"), ValueError, "start: 0.0 is not > 0"),
    ],
)
def test_wrong_schedules_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Schedule(*arguments)


def test_the_ends_of_a_schedule_must_be_in_range():
    with pytest.raises(ValueError, match=r"margin: 1.5 is outside \[0, 1\)"):
        CSSoftmaxLoss(4, 6, margin=Schedule(0.0, 1.5, 3))
    with pytest.raises(ValueError, match="scale: -1.0"):
        CSSoftmaxLoss(4, 6, scale=Schedule(8.0, -1.0, 3))


# Settings, as a run's files hold them


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_built_again_from_its_settings_as_json(name):
    loss = build(name, 4, 6)
    settings = json.loads(json.dumps(settings_of(loss)))
    twin = build(name, 4, 6, **settings)
    assert repr(twin) == repr(loss) and settings_of(twin) == settings_of(loss)


def test_schedules_and_margins_per_class_go_through_json():
    loss = build("cosface", 4, 3, margin={"start": 0.0, "end": 0.3, "steps": 5}, scale=9.0)
    assert settings_of(loss)["margin"] == {"start": 0.0, "end": 0.3, "steps": 5, "shape": "linear"}
    assert build("cosface", 4, 3, margin=[0.1, 0.25, 0.5]).margin.tolist() == pytest.approx([0.1, 0.25, 0.5])
    with pytest.raises(ValueError, match="margin: .* is no schedule: steps: 0 is below 1"):
        build("cosface", 4, 3, margin={"start": 0.0, "end": 0.3, "steps": 0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SphereFaceLoss(4, 3, margin=0.5), r"margin: 0.5 is outside \[1, inf\)"),
        (lambda: SphereFaceLoss(4, 3, annealing=-1.0), "annealing: -1.0"),
        (lambda: MagFaceLoss(4, 3, upper_margin=2.0), "upper_margin: 2.0 is outside"),
        (lambda: MagFaceLoss(4, 3, lower_norm=9.0, upper_norm=3.0), "lower_norm: 9.0 is not below upper_norm, 3.0"),
        (lambda: AdaFaceLoss(4, 3, momentum=1.5), r"momentum: 1.5 is outside \[0, 1\]"),
        (lambda: AdaFaceLoss(4, 3, concentration=-1.0), "concentration: -1.0"),
        (lambda: ElasticFaceLoss(4, 3, std=-0.1), "std: -0.1"),
        (lambda: ElasticFaceLoss(4, 3, kind="sin"), "kind: 'sin' is not one of 'arc', 'cos'"),
        (lambda: CenterLoss(4, 3, alpha=2.0), "alpha: 2.0"),
        (lambda: CenterLoss(0, 3), "in_features: 0 is below 1"),
    ],
)
def test_wrong_factors_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_adacos_takes_no_scale():
    with pytest.raises(TypeError, match="scale: AdaCos finds its own"):
        AdaCosLoss(4, 3, scale=9.0)


# Center loss


@given(seed=seeds, shape=shapes, alpha=factors)
def test_center_loss_and_its_centers_follow_the_paper(seed, shape, alpha):
    x, centers, y = problem(seed, shape)
    loss = CenterLoss(*shape[1:], alpha=alpha, reduction="none", dtype=torch.float64)
    loss.centers.copy_(centers.detach())
    values = loss(x, y)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    expected = reference.center_loss(x.detach(), y, centers.detach(), alpha)
    for got, wanted in zip((values, gradient, loss.centers), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    assert not list(loss.parameters())


def test_center_loss_reduces_and_ignores_as_the_others_do():
    x, y = batch(0)
    y[3] = -100
    rows = CenterLoss(4, 6, reduction="none")(x, y)
    assert rows[3] == 0
    torch.testing.assert_close(CenterLoss(4, 6)(x, y), rows.sum() / 7)
    torch.testing.assert_close(CenterLoss(4, 6, reduction="sum")(x, y), rows.sum())
    assert CenterLoss(4, 6, reduction="sum")(x[:0], y[:0]) == 0
    with pytest.raises(ValueError, match="empty batch"):
        CenterLoss(4, 6)(x[:0], y[:0])
    with pytest.raises(IndexError, match=r"target: label 7 in row 0 is outside 0\.\.5"):
        CenterLoss(4, 6)(x, torch.full_like(y, 7))


@pytest.mark.parametrize("family", FAMILY)
def test_center_loss_is_added_to_any_other(family):
    x, y = batch(0)
    x.requires_grad_()
    loss, center = family(4, 6).eval(), CenterLoss(4, 6).eval()
    (alone,) = torch.autograd.grad(loss(x, y), x)
    (both,) = torch.autograd.grad(loss(x, y) + 0.5 * center(x, y), x)
    torch.testing.assert_close(both, alone + 0.5 * (x - center.centers[y]).detach() / len(y))


@pytest.mark.parametrize("name", LOSSES)
def test_a_margin_that_rises_begins_with_none_and_ends_as_it_is(name):
    whole, risen = build(name, 8, 5), build(name, 8, 5, **warmed_up(name, {}, 4))
    rising = {"margin", "upper_margin", "relaxation"} & inspect.signature(LOSSES[name]).parameters.keys()
    if not rising or name == "sphereface":
        assert settings_of(risen) == settings_of(whole)
        return
    risen.weight.data.copy_(whole.weight.data)
    assert risen.scale == whole.scale
    x, y = 20 * torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
    own = (name, 8, 5)
    none = build(*own, **{"relaxation": 0.5} if name == "circle" else dict.fromkeys(rising, 0.0), scale=whole.scale)
    none.weight.data.copy_(whole.weight.data)
    torch.testing.assert_close(risen.eval()(x, y), none.eval()(x, y))
    risen.train()
    for _ in range(4):
        risen(x, y)
    whole.load_state_dict(risen.state_dict(), strict=False)  # what else moves in training
    torch.testing.assert_close(risen.eval()(x, y), whole.eval()(x, y))


def test_no_margin_rises_that_is_a_schedule_or_differs_by_class():
    for margin in ({"start": 0.1, "end": 0.2, "steps": 7}, [0.1, 0.2, 0.3]):
        assert warmed_up("arcface", {"margin": margin, "scale": 9.0}, 5) == {"margin": margin, "scale": 9.0}
    assert warmed_up("arcface", {"margin": 0.2}, 0) == {"margin": 0.2}
