"""What the CPU engines owe besides values: second derivatives, memory, settings left alone, a choice by size."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from cssoftmax import CosFaceLoss, CSSoftmaxLoss, ElasticFaceLoss, MagFaceLoss, SoftmaxLoss
from cssoftmax.engine import chunked, compiled, eager, pick, products, triton
from cssoftmax.engine.compiled import build
from cssoftmax.functional import similarity_loss
from cssoftmax.losses import LOSSES as FAMILY
from cssoftmax.similarity import ArcFace, CosFace, CSSoftmax

CPU = ["fused", "compiled", "chunked"]
LOSSES = {
    "cs-softmax": lambda **options: CSSoftmaxLoss(5, 11, margin=0.3, weight_update=0.4, **options),
    "cosface": lambda **options: CosFaceLoss(5, 11, weight=torch.rand(11), label_smoothing=0.1, **options),
    "magface": lambda **options: MagFaceLoss(5, 11, **options),
    "softmax": lambda **options: SoftmaxLoss(5, 11, **options),
}


@pytest.fixture(params=CPU)
def engine(request, monkeypatch):
    """A CPU engine; chunked in blocks of few classes, of which few are kept."""
    monkeypatch.setattr(chunked, "BLOCK", 30)
    monkeypatch.setattr(chunked, "ROWS", 3)
    monkeypatch.setattr(chunked, "SPARE", 200)
    return request.param


def twins(name, engine, dtype=torch.float64):
    """The same loss by an engine and by eager, embeddings for each, labels."""
    torch.manual_seed(0)
    ours = LOSSES[name](implementation=engine, dtype=dtype).to(dtype)
    theirs = LOSSES[name](implementation="eager", dtype=dtype).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(9, 5, dtype=dtype)
    return ours, theirs, x.clone().requires_grad_(), x.clone().requires_grad_(), torch.randint(11, (9,))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_can_be_differentiated(engine, name):
    ours, theirs, x, z, y = twins(name, engine)
    penalties = []
    for loss, value in ((ours, x), (theirs, z)):
        (gradient,) = torch.autograd.grad(loss(value, y), value, create_graph=True)
        gradient.square().sum().backward()
        penalties.append((value.grad, loss.weight.grad))
    torch.testing.assert_close(*penalties)


@pytest.mark.parametrize("name", LOSSES)
def test_a_second_backward_pass_gives_the_same_bits(engine, name):
    ours, theirs, x, z, y = twins(name, engine)
    value = ours(x, y)
    first = torch.autograd.grad(value, (x, ours.weight), retain_graph=True)
    second = torch.autograd.grad(value, (x, ours.weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_margins_drawn_at_random_are_drawn_once_a_loss(engine):
    loss = ElasticFaceLoss(5, 11, std=0.2, implementation=engine, dtype=torch.float64)
    x, y = torch.randn(9, 5, dtype=torch.float64, requires_grad=True), torch.randint(11, (9,))
    torch.manual_seed(1)
    value = loss(x, y)
    (ours,) = torch.autograd.grad(value, x, retain_graph=True)
    (again,) = torch.autograd.grad(value, x)
    loss.implementation = "eager"
    torch.manual_seed(1)
    (theirs,) = torch.autograd.grad(loss(x, y), x)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(ours, again)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_add_up_over_batches(engine, reduction):
    ours, theirs, x, z, y = twins("cs-softmax", engine)
    for loss, value in ((ours, x), (theirs, z)):
        loss.reduction = reduction
        for part in (slice(0, 4), slice(4, 9)):
            result = loss(value[part], y[part])
            result.backward(torch.linspace(1, 2, len(result), dtype=result.dtype) if result.ndim else None)
    torch.testing.assert_close(x.grad, z.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("frozen", ["embeddings", "weight"])
def test_a_frozen_side_gets_no_gradient_and_changes_nothing_for_the_other(engine, frozen):
    ours, theirs, x, z, y = twins("cs-softmax", engine)
    for loss, value in ((ours, x), (theirs, z)):
        (value if frozen == "embeddings" else loss.weight).requires_grad_(False)
        loss(value, y).backward()
    torch.testing.assert_close(x.grad, z.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_torch_func_and_forward_mode_fall_back_to_eager(engine):
    ours, theirs, x, _, y = twins("cs-softmax", engine)
    call = lambda loss: lambda value: loss(value, y)  # noqa: E731
    torch.testing.assert_close(torch.func.grad(call(ours))(x), torch.func.grad(call(theirs))(x))
    torch.testing.assert_close(torch.func.hessian(call(ours))(x), torch.func.hessian(call(theirs))(x))
    tangent = torch.ones_like(x)
    torch.testing.assert_close(
        torch.func.jvp(call(ours), (x,), (tangent,)), torch.func.jvp(call(theirs), (x,), (tangent,))
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        assert torch.autograd.forward_ad.unpack_dual(ours(dual, y)).tangent is not None


def test_a_learned_scale_or_margin_gets_its_gradient(engine):
    _, _, x, _, y = twins("cs-softmax", engine)
    w = torch.randn(11, 5, dtype=torch.float64)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    margin = torch.full((11,), 0.2, dtype=torch.float64, requires_grad=True)
    similarity_loss(x, w, y, CosFace(margin), scale=scale, implementation=engine).backward()
    assert scale.grad.abs() > 0 and margin.grad.abs().sum() > 0


def test_compiled_with_the_surrounding_model_without_a_graph_break(engine):
    ours, theirs, x, _, y = twins("cs-softmax", engine, torch.float32)
    layer = nn.Linear(5, 5)
    compiled = torch.compile(lambda x: ours(layer(x), y), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), theirs(layer(x), y))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision_leave_the_products_in_float32(engine, half):
    ours, _, x, _, y = twins("cs-softmax", engine, torch.float32)
    x = x.detach().to(half)
    values = []
    for same in (x, x.float()):
        same.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=same.dtype == half):
            value = ours(same, y)
            value.backward()
        values.append((value.detach(), same.grad.float(), ours.weight.grad.clone()))
        ours.weight.grad = None
    torch.testing.assert_close(values[0][0], values[1][0], rtol=0, atol=0)
    torch.testing.assert_close(values[0][1], values[1][1], rtol=1e-2, atol=1e-2)  # the embeddings' gradient is half
    torch.testing.assert_close(values[0][2], values[1][2], rtol=0, atol=0)


def test_deterministic_mode_and_repeats_give_the_same_bits(engine):
    ours, _, x, _, y = twins("cs-softmax", engine, torch.float32)
    found = []
    for mode in (False, True, True):
        torch.use_deterministic_algorithms(mode)
        try:
            found.append(torch.autograd.grad(ours(x, y), (x, ours.weight)))
        finally:
            torch.use_deterministic_algorithms(False)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


def test_no_graph_means_no_memory_kept(engine):
    ours, theirs, x, _, y = twins("cs-softmax", engine)
    with torch.no_grad():
        value = ours(x, y)
    assert value.grad_fn is None
    torch.testing.assert_close(value, theirs(x, y).detach())


def test_class_weights_that_lie_across_memory_are_read_as_they_lie(engine):
    ours, theirs, x, z, y = twins("cs-softmax", engine)
    ours.weight = nn.Parameter(theirs.weight.detach().T.contiguous().T)
    assert not ours.weight.is_contiguous()
    for loss, value in ((ours, x), (theirs, z)):
        loss(value, y).backward()
    torch.testing.assert_close(x.grad, z.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_an_ignored_label_may_lie_among_or_beyond_the_classes(engine):
    _, _, x, _, y = twins("cs-softmax", engine)
    w = torch.randn(11, 5, dtype=torch.float64)
    for ignore_index in (3, 99):
        y[2] = ignore_index
        values = [
            similarity_loss(x, w, y, ArcFace(0.3), scale=9.0, ignore_index=ignore_index, implementation=implementation)
            for implementation in (engine, "eager")
        ]
        torch.testing.assert_close(*values)


@pytest.mark.parametrize("logit", [1e4, 1e-4])
def test_logits_far_apart_neither_overflow_nor_vanish(engine, logit):
    x, w = torch.tensor([[logit, 0.0]], requires_grad=True), torch.tensor([[1.0, 0], [-1, 0], [0.5, 1]])
    for label in range(3):
        values = [
            similarity_loss(x, w, torch.tensor([label]), CosFace(normalized="none"), scale=1.0, implementation=name)
            for name in (engine, "eager")
        ]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(value, x) for value in values))


@pytest.mark.parametrize("normalized", ["both", "weight", "none"])
@pytest.mark.parametrize("rows", [100, 1024])
@pytest.mark.parametrize("spare", [0, 2**17, 2**23])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bfloat16_products_come_within_one_percent_of_float64(monkeypatch, smoothing, spare, rows, normalized):
    """All rows, some, or none in spare memory; multiplied in one batch or in several."""
    monkeypatch.setattr(chunked, "BLOCK", 2**13)
    monkeypatch.setattr(chunked, "ROWS", rows)
    monkeypatch.setattr(chunked, "SPARE", spare)
    torch.manual_seed(0)
    x, w, y = torch.randn(300, 64), torch.randn(999, 64), torch.randint(999, (300,))
    if normalized != "both":
        x *= 0.3  # logits no larger than those of the scaled cosines: their rounding is relative
    bias = [0.1 * torch.randn(999)] if normalized == "none" else []
    values = []
    for options in ({"implementation": "chunked", "precision": "bf16"}, {"implementation": "eager"}):
        dtype = torch.float32 if "precision" in options else torch.float64
        sides = [side.to(dtype).requires_grad_() for side in (x, w, *bias)]
        options |= {"scale": 30.0 if normalized == "both" else 1.0, "label_smoothing": smoothing}
        options["bias"] = sides[2] if bias else None
        value = similarity_loss(*sides[:2], y, CSSoftmax(0.1, 0.25, normalized=normalized), **options)
        values.append((value.detach(), *torch.autograd.grad(value, sides)))
    for share, got, exact in zip((1e-3, 1e-2, 1e-2, 1e-2)[: len(values[0])], *values, strict=True):
        assert 0 < (got - exact).norm() <= share * exact.norm()


def test_a_bias_is_refused_where_cosines_are():
    x, y = torch.randn(3, 4), torch.arange(3)
    with pytest.raises(
        ValueError, match='bias: a cosine has none; leave it out, or take a similarity with normalized="none"'
    ):
        similarity_loss(x, x, y, CosFace(), scale=1.0, bias=torch.zeros(3))
    with pytest.raises(ValueError, match=r"bias: shape \(4,\) is not \(C,\) = \(3,\)"):
        similarity_loss(x, x, y, CosFace(normalized="none"), scale=1.0, bias=torch.zeros(4))


def test_a_precision_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="precision: 'fp8' is not one of 'float32', 'bf16'"):
        CSSoftmaxLoss(4, 3, precision="fp8")


# Products


def test_the_process_gets_its_settings_back_even_from_an_error():
    before = products.MATMUL.fp32_precision
    try:
        products.MATMUL.fp32_precision = "tf32"
        with pytest.raises(ZeroDivisionError), torch.autocast("cpu"), products.using("onednn"):
            raise ZeroDivisionError
        assert products.MATMUL.fp32_precision == "tf32"
        with torch.autocast("cpu"):
            with products.using("blas"):
                assert not torch.is_autocast_enabled("cpu")
            assert torch.is_autocast_enabled("cpu")
    finally:
        products.MATMUL.fp32_precision = before


def test_the_fastest_library_has_float32_accuracy():
    a, b = torch.randn(64, 512), torch.randn(512, 64)
    with products.using(products.fastest()):
        error = (a @ b - a.double() @ b.double()).abs().max()
    assert error < 1e-4


def test_a_library_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="CSSOFTMAX_MATMUL: 'cublas' is not one of 'blas', 'onednn'"):
        products.using("cublas")


# Memory and choice


def test_the_matrix_never_stands_in_memory(monkeypatch):
    """Rows that fit in the gradient of the class weights or in spare memory are kept there, others nowhere."""
    largest = 0
    empty = torch.Tensor.new_empty

    def spy(self, *size, **options):
        nonlocal largest
        made = empty(self, *size, **options)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(torch.Tensor, "new_empty", spy)
    monkeypatch.setattr(chunked, "BLOCK", 2**12)
    monkeypatch.setattr(chunked, "SPARE", 2**14)
    x, w = torch.randn(64, 16, requires_grad=True), torch.randn(3001, 16, requires_grad=True)
    chunked.loss(
        x,
        w,
        None,
        torch.randint(3001, (64,)),
        CSSoftmax(0.1, 0.25),
        scale=9.0,
        class_weight=None,
        ignore_index=-100,
        reduction="mean",
        label_smoothing=0.0,
    ).backward()
    assert largest < 64 * 3001 / 10


def test_auto_keeps_a_small_matrix_whole_and_cuts_a_large_one():
    x = torch.randn(256, 4)
    assert pick("auto", x, 100) is compiled.loss
    assert pick("auto", x, 100_000) is chunked.loss
    assert pick("auto", x, 10_000, "bf16") is pick("auto", x.double(), 10_000) is chunked.loss
    assert pick("auto", x, 10_000) is (compiled.loss if build.suits(x) else chunked.loss)
    assert pick("eager", x, 100_000) is eager.loss
    assert pick("auto", x.to("meta"), 10) is eager.loss


@pytest.mark.parametrize("installed", [True, False])
def test_auto_takes_the_gpu_kernels_for_a_large_matrix_where_triton_is_installed(installed, monkeypatch):
    monkeypatch.setattr(triton, "INSTALLED", installed)
    on_gpu = SimpleNamespace(shape=(256, 4), device=torch.device("cuda"))  # no such tensor can be made here
    assert pick("auto", on_gpu, 100_000) is (triton.loss if installed else eager.loss)
    assert pick("auto", on_gpu, 100) is eager.loss


@pytest.mark.parametrize("name", FAMILY)
def test_a_step_on_a_gpu_waits_for_nothing(name, monkeypatch):
    """On stand-in tensors, which have no values: whatever asks for one, and so would wait for the device, fails."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # labels are checked as on a GPU
    loss = FAMILY[name](5, 11)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, y = torch.randn(6, 5, requires_grad=True), torch.zeros(6, dtype=torch.int64)
        loss(x, y).backward()
        assert x.grad.shape == x.shape
        with pytest.raises(DataDependentOutputException):
            int(y.max())


@pytest.mark.parametrize("engine", ["eager", "fused", "compiled", "chunked"])
def test_results_are_the_same_by_one_two_and_more_threads(engine):
    """The loss to its last bit but one, gradients to six digits of the largest: sums are added in another order."""
    torch.manual_seed(0)
    x, w, y = torch.randn(300, 16, requires_grad=True), torch.randn(400, 16, requires_grad=True), torch.arange(300)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            value = similarity_loss(x, w, y, CSSoftmax(0.2, 0.25), scale=12.0, implementation=engine)
            found.append((value.detach(), *torch.autograd.grad(value, (x, w))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(other[0], found[0][0], rtol=2e-7, atol=0)
        for got, wanted in zip(other[1:], found[0][1:], strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6 * wanted.abs().max().item())
