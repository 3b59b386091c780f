"""The kernels: tiles of cosines are made, mapped and summed on chip; no (N, C) matrix is ever written.

Names: ``left`` (N, D) are the embeddings, ``right`` (C, D) the class weights, both as they are; dividing by their
lengths is a multiplication by ``left_inverse`` (N,) and ``right_inverse`` (C,), which are 1 on a side that is not
normalised. ``rows`` (1 + R, N) holds the scale and the R row parameters of the similarity. ``NEGATIVE`` and ``SLOPE``
are the similarity's own functions, see ``translate``. Tensors are contiguous; every access is masked, since N, C and D
need not be multiples of a tile.

Products: operands are rounded to ``PRODUCT`` (the inputs' own type, or bfloat16 on request) and added in float32.
``PRECISION`` is "ieee" for float32: no tf32 unless PyTorch's own switch for it is on. Everything else is float32.

A gradient is summed over all tiles in registers (``HOLD``) by one program for each BLOCK_OUT of its columns, each of
which makes the cosines anew; or, where float32 leaves no room for enough columns, in the gradient itself.

A sum over classes or rows is made by one program, or by ``SPLITS`` programs that write partial sums: no atomics, so
results repeat bit for bit.
"""

import functools
import hashlib
import linecache
from typing import Any

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


# (BLOCK_N, BLOCK_C, BLOCK_D, BLOCK_OUT, warps, stages): those that fit sm_90 with few or no spilled registers.
FORWARD_HALF = (128, 128, 64, 0, 8, 3), (64, 256, 64, 0, 8, 3), (64, 128, 64, 0, 4, 3), (64, 64, 32, 0, 4, 3)
FORWARD_FULL = (128, 64, 16, 0, 8, 3), (64, 64, 16, 0, 4, 3)
BACKWARD_HALF = (64, 64, 64, 512, 8, 2), (64, 64, 64, 256, 8, 2), (64, 64, 32, 128, 8, 3), (64, 64, 32, 64, 4, 3)
LEFT_FULL = (64, 32, 32, 64, 8, 2), (64, 16, 16, 64, 4, 2)
RIGHT_FULL = (32, 64, 32, 64, 8, 2), (16, 64, 16, 64, 4, 2)
INTERPRETER = ((16, 16, 16, 16, 1, 1),)


def _tuned(kernel: Any, half: tuple[tuple[int, ...], ...], full: tuple[tuple[int, ...], ...]) -> Any:
    """``kernel`` with its fastest tile, measured once for each C, D and type and remembered on disk."""

    def configs(tiles: tuple[tuple[int, ...], ...]) -> list[triton.Config]:
        names = [name for name in ("BLOCK_N", "BLOCK_C", "BLOCK_D", "BLOCK_OUT") if name in kernel.arg_names]
        return [triton.Config(dict(zip(names, t, strict=False)), num_warps=t[4], num_stages=t[5]) for t in tiles]

    def candidates(_: object, named: dict[str, Any], **others: Any) -> list[triton.Config]:
        arguments = named | others
        fitting = [t for t in (full if arguments["PRODUCT"] == tl.float32 else half) if t[3] < 2 * arguments["D"]]
        return configs(tuple(fitting) or full)

    return triton.autotune(
        configs(INTERPRETER if INTERPRETED.value else half + full),
        key=["C", "D", "PRODUCT"],
        prune_configs_by={"early_config_prune": candidates},
        cache_results=True,
    )(kernel)


@functools.lru_cache(maxsize=256)
def compiled(source: str) -> tuple[Any, Any]:
    """The two functions of ``translate``'s source, ready to be handed to a kernel.

    Triton reads the source of what it compiles: it stands in ``linecache``, where tracebacks and debuggers find it too.
    """
    name = f"<similarity {hashlib.sha256(source.encode()).hexdigest()[:12]}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"triton": triton, "tl": tl, "__name__": name}
    exec(compile(source, name, "exec"), scope)  # noqa: S102 - what translate wrote
    return scope["negative"], scope["negative_slope"]


