"""The GPU engine, in Triton's interpreter: its tiles, its translation of similarities, and what it leaves to eager."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cssoftmax import similarity as family
from cssoftmax.engine import eager
from cssoftmax.engine import triton as engine
from cssoftmax.functional import similarity_loss
from cssoftmax.similarity import CosFace, CSSoftmax, SOSoftmax

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # the interpreter's, at log(0) and the like

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Leaky:
    """A user's own similarity: two row parameters, a condition, an exponential."""

    sharpness: float = 1.5
    normalized: str = "both"

    def rows(self, own, norm, target):
        return own.detach() * 0.5, 0.25

    def positive(self, own, rows):
        return own - 0.1

    def negative(self, c, rows):
        start, leak = rows
        return torch.where(c > start, torch.exp(self.sharpness * (c - start)) - 1, leak * (c - start))

    def negative_slope(self, c, rows):
        start, leak = rows
        return torch.where(c > start, self.sharpness * torch.exp(self.sharpness * (c - start)), leak)


def odd(negative):
    """CosFace with another N, a function of the cosines."""
    return type("Odd", (CosFace,), {"negative": lambda self, c, rows: negative(c)})()


def draw(n, d, c, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n + 100 * d + 10_000 * c)
    x = torch.randn(n, d, generator=generator).to(dtype)
    w = torch.randn(c, d, generator=generator).to(dtype)
    return x.requires_grad_(), w.requires_grad_(), torch.randint(c, (n,), generator=generator)


def both(x, w, y, similarity, bias=None, **options):
    """Value and gradients by the GPU engine, and by eager in float64."""
    results = []
    for implementation, dtype in (("triton", None), ("eager", torch.float64)):
        inputs = [v.detach().to(dtype or v.dtype).requires_grad_() for v in (x, w, bias) if v is not None]
        value = similarity_loss(
            *inputs[:2],
            y,
            similarity,
            bias=None if bias is None else inputs[2],
            implementation=implementation,
            **options,
        )
        results.append((value.detach(), *torch.autograd.grad(value.sum(), inputs)))
    return zip(*results, strict=True)


def assert_near(pairs, tolerance):
    for got, wanted in pairs:
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=tolerance * max(wanted.abs().max().item(), 0.1))


@pytest.mark.parametrize(("n", "d", "c"), [(16, 16, 16), (17, 33, 65), (1, 1, 1), (3, 20, 130)])
def test_sizes_at_and_beyond_the_edge_of_a_tile(n, d, c):
    x, w, y = draw(n, d, c)
    y[0] = -100 if n > 1 else 0
    margin = torch.linspace(0, 0.6, c)
    options = {"scale": 4.0, "label_smoothing": 0.1, "class_weight": torch.linspace(0.5, 2, c)}
    assert_near(both(x, w, y, CSSoftmax(margin, 0.4, detach_update=False), **options), 1e-5)


@pytest.mark.parametrize("normalized", ["both", "weights", "none"])
def test_every_normalization_with_lengths_far_from_one(normalized):
    x, w, y = draw(5, 7, 20)
    bias = torch.linspace(-1, 1, 20) if normalized == "none" else None
    similarity = CosFace(0.2, normalized=normalized)
    scale = 1.0 if bias is not None else 8.0
    assert_near(both(3 * x, 0.2 * w, y, similarity, bias, scale=scale, label_smoothing=0.2), 1e-5)


