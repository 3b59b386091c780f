"""Facts of the family: reductions, invariances, margins, PyTorch's meaning of options, hard inputs, errors."""

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import cssoftmax
from cssoftmax import ArcFaceLoss, CircleLoss, CosFaceLoss, CSSoftmaxLoss, NormFaceLoss, SoftmaxLoss, SOSoftmaxLoss
from cssoftmax.functional import cs_softmax_loss, similarity_loss
from cssoftmax.losses import LOSSES, PATIENCE, build
from cssoftmax.similarity import CosFace, CSSoftmax, SOSoftmax

FAMILY = [CSSoftmaxLoss, SoftmaxLoss, NormFaceLoss, CosFaceLoss, ArcFaceLoss, CircleLoss, SOSoftmaxLoss]
COSINE = [loss for loss in FAMILY if loss is not SoftmaxLoss]
DTYPES = [torch.float32, torch.float64]

seeds = st.integers(0, 2**31)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 15))
scales = st.floats(0.5, 64)
margins = st.floats(0, 0.95)
factors = st.floats(0, 1)


def problem(seed, shape, dtype=torch.float64):
    n, d, c = shape
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g, dtype=dtype, requires_grad=True)
    w = torch.randn(c, d, generator=g, dtype=dtype, requires_grad=True)
    return x, w, torch.randint(c, (n,), generator=g)


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


# Invariances and shape of the loss


@pytest.mark.parametrize("family", COSINE)
@given(seed=seeds, shape=shapes, length_x=st.floats(1e-3, 1e3), length_w=st.floats(1e-3, 1e3))
def test_lengths_do_not_matter(family, seed, shape, length_x, length_w):
    x, w, y = problem(seed, shape)
    loss = family(shape[1], shape[2], dtype=torch.float64)
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
    loss = family(5, 6, dtype=torch.float64, scale=4.0) if family is not SoftmaxLoss else family(5, 6).double()
    if family in (CSSoftmaxLoss, CircleLoss):  # constants in the backward pass: not the derivative of the value
        loss = CSSoftmaxLoss(5, 6, margin=0.3, weight_update=0.4, detach_update=False, scale=4.0, dtype=torch.float64)
    call = lambda x, w: torch.func.functional_call(loss, {"weight": w}, (x, y))  # noqa: E731
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
    loss = family(6, 4, weight=rescale, **options)
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


@pytest.mark.parametrize("family", COSINE)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_loss_in_float32(family, half):
    torch.manual_seed(0)
    x, y = torch.randn(64, 32).to(half), torch.randint(50, (64,))
    loss = family(32, 50, scale=64.0)
    exact = copy.deepcopy(loss).double()(x.double(), y)
    with torch.autocast("cpu", dtype=half):
        value = loss(x, y)
        naive = F.cross_entropy(64 * F.linear(F.normalize(x), F.normalize(loss.weight)), y)
    assert value.dtype == torch.float32
    assert loss.weight.dtype == torch.float32
    assert abs(value - exact) / exact < 1e-6
    assert naive.dtype == torch.float32  # PyTorch's own cross entropy; its logits came in half precision


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
    value = loss(x, torch.arange(len(x)) % len(w))
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
    with pytest.raises(ValueError, match="weight_update: cosface has no such setting; it has .*margin"):
        build("cosface", 4, 3, weight_update=0.5)


# The commonest mistake


def steps(loss, parameters, count):
    network = nn.Linear(6, 4)
    optimizer = torch.optim.SGD([*network.parameters(), *parameters], lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        loss(network(torch.randn(8, 6)), torch.randint(3, (8,))).backward()
        optimizer.step()


@pytest.mark.parametrize("family", FAMILY)
def test_class_weights_left_out_of_the_optimizer_are_noticed_once(family):
    loss = family(4, 3)
    with pytest.warns(UserWarning, match="did not change") as caught:
        steps(loss, [], 3 * PATIENCE)
    assert len(caught) == 1
    assert family.__name__ in str(caught[0].message)


@pytest.mark.parametrize("family", FAMILY)
def test_class_weights_in_the_optimizer_are_not_complained_about(family):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = family(4, 3)
        steps(loss, loss.parameters(), 2 * PATIENCE)
        frozen = family(4, 3).requires_grad_(False)
        steps(frozen, [], 2 * PATIENCE)


# Life as a module


@pytest.mark.parametrize("name", LOSSES)
def test_state_copies_and_moves(name, tmp_path):
    loss = build(name, 4, 3)
    x, y = torch.randn(5, 4), torch.randint(3, (5,))
    twin = build(name, 4, 3)
    twin.load_state_dict(loss.state_dict())
    assert twin(x, y) == loss(x, y) == copy.deepcopy(loss)(x, y)
    assert loss.double()(x, y).dtype == torch.float64
    assert loss.weight.shape == (3, 4)
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
    loss = family.from_linear(linear)
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


# The rule for the scale


@given(c=st.integers(2, 100_000), margin=margins, u=factors)
def test_default_scale_gives_a_perfect_embedding_its_probability(c, margin, u):
    c = min(c, 2000)
    loss = CSSoftmaxLoss(c, c, margin=margin, weight_update=u, dtype=torch.float64)
    loss.weight.data = torch.eye(c, dtype=torch.float64)
    value = loss(loss.weight[:1], torch.tensor([0])).item()
    assert math.exp(-value) == pytest.approx(0.999, abs=1e-9)
