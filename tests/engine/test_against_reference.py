"""Every engine, every loss, every option, against the plain float64 loops: values and gradients."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cssoftmax import reference
from cssoftmax.engine import IMPLEMENTATIONS, chunked, triton
from cssoftmax.functional import similarity_loss
from cssoftmax.similarity import (
    AdaFace,
    ArcFace,
    CosFace,
    CSSoftmax,
    CurricularFace,
    MagFace,
    SOSoftmax,
    SphereFace,
)

PAIRS = {
    "cs-softmax": lambda m, u: (CSSoftmax(m, u), reference.cs_softmax(u)),
    "cs-softmax, not detached": lambda m, u: (CSSoftmax(m, u, False), reference.cs_softmax(u, False)),
    "cs-softmax, u = 0": lambda m, u: (CSSoftmax(m, 0.0), reference.cs_softmax(0.0)),
    "circle": lambda m, u: (CSSoftmax(m, 1.0), reference.cs_softmax(1.0)),
    "so-softmax": lambda m, u: (SOSoftmax(m), reference.so_softmax()),
    "cosface": lambda m, u: (CosFace(m), reference.cosface()),
    "normface": lambda m, u: (CosFace(), reference.cosface()),
    "arcface": lambda m, u: (ArcFace(m), reference.arcface()),
    "arcface, easy margin": lambda m, u: (ArcFace(m, "easy_margin"), reference.arcface("easy_margin")),
    "arcface, none": lambda m, u: (ArcFace(m, "none"), reference.arcface("none")),
    "curricularface": lambda m, u: (CurricularFace(m, t=u), reference.curricularface(u)),
    "magface": lambda m, u: (MagFace(m, "linear", "both", 0.8, 2.0, 4.0), reference.magface(0.8, 2.0, 4.0)),
    "adaface": lambda m, u: (AdaFace(m, 1.0, 3.0, u), reference.adaface(1.0, 3.0, u)),
    "sphereface": lambda m, u: (SphereFace(m, u - 0.05), reference.sphereface(u - 0.05)),
    "softmax": lambda m, u: (CosFace(normalized="none"), reference.cosface()),
}

ANGULAR = [name for name in PAIRS if "face" in name and name not in ("cosface", "normface")]
JUMPING = [name for name in ANGULAR if name != "sphereface"]


def near_a_jump(name, similarity, c, norm, y):
    """Whether a value or a slope jumps so near that rounding chooses its side."""
    own = c.gather(1, y[:, None]).squeeze(1)
    rows = similarity.rows(own, norm, y)
    angle = torch.as_tensor(rows[0], dtype=torch.float64).expand_as(own)
    edges = [own.acos() + angle - torch.pi, own.acos() + angle, own]  # past pi, below 0, the easy margin's end
    if name == "curricularface":
        edges.append((c - similarity.positive(own, rows)[:, None]).scatter(1, y[:, None], 1))
    if name == "magface":
        edges.extend(norm - bound for bound in (similarity.lower_norm, similarity.upper_norm))
    return any(bool((edge.abs() < 1e-4).any()) for edge in edges)


# Few: each is a setting that a similarity is traced and translated for.
numbers = st.sampled_from([0.0, 0.05, 0.125, 0.25, 0.61, 0.9])
shapes = st.tuples(st.integers(1, 8), st.integers(1, 9), st.integers(1, 11))


@pytest.fixture
def blocks(monkeypatch):
    """Sets how few numbers and rows chunked works on at once, and how much of them it may keep."""

    def set_blocks(block, rows, spare):
        monkeypatch.setattr(chunked, "BLOCK", block)
        monkeypatch.setattr(chunked, "ROWS", rows)
        monkeypatch.setattr(chunked, "SPARE", spare)

    return set_blocks


@pytest.mark.parametrize("implementation", sorted(set(IMPLEMENTATIONS) - {"auto", "triton"}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAIRS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_values_and_gradients(implementation, dtype, name, blocks, data):
    if implementation == "chunked":
        blocks(*data.draw(st.tuples(st.integers(1, 40), st.integers(1, 9), st.sampled_from([0, 150, 2**20])), "blocks"))
    n, d, c = data.draw(shapes, "N, D, C")
    kinds = ["as drawn", "own", "opposite", "zero"]
    if name in ANGULAR:  # their slopes in the angle have no one value at cosine +-1: finiteness there is another test
        d, kinds = d + 1, ["as drawn", "zero"]
    if name == "sphereface":  # a zero embedding has no angle: another test
        kinds = ["as drawn"]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31), "seed"))
    draw = lambda *size: torch.rand(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    x = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    w = torch.randn(c, d, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(c, (n,), generator=generator)
    row, kind = data.draw(st.integers(0, n - 1)), data.draw(st.sampled_from(kinds))
    x[row] = {"as drawn": x[row], "own": 3 * w[y[row]], "opposite": -w[y[row]], "zero": 0 * x[row]}[kind]
    cosines = torch.nn.functional.normalize(x.double()) @ torch.nn.functional.normalize(w.double()).T
    if name in ANGULAR:
        assume(cosines.gather(1, y[:, None]).abs().max() < 0.9999)
    if data.draw(st.booleans(), "ignore some"):
        y[draw(n) < 0.3] = -100
    margin = (draw(c) * 0.9).to(dtype) if data.draw(st.booleans(), "per class") else data.draw(numbers)
    if name in ("normface", "softmax"):
        margin = 0.0
    if name == "sphereface":
        margin = 1 + 4 * margin
    similarity, oracle = PAIRS[name](margin, data.draw(numbers.filter(bool), "u"))
    options = {
        "scale": data.draw(st.floats(0.5, 30), "scale"),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.1])),
        "reduction": data.draw(st.sampled_from(["mean", "sum", "none"])),
    }
    if name in JUMPING:
        assume(not near_a_jump(name, similarity, cosines, x.double().norm(dim=1), y.clamp(min=0)))
    rescale = (0.2 + draw(c)).to(dtype) if data.draw(st.booleans(), "class weight") else None
    bias = draw(c).to(dtype).requires_grad_() if name == "softmax" else None

    x, w = x.requires_grad_(), w.requires_grad_()
    value = similarity_loss(
        x, w, y, similarity, bias=bias, class_weight=rescale, implementation=implementation, **options
    )
    if options["reduction"] == "mean" and (y == -100).all():
        assert value.isnan()
        return
    gradients = torch.autograd.grad(value.sum(), (x, w))
    expected = reference.loss(
        x.detach(),
        w.detach(),
        y,
        oracle,
        margin=margin.tolist() if isinstance(margin, torch.Tensor) else margin,
        cosine=similarity.normalized != "none",
        bias=None if bias is None else bias.tolist(),
        class_weight=None if rescale is None else rescale.tolist(),
        **options,
    )
    # The update weight's slope near its clamp is steep: it multiplies the rounding of the cosine.
    tight = {torch.float32: 2e-3, torch.float64: 1e-6}[dtype]
    torch.testing.assert_close(
        value.detach().double(), expected[0], rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=tight
    )
    for side, got, wanted in zip((x, w), gradients, expected[1:], strict=True):
        # What a vector's length leaves of a gradient of scale / length may be small, its rounding is not.
        length = side.detach().double().norm(dim=1)
        before = options["scale"] / length[length > 1e-8].min().item() if (length > 1e-8).any() else 0.0
        size = max(wanted.abs().max().item(), 1.0, 0.01 * before)
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=tight * size)


@pytest.mark.skipif(not triton.INSTALLED, reason="Triton is not installed")
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # the interpreter's, at log(0) and the like
@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=6)  # the interpreter is slow
@given(data=st.data())
def test_values_and_gradients_on_a_gpu(name, data):
    test_values_and_gradients.hypothesis.inner_test("triton", torch.float32, name, blocks=None, data=data)