def test_strided_inputs_and_a_scale_that_is_a_tensor():
    x, w, y = draw(40, 6, 30)
    transposed = w.detach().T.contiguous().T
    assert_near(both(x.detach()[::2], transposed, y[::2], SOSoftmax(0.3), scale=torch.tensor(9.0)), 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_half_precision_inputs_lose_no_more_than_their_own_rounding(dtype, tolerance):
    x, w, y = draw(20, 24, 40, dtype)
    pairs = list(both(x, w, y, CSSoftmax(0.1, 0.25), scale=20.0))
    assert [got.dtype for got, _ in pairs] == [torch.float32, dtype, dtype]
    assert_near(pairs[:1], 1e-5)  # the products of half-precision numbers are exact
    assert_near(pairs[1:], tolerance)


def test_bfloat16_products_of_float32_inputs():
    x, w, y = draw(20, 64, 40)
    values = []
    for loss, options in ((engine.loss, {"precision": "bf16"}), (eager.loss, {})):
        value = loss(x, w, None, y, CSSoftmax(0.1, 0.25), scale=16.0, class_weight=None, ignore_index=-100,
                     reduction="mean", label_smoothing=0.0, **options)  # fmt: skip
        values.append((value, *torch.autograd.grad(value, (x, w))))
    for k, (got, wanted) in enumerate(zip(*values, strict=True)):
        assert 0 < (got - wanted).norm() < (0.01 if k else 1e-3) * wanted.norm()


def test_nothing_outside_the_tensors_is_read_or_written(monkeypatch):
    """Every tensor lies between margins of NaN, or of labels far outside, which must neither spread nor change."""
    margins = []

    def guarded(shape, dtype):
        size, pad = torch.Size(shape).numel(), 4096
        poison = float("nan") if dtype.is_floating_point else 10**6
        around = torch.full((size + 2 * pad,), poison, dtype=dtype)
        margins.extend((around[:pad], around[-pad:]))
        return around[pad : pad + size].view(shape)

    def placed(tensor):
        return guarded(tensor.shape, tensor.dtype).copy_(tensor)

    x, w, y = (placed(v.detach()) for v in draw(19, 21, 35))
    x.requires_grad_()
    w.requires_grad_()
    bias, weight = placed(torch.randn(35)).requires_grad_(), placed(torch.rand(35))
    size = lambda shape: shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape  # noqa: E731
    monkeypatch.setattr(torch, "empty", lambda *s, **_: guarded(size(s), torch.float32))
    monkeypatch.setattr(torch, "empty_like", lambda v, **_: guarded(v.shape, v.dtype))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda v, *s, **_: guarded(size(s), v.dtype))
    value = similarity_loss(x, w, y, CosFace(normalized="none"), scale=1.0, bias=bias, class_weight=weight,
                            label_smoothing=0.1, implementation="triton")  # fmt: skip
    gradients = torch.autograd.grad(value, (x, w, bias))
    assert len(margins) > 2 * 9 and all(v.isfinite().all() for v in (value, *gradients))
    assert all(v.isnan().all() if v.is_floating_point() else (v == 10**6).all() for v in margins)


def members():
    """Every similarity there is, settings filled in."""
    for name, kind in vars(family).items():
        if dataclasses.is_dataclass(kind) and hasattr(kind, "negative_slope"):
            needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
            yield name, kind(**dict.fromkeys(needed, 0.3))
    yield "CSSoftmax, not detached", CSSoftmax(0.2, 0.7, detach_update=False)
    yield "CSSoftmax, u = 1", CSSoftmax(0.2, 1.0, detach_update=False)
    yield "CSSoftmax, u = 0", CSSoftmax(0.2, 0.0)
    yield "a user's own", Leaky()


@triton.jit
def apply(c, rows, out, FUNCTION: tl.constexpr):
    i = tl.arange(0, 16)
    place = i[:, None] * 16 + i[None, :]
    tl.store(out + place, FUNCTION(tl.load(c + place), rows, i, i < 16, 16))


@pytest.mark.parametrize(("name", "similarity"), list(members()), ids=lambda v: v if isinstance(v, str) else "")
def test_the_translation_computes_what_the_definition_does(name, similarity):
    c = torch.linspace(-1, 1, 16 * 16).view(16, 16)[:, torch.randperm(16)]
    own, norm, target = torch.linspace(-0.9, 0.9, 16), torch.linspace(5, 30, 16), torch.arange(16)
    rows = similarity.rows(own, norm, target)
    packed = torch.stack([torch.as_tensor(row, dtype=torch.float32).expand(16) for row in rows] or [own])
    functions = engine._kernels().compiled(engine.translate(similarity, len(rows)))
    for function, method in zip(functions, (similarity.negative, similarity.negative_slope), strict=True):
        got = torch.empty(16, 16)
        apply[(1,)](c, packed, got, function)
        wanted = method(c.double(), tuple(row[:, None].double() for row in packed[: len(rows)]))
        torch.testing.assert_close(got, wanted.float().expand(16, 16), rtol=1e-5, atol=1e-6)


def test_settings_are_translated_once_and_margins_not_at_all():
    assert engine.translate(CSSoftmax(0.1, 0.25), 1) is engine.translate(CSSoftmax(0.1, 0.25), 1)
    assert engine.translate(CSSoftmax(0.1, 0.25), 1) != engine.translate(CSSoftmax(0.1, 0.5), 1)
    assert engine.translate(CSSoftmax(torch.rand(3), 0.3), 1) is engine.translate(CSSoftmax(torch.rand(3), 0.3), 1)


def test_a_users_own_similarity_runs_in_the_kernels(monkeypatch):
    x, w, y = draw(18, 5, 20)
    pairs = both(x, w, y, Leaky(), scale=5.0)
    assert_near(pairs, 1e-5)
    monkeypatch.setattr(eager, "loss", None)
    similarity_loss(x, w, y, Leaky(), scale=5.0, implementation="triton")