@triton.jit
def _operand(tile, PRODUCT: tl.constexpr):
    if INTERPRETED and tl.bfloat16 == PRODUCT:  # the interpreter cuts off instead of rounding, and misreads bfloat16
        bits = tile.to(tl.float32).to(tl.int32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
    return tile.to(PRODUCT)


@triton.jit
def _cosines(left, right, left_inverse, right_inverse, i, j, N, C, D,
             BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
             PRODUCT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """(BLOCK_N, BLOCK_C) cosines of rows i and classes j; 0 outside."""
    c = tl.full((BLOCK_N, BLOCK_C), 0.0, tl.float32)
    left_rows = left + i.to(tl.int64)[:, None] * D
    right_rows = right + j.to(tl.int64)[None, :] * D
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = tl.load(left_rows + d[None, :], mask=(i < N)[:, None] & (d < D)[None, :], other=0.0)
        w = tl.load(right_rows + d[:, None], mask=(j < C)[None, :] & (d < D)[:, None], other=0.0)
        c = tl.dot(_operand(x, PRODUCT), _operand(w, PRODUCT), c, input_precision=PRECISION)
    a = tl.load(left_inverse + i, mask=i < N, other=0.0)
    b = tl.load(right_inverse + j, mask=j < C, other=0.0)
    return c * a[:, None] * b[None, :]


@triton.jit
def _pull(c, i, j, target, rows, log_sum, log_sum_grad, weighted_sum_grad, class_weight, own_grad, N, C,
          NEGATIVE: tl.constexpr, SLOPE: tl.constexpr, SMOOTH: tl.constexpr):  # fmt: skip
    """The loss's derivative in each cosine of the tile; 0 outside."""
    inside = i < N
    y = tl.load(target + i, mask=inside, other=0)
    scale = tl.load(rows + i, mask=inside, other=0.0)
    top = tl.load(log_sum + i, mask=inside, other=0.0)
    grad = tl.load(log_sum_grad + i, mask=inside, other=0.0)
    other = inside[:, None] & (j < C)[None, :] & (j[None, :] != y[:, None])
    logits = scale[:, None] * NEGATIVE(c, rows + N, i, inside, N)
    share = tl.exp(tl.where(other, logits - top[:, None], float("-inf")))
    pull = (grad * scale)[:, None] * share
    if SMOOTH:
        weight = tl.load(class_weight + j, mask=j < C, other=0.0)
        pull += tl.load(weighted_sum_grad + i, mask=inside, other=0.0)[:, None] * weight[None, :]
    pull *= SLOPE(c, rows + N, i, inside, N)
    own = tl.load(own_grad + i, mask=inside, other=0.0)
    pull = tl.where(j[None, :] == y[:, None], own[:, None], pull)
    return tl.where(inside[:, None] & (j < C)[None, :], pull, 0.0)


@triton.jit
def _times(g, other, k, out, K, D, total, PRODUCT: tl.constexpr, PRECISION: tl.constexpr):
    """``total`` + g @ other[k, out]."""
    mask = (k < K)[:, None] & (out < D)[None, :]
    tile = tl.load(other + k.to(tl.int64)[:, None] * D + out[None, :], mask=mask, other=0.0)
    return tl.dot(_operand(g, PRODUCT), _operand(tile, PRODUCT), total, input_precision=PRECISION)


@triton.jit
def _add_product(grad, place, inside, g, other, k, K, D, begun,
                 BLOCK_OUT: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Adds g @ other[k] to the rows ``place`` of ``grad``, which no other program touches."""
    for start in range(0, D, BLOCK_OUT):
        out = start + tl.arange(0, BLOCK_OUT)
        mask = inside[:, None] & (out < D)[None, :]
        pointers = grad + place[:, None] * D + out[None, :]
        # Compared anew: of a mask and a plain truth value Triton's interpreter makes a number.
        total = tl.load(pointers, mask=mask & (tl.full((1, 1), begun, tl.int32) > 0), other=0.0)
        tl.store(pointers, _times(g, other, k, out, K, D, total, PRODUCT, PRECISION), mask=mask)
    tl.debug_barrier()  # the next to read it may be another thread


@triton.jit
def _finish(grad, right, place, inside, out, total, along, inverse, D, PROJECT: tl.constexpr):
    """Stores a gradient in directions as the gradient in the vectors."""
    mask = inside[:, None] & (out < D)[None, :]
    if PROJECT:
        w = tl.load(right + place[:, None] * D + out[None, :], mask=mask, other=0.0).to(tl.float32)
        total -= (along * inverse)[:, None] * w
    tl.store(grad + place[:, None] * D + out[None, :], total * inverse[:, None], mask=mask)


@triton.jit
def own_kernel(left, right, left_inverse, right_inverse, bias, target, own, N, D,
               BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """The cosine of each row to its own class, (N,); 0 where that is none of these, -1."""
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = i < N
    y = tl.load(target + i, mask=inside, other=0)
    here = inside & (y >= 0)
    total = tl.full((BLOCK_N,), 0.0, tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = here[:, None] & (d < D)[None, :]
        x = tl.load(left + i.to(tl.int64)[:, None] * D + d[None, :], mask=mask, other=0.0)
        w = tl.load(right + y[:, None] * D + d[None, :], mask=mask, other=0.0)
        total += tl.sum(x.to(tl.float32) * w.to(tl.float32), axis=1)
    total *= tl.load(left_inverse + i, mask=here, other=0.0) * tl.load(right_inverse + y, mask=here, other=0.0)
    if BIAS:
        total += tl.load(bias + y, mask=here, other=0.0)
    tl.store(own + i, total, mask=inside)


@triton.jit(do_not_specialize=["N", "SPLITS"])
def _forward_kernel(left, right, left_inverse, right_inverse, bias, target, rows, class_weight, log_sum, weighted_sum,
                   N, C, D, SPLITS, NEGATIVE: tl.constexpr, BIAS: tl.constexpr, SMOOTH: tl.constexpr,
                   PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
                   BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Over the classes of one split, the own class left out: log sum exp(scale * N_ij), and sum class_weight_j N_ij.

    Both (SPLITS, N), the second only if ``SMOOTH``.
    """
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    inside = i < N
    y = tl.load(target + i, mask=inside, other=0)
    scale = tl.load(rows + i, mask=inside, other=0.0)
    top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.full((BLOCK_N,), 0.0, tl.float32)
    weighted = tl.full((BLOCK_N,), 0.0, tl.float32)

    tiles = (C + BLOCK_C - 1) // BLOCK_C
    for tile in range(tiles * split // SPLITS, tiles * (split + 1) // SPLITS):
        j = tile * BLOCK_C + tl.arange(0, BLOCK_C)
        c = _cosines(left, right, left_inverse, right_inverse, i, j, N, C, D,
                     BLOCK_N, BLOCK_C, BLOCK_D, PRODUCT, PRECISION)  # fmt: skip
        if BIAS:
            c += tl.load(bias + j, mask=j < C, other=0.0)[None, :]
        other = (j < C)[None, :] & (j[None, :] != y[:, None])
        negative = NEGATIVE(c, rows + N, i, inside, N)
        logits = tl.where(other, scale[:, None] * negative, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(logits - shift[:, None]), axis=1)
        top = new_top
        if SMOOTH:
            weight = tl.load(class_weight + j, mask=j < C, other=0.0)
            weighted += tl.sum(tl.where(other, negative * weight[None, :], 0.0), axis=1)

    place = split.to(tl.int64) * N + i
    tl.store(log_sum + place, top + tl.log(total), mask=inside)
    if SMOOTH:
        tl.store(weighted_sum + place, weighted, mask=inside)


@triton.jit(do_not_specialize=["N", "SPLITS"])
def _left_kernel(left, right, left_inverse, right_inverse, bias, target, rows, class_weight,
                 log_sum, log_sum_grad, weighted_sum_grad, own_grad, grad, projection, N, C, D, SPLITS,
                NEGATIVE: tl.constexpr, SLOPE: tl.constexpr, BIAS: tl.constexpr, SMOOTH: tl.constexpr,
                PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
                GRAD_PRODUCT: tl.constexpr, GRAD_PRECISION: tl.constexpr, HOLD: tl.constexpr,
                BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
                BLOCK_OUT: tl.constexpr):  # fmt: skip
    """With g the derivative in the cosines and w^ the normalised weights, over the classes of one split:
    ``grad`` sum_j g_ij w^_j, (SPLITS, N, D), and ``projection`` sum_j g_ij c_ij, (SPLITS, N).
    """
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    column = tl.program_id(2)
    place = split.to(tl.int64) * N + i
    out = column * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    total = tl.full((BLOCK_N, BLOCK_OUT), 0.0, tl.float32)
    along = tl.full((BLOCK_N,), 0.0, tl.float32)

    tiles = (C + BLOCK_C - 1) // BLOCK_C
    first = tiles * split // SPLITS
    for tile in range(first, tiles * (split + 1) // SPLITS):
        j = tile * BLOCK_C + tl.arange(0, BLOCK_C)
        cosine = _cosines(left, right, left_inverse, right_inverse, i, j, N, C, D,
                          BLOCK_N, BLOCK_C, BLOCK_D, PRODUCT, PRECISION)  # fmt: skip
        c = cosine
        if BIAS:
            c += tl.load(bias + j, mask=j < C, other=0.0)[None, :]
        g = _pull(c, i, j, target, rows, log_sum, log_sum_grad, weighted_sum_grad, class_weight, own_grad, N, C,
                  NEGATIVE, SLOPE, SMOOTH)  # fmt: skip
        along += tl.sum(g * cosine, axis=1)
        g *= tl.load(right_inverse + j, mask=j < C, other=0.0)[None, :]
        if HOLD:
            total = _times(g, right, j, out, C, D, total, GRAD_PRODUCT, GRAD_PRECISION)
        else:
            _add_product(grad, place, i < N, g, right, j, C, D, tile > first, BLOCK_OUT, GRAD_PRODUCT, GRAD_PRECISION)

    if HOLD:
        tl.store(grad + place[:, None] * D + out[None, :], total, mask=(i < N)[:, None] & (out < D)[None, :])
    if column == 0:
        tl.store(projection + place, along, mask=i < N)


@triton.jit(do_not_specialize=["N"])
def _right_kernel(left, right, left_inverse, right_inverse, bias, target, rows, class_weight,
                 log_sum, log_sum_grad, weighted_sum_grad, own_grad, grad, bias_grad, N, C, D,
                 NEGATIVE: tl.constexpr, SLOPE: tl.constexpr, BIAS: tl.constexpr, SMOOTH: tl.constexpr,
                 PROJECT: tl.constexpr, PRODUCT: tl.constexpr, PRECISION: tl.constexpr,
                 GRAD_PRODUCT: tl.constexpr, GRAD_PRECISION: tl.constexpr, HOLD: tl.constexpr,
                 BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
                 BLOCK_OUT: tl.constexpr):  # fmt: skip
    """The gradient of the class weights, (C, D), finished; if ``BIAS`` also that of the bias, (C,)."""
    j = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    column = tl.program_id(1)
    place = j.to(tl.int64)
    out = column * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    total = tl.full((BLOCK_C, BLOCK_OUT), 0.0, tl.float32)
    along = tl.full((BLOCK_C,), 0.0, tl.float32)
    sums = tl.full((BLOCK_C,), 0.0, tl.float32)

    for start in range(0, N, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        cosine = _cosines(left, right, left_inverse, right_inverse, i, j, N, C, D,
                          BLOCK_N, BLOCK_C, BLOCK_D, PRODUCT, PRECISION)  # fmt: skip
        c = cosine
        if BIAS:
            c += tl.load(bias + j, mask=j < C, other=0.0)[None, :]
        g = _pull(c, i, j, target, rows, log_sum, log_sum_grad, weighted_sum_grad, class_weight, own_grad, N, C,
                  NEGATIVE, SLOPE, SMOOTH)  # fmt: skip
        if BIAS:
            sums += tl.sum(g, axis=0)
        along += tl.sum(g * cosine, axis=0)
        g = tl.trans(g * tl.load(left_inverse + i, mask=i < N, other=0.0)[:, None])
        if HOLD:
            total = _times(g, left, i, out, N, D, total, GRAD_PRODUCT, GRAD_PRECISION)
        else:
            _add_product(grad, place, j < C, g, left, i, N, D, start > 0, BLOCK_OUT, GRAD_PRODUCT, GRAD_PRECISION)

    b = tl.load(right_inverse + j, mask=j < C, other=0.0)
    if HOLD:
        _finish(grad, right, place, j < C, out, total, along, b, D, PROJECT)
    else:
        for start in range(0, D, BLOCK_OUT):
            out = start + tl.arange(0, BLOCK_OUT)
            mask = (j < C)[:, None] & (out < D)[None, :]
            total = tl.load(grad + place[:, None] * D + out[None, :], mask=mask, other=0.0)
            _finish(grad, right, place, j < C, out, total, along, b, D, PROJECT)
    if BIAS and column == 0:
        tl.store(bias_grad + j, sums, mask=j < C)


forward_kernel = _tuned(_forward_kernel, FORWARD_HALF, FORWARD_FULL)
left_kernel = _tuned(_left_kernel, BACKWARD_HALF, LEFT_FULL)
right_kernel = _tuned(_right_kernel, BACKWARD_HALF, RIGHT_FULL)
