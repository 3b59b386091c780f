"""The kernels in C: any similarity, any number of threads, and no compiler at all."""

import pytest
import torch

from cssoftmax.engine import chunked, compiled, fused
from cssoftmax.engine.compiled import build
from cssoftmax.functional import similarity_loss
from cssoftmax.similarity import ArcFace, CosFace, CSSoftmax, MagFace

ENGINES = ["compiled", "chunked"]


class Leaky(CosFace):
    """A user's own similarity, with a condition, an exponential, a logarithm and a root in it."""

    def negative(self, c, rows):
        return torch.where(c > 0.1, torch.exp(1.5 * c), torch.log2(1.5 + c)) + (1.2 + c).sqrt()

    def negative_slope(self, c, rows):
        slope = torch.where(c > 0.1, 1.5 * torch.exp(1.5 * c), 1 / ((1.5 + c) * 0.6931471805599453))
        return slope + 0.5 / (1.2 + c).sqrt()


class Unknown(CosFace):
    """One with an operation that has no translation."""

    def negative(self, c, rows):
        return torch.special.i0(c)

    def negative_slope(self, c, rows):
        return torch.special.i1(c)


def draw(n=70, d=9, c=130):
    generator = torch.Generator().manual_seed(n + c)
    x, w = torch.randn(n, d, generator=generator), torch.randn(c, d, generator=generator)
    return x.requires_grad_(), w.requires_grad_(), torch.randint(c, (n,), generator=generator)


def run(engine, similarity, x, w, y, **options):
    value = similarity_loss(x, w, y, similarity, implementation=engine, **{"scale": 12.0} | options)
    return value.detach(), *torch.autograd.grad(value.sum(), (x, w))


def assert_same(ours, theirs):
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.fixture
def forgotten(monkeypatch):
    """No compiled library is remembered, before or after."""

    def forget():
        for function in (build._compiled, build._kernels, build.common_or_none):
            function.cache_clear()

    forget()
    yield
    monkeypatch.undo()
    forget()


def needs_a_compiler(test):
    return pytest.mark.skipif(not build.suits(torch.zeros(1, 1)), reason="no C compiler here")(test)


@needs_a_compiler
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("similarity", [Leaky(0.1), CSSoftmax(0.2, 0.3), ArcFace(0.4)])
def test_what_pytorch_defines_the_kernels_compute(engine, similarity, monkeypatch):
    wanted = run("eager", similarity, *draw())
    monkeypatch.setattr(fused, "loss", None)
    monkeypatch.setattr(chunked.rowwise, "negative_and_slope", None)
    assert_same(run(engine, similarity, *draw()), wanted)


@needs_a_compiler
def test_numbers_are_rounded_to_bfloat16_as_pytorch_rounds_them():
    bits = torch.arange(-(2**31), 2**31, 65519 // 16, dtype=torch.int64)[: 1024 * 1024].to(torch.int32)
    odd = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.00390625, 1.01171875, 3.4e38, 1e-40])
    vectors = torch.cat((bits.view(torch.float32), odd.repeat(1024)))[: 1025 * 1024].reshape(1025, 1024)
    rounded = torch.empty_like(vectors, dtype=torch.bfloat16)
    build.common().lengths(vectors, None, torch.empty(1025), rounded)
    torch.testing.assert_close(rounded, vectors.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("similarity", [Unknown(), MagFace(0.3, upper_margin=0.5, lower_norm=1.0, upper_norm=9.0)])
def test_what_has_no_translation_or_differentiable_rows_runs_in_pytorch(engine, similarity):
    assert_same(run(engine, similarity, *draw()), run("eager", similarity, *draw()))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("compiler", [None, "0", "/nowhere/cc", "/bin/false"])
def test_without_a_compiler_pytorch_does_the_work(engine, compiler, monkeypatch, forgotten, tmp_path):
    monkeypatch.setattr(build, "COMPILER", compiler)
    monkeypatch.setenv("CSSOFTMAX_CACHE", str(tmp_path))
    assert not build.suits(torch.zeros(1, 1))
    assert_same(run(engine, CSSoftmax(0.1, 0.25), *draw()), run("eager", CSSoftmax(0.1, 0.25), *draw()))


@needs_a_compiler
def test_a_similarity_is_compiled_once_and_remembered_on_disk(monkeypatch, forgotten, tmp_path):
    monkeypatch.setenv("CSSOFTMAX_CACHE", str(tmp_path))
    run("compiled", CSSoftmax(0.1, 0.3), *draw())
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kernels").iterdir()}
    assert len(kept) == 2 and all(path.suffix == ".so" for path in kept)  # the other is what all share
    build._compiled.cache_clear()
    build._kernels.cache_clear()
    monkeypatch.setattr(build, "_run", None)
    run("compiled", CSSoftmax(0.2, 0.4), *draw())
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "kernels").iterdir()}


@needs_a_compiler
@pytest.mark.parametrize("engine", ENGINES)
def test_threads_change_no_bit_of_the_loss(engine):
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(engine, CSSoftmax(0.1, 0.25), *draw(300, 4, 200))[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_nan_is_not_hidden(engine):
    x, w, y = draw()
    x = x.detach()
    x[3, 2] = float("nan")
    value, gradient, _ = run(engine, CSSoftmax(0.1, 0.25), x.requires_grad_(), w, y)
    assert value.isnan() and gradient[3].isnan().all() and not gradient[4].isnan().any()


@pytest.mark.parametrize("upstream", [1.0, -3.0])
def test_the_gradient_from_above_multiplies(upstream):
    x, w, y = draw()
    value = similarity_loss(x, w, y, CosFace(0.2), scale=12.0, implementation="compiled")
    once = torch.autograd.grad(value, (x, w), retain_graph=True)
    scaled = torch.autograd.grad(value, (x, w), torch.tensor(upstream))
    assert_same(scaled, [upstream * gradient for gradient in once])


def test_rows_alone_are_left_to_fused_or_where_the_matrix_is_large_to_chunked(monkeypatch):
    calls = []
    monkeypatch.setattr(chunked, "loss", lambda *a, **k: calls.append("chunked") or torch.zeros(()))
    monkeypatch.setattr(fused, "loss", lambda *a, **k: calls.append(k["reduction"]) or torch.zeros(()))
    for options in ({"reduction": "none"}, {"label_smoothing": 0.1}):
        similarity_loss(*draw()[:3], CosFace(), scale=9.0, implementation="compiled", **options)
    monkeypatch.setattr(compiled.rowwise, "SMALL", 10)
    similarity_loss(*draw(), CosFace(), scale=9.0, implementation="compiled", reduction="none")
    assert calls == ["none", "mean", "chunked"]


@needs_a_compiler
@pytest.mark.parametrize("features", [compiled.NARROW, compiled.NARROW + 1, 700_000])
def test_few_classes_may_have_any_number_of_features(features):
    sides = draw(n=5, d=features, c=3)
    assert_same(run("compiled", CosFace(0.1), *sides), run("eager", CosFace(0.1), *sides))