@pytest.mark.parametrize(
    ("negative", "reason"),
    [
        (torch.special.i0, "i0.default has no translation"),
        (lambda c: c + torch.tensor([0.5]), "a tensor other than the cosines and the row parameters"),
        (lambda c: c if c.max() > 0 else -c, "does not run on stand-in tensors"),
        (lambda c: (c * 3).long().float(), "computes in torch.int64"),
        (lambda c: c.pow(5), "no translation for these arguments"),
        (lambda c: c.flip(1), "flip.default has no translation"),
        (lambda c: c - c.sum(1, keepdim=True), "sum.dim_IntList has no translation"),
    ],
)
def test_what_has_no_translation_runs_eagerly_and_says_so(negative, reason):
    x, w, y = draw(4, 5, 6)
    with pytest.warns(UserWarning, match=f"Odd: negative.*({reason}).*plain PyTorch"):
        value = similarity_loss(x, w, y, odd(negative), scale=2.0, implementation="triton")
    assert torch.equal(value, similarity_loss(x, w, y, odd(negative), scale=2.0, implementation="eager"))


def test_a_frozen_side_gets_no_gradient():
    x, w, y = draw(5, 4, 6)
    for frozen, other in ((x, w), (w, x)):
        frozen.requires_grad_(False)
        similarity_loss(x, w, y, CosFace(0.1), scale=2.0, implementation="triton").backward()
        assert frozen.grad is None and other.grad is not None
        frozen.requires_grad_()
        other.grad = None


def test_weights_changed_between_forward_and_backward_are_noticed():
    x, w, y = draw(3, 4, 5)
    value = similarity_loss(x, w, y, CosFace(), scale=2.0, implementation="triton")
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_gradients_can_be_differentiated():
    x, w, y = draw(6, 5, 7)
    results = []
    for implementation in ("triton", "eager"):
        value = similarity_loss(
            x, w, y, CSSoftmax(0.1, 0.5), scale=4.0, label_smoothing=0.1, implementation=implementation
        )
        gradients = torch.autograd.grad(value, (x, w), create_graph=True)
        results.append(torch.autograd.grad(sum(g.pow(2).sum() for g in gradients), (x, w)))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_functional_transforms_empty_batches_and_float64_are_left_to_eager():
    x, w, y = draw(4, 3, 5)
    call = lambda x, w, y, **o: similarity_loss(x, w, y, CosFace(0.1), scale=2.0, implementation="triton", **o)  # noqa: E731
    expected = torch.autograd.grad(call(x, w, y), x)[0]
    torch.testing.assert_close(torch.func.grad(call)(x.detach(), w.detach(), y), expected)
    assert call(x[:0], w, y[:0], reduction="sum") == 0
    assert call(x.double(), w, y).dtype == torch.float64


def test_without_triton_or_a_gpu_the_error_names_the_remedy(monkeypatch):
    x, w, y = draw(2, 3, 4)
    monkeypatch.setattr(engine._kernels(), "INTERPRETED", tl.constexpr(False))
    with pytest.raises(RuntimeError, match="needs tensors on a GPU, got cpu"):
        similarity_loss(x, w, y, CosFace(), scale=2.0, implementation="triton")
    monkeypatch.setattr(engine, "INSTALLED", False)
    with pytest.raises(RuntimeError, match=r"pip install .cssoftmax\[gpu\]"):
        similarity_loss(x, w, y, CosFace(), scale=2.0, implementation="triton")


def test_the_kernels_compile_for_a_hopper_gpu_with_its_matrix_instructions(tmp_path):
    pytest.importorskip("triton.backends.nvidia", reason="Triton without the NVIDIA compiler")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "tools/compile_kernels.py", "--smallest", "--types", "bfloat16"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    assert {line[0]: line[-1] for line in lines} == {
        "own_kernel": "fma",
        "forward_kernel": "wgmma",
        "left_kernel": "wgmma",
        "right_kernel": "wgmma",
    }


def test_importing_the_package_does_not_import_triton():
    code = "import sys, cssoftmax; assert not any(m.split('.')[0] == 'triton' for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a:UserWarning")
def test_a_compiled_training_step_gets_the_same_gradients():
    x, w, y = draw(5, 4, 6)

    def step(x, w):
        return similarity_loss(2 * x, w, y, CSSoftmax(0.1, 0.25), scale=3.0, implementation="triton")

    expected = torch.autograd.grad(step(x, w), (x, w))
    got = torch.autograd.grad(torch.compile(step, backend="aot_eager")(x, w), (x, w))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@triton.jit
def one_too_many(values, out, N):
    i = tl.arange(0, 8)
    tl.store(out + i, tl.load(values + i, mask=i <= N), mask=i < N)


@triton.jit
def one_written_too_many(values, out, N):
    i = tl.arange(0, 8)
    tl.store(out + i, tl.load(values + i, mask=i < N), mask=i <= N)


@pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="on a GPU compute-sanitizer tells")
@pytest.mark.parametrize(("kernel", "what"), [(one_too_many, "reads"), (one_written_too_many, "writes")])
def test_a_kernel_that_leaves_its_tensors_is_found(kernel, what):
    values = torch.arange(7.0)
    with pytest.raises(Exception, match=f"{what} 1 of 8 numbers outside") as caught:
        kernel[(1,)](values, torch.zeros(7), 7)
    assert "IndexError" in str(caught.value) or isinstance(caught.value, IndexError)
