"""The loss on a GPU: Triton kernels that keep the (N, C) matrix on chip, for any similarity.

Per row, the loss is a function of the cosine to the row's own class, ``own``, and of ``others``, the logarithm of
sum_{j != y} exp(scale * N_ij). These (N,)-sized parts are left to autograd; the kernels see the matrix, tile by tile,
once forward and once for each side's gradient. Memory beyond inputs and gradients is O(N + C).
"""

import importlib.util
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad
from torch.nn import functional as F

from cssoftmax.engine import eager
from cssoftmax.engine.trace import NoTranslation
from cssoftmax.engine.triton.translate import translate
from cssoftmax.similarity import Similarity

INSTALLED = importlib.util.find_spec("triton") is not None

# Above it, log(1 + exp(z)) is z in float32.
STEEP = 20.0


def loss(
    embeddings: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    similarity: Similarity,
    *,
    scale: float | Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    precision: str = "float32",
) -> Tensor:
    """The same as :func:`cssoftmax.engine.eager.loss`, which also takes over what does not suit this engine:
    float64, an empty batch, a learned scale or margin, ``torch.func``, forward-mode derivatives. It differentiates the
    gradients, too, and computes, with a warning, a similarity that does something Triton has no operation for.

    Inputs are float32, bfloat16 or float16. Products are of the wider of the two sides' types, added in float32, with
    everything after them; float32 products are IEEE, or tf32 if ``torch.backends.cuda.matmul`` says so. With
    ``precision="bf16"`` both sides are rounded to bfloat16 for the products alone.

    Raises:
        RuntimeError: Triton is not installed, or the tensors are not on a GPU and Triton's interpreter is off.
    """
    check_runs(embeddings.device)
    options: dict[str, Any] = {
        "scale": scale,
        "class_weight": class_weight,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    value = None
    if suits(embeddings, weight, similarity, scale):
        run = _outside_graph if torch.compiler.is_compiling() else _tiled
        value = run(embeddings, weight, bias, target, similarity, precision=precision, **options)
    if value is None:
        dtype = torch.promote_types(torch.promote_types(embeddings.dtype, weight.dtype), torch.float32)
        value = eager.loss(embeddings.to(dtype), weight.to(dtype), bias, target, similarity, **options)
    return value


def check_runs(device: torch.device) -> None:
    if not INSTALLED:
        raise RuntimeError('implementation: "triton" needs the package triton; pip install "cssoftmax[gpu]"')
    if device.type != "cuda" and not _kernels().INTERPRETED.value:
        raise RuntimeError(
            f'implementation: "triton" needs tensors on a GPU, got {device}; use "auto" '
            "(or set TRITON_INTERPRET=1 before Python starts, for slow tests on a CPU)"
        )


def _tiled(
    embeddings: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    similarity: Similarity,
    *,
    scale: float | Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    precision: str,
) -> Tensor | None:
    """The loss by the kernels; None, after a warning, for a similarity that has no translation."""
    num_classes = len(weight)
    index = target.clamp(0, num_classes - 1)  # an ignored label still needs a column to look at
    smooth = None
    if label_smoothing:
        smooth = embeddings.new_ones(num_classes, dtype=torch.float32) if class_weight is None else class_weight.float()
    found = per_row(embeddings, weight, bias, index, similarity, scale, smooth, precision=precision)
    if found is None:
        return None
    positive, others, weighted = found
    positive = scale * positive
    value = F.softplus(others - positive, threshold=STEEP)
    valid = target != ignore_index
    share = valid.float() if class_weight is None else class_weight.float()[index] * valid
    if smooth is not None:
        # Each class's share of log(sum) - logit: log(sum) is positive + value.
        assert weighted is not None
        weighted = weighted + smooth[index] * positive
        uniform = (smooth.sum() * (positive + value) - weighted) * (label_smoothing / num_classes)
        value = torch.where(valid, (1 - label_smoothing) * share * value + uniform, 0)
    else:
        value = torch.where(valid, share * value, 0)
    if reduction == "none":
        return value
    return value.sum() if reduction == "sum" else value.sum() / share.sum()


def per_row(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    index: Tensor,
    similarity: Similarity,
    scale: float | Tensor,
    shares: Tensor | None,
    part: eager.Part | None = None,
    precision: str = "float32",
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """What the loss of each row needs, (N,), as :func:`cssoftmax.engine.chunked.per_row`; None, after a warning, for a
    similarity that has no translation."""
    tiles = _Tiles.of(x.detach(), w.detach(), index, similarity, shares, precision)
    tiles.is_part = part is not None
    own, norm, others, weighted = _Cosines.apply(x, w, bias, tiles)  # type: ignore[no-untyped-call]
    if part is not None:
        own, index = part.add_up(own), part.target
    rows = similarity.rows(own, norm, index)
    try:
        source = translate(similarity, len(rows))
    except NoTranslation as reason:
        warnings.warn(
            f"{type(similarity).__name__}: {reason}; its loss runs in plain PyTorch, with the (N, C) matrix in memory",
            stacklevel=4,
        )
        return None
    tiles.functions = _kernels().compiled(source)
    tiles.rows = torch.empty(1 + len(rows), len(x), device=x.device)
    for place, row in zip(tiles.rows, (scale, *rows), strict=True):
        place.copy_(row.detach()) if isinstance(row, Tensor) else place.fill_(row)
    tiles.log_sum, weighted_sum = _negatives(x.detach(), w.detach(), None if bias is None else bias.detach(), tiles)
    # What ``_Cosines`` gave are zeros that lead to its backward pass.
    total = None if shares is None else scale * (weighted + weighted_sum)
    return similarity.positive(own, rows), others + tiles.log_sum, total


@_disable_dynamo
def _outside_graph(*arguments: Any, **options: Any) -> Tensor | None:
    """``_tiled`` for a caller under ``torch.compile``: one break of its graph, for sources made while it runs."""
    return _tiled(*arguments, **options)


def suits(embeddings: Tensor, weight: Tensor, similarity: Similarity, scale: float | Tensor) -> bool:
    """Whether the kernels can do it: plain tensors, constant factors, no transform at work."""
    plain = (Tensor, torch.nn.Parameter)
    half = (torch.float32, torch.bfloat16, torch.float16)
    return (
        type(embeddings) in plain
        and type(weight) in plain
        and embeddings.dtype in half
        and weight.dtype in half
        and embeddings.numel() > 0
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not (isinstance(scale, Tensor) and (scale.requires_grad or scale.numel() > 1))
        and not any(isinstance(value, Tensor) and value.requires_grad for value in vars(similarity).values())
    )


def _kernels() -> Any:
    """The kernels, imported when first used: Triton is heavy, and absent on most machines without a GPU."""
    from cssoftmax.engine.triton import kernels

    return kernels


@dataclass
class _Tiles:
    """What the kernels are given besides both sides and the bias. The last three are set on the way forward."""

    similarity: Similarity
    target: Tensor
    norm: Tensor  # of the embeddings, (N,)
    norm_inverse: Tensor  # (N,)
    left_inverse: Tensor  # what the inner products are multiplied by: (N,)
    right_inverse: Tensor  # and (C,)
    smooth: Tensor | None  # class rescaling in the label smoothing, (C,)
    products: dict[str, Any]
    functions: tuple[Any, Any] = (None, None)
    rows: Tensor | None = None
    log_sum: Tensor | None = None
    is_part: bool = False  # of all classes

    @classmethod
    def of(
        cls, left: Tensor, right: Tensor, target: Tensor, similarity: Similarity, smooth: Tensor | None, precision: str
    ) -> "_Tiles":
        norm, norm_inverse = _lengths(left)
        left_inverse = norm_inverse if similarity.normalized == "both" else torch.ones_like(norm)
        if similarity.normalized == "none":
            right_inverse = right.new_ones(len(right), dtype=torch.float32)
        else:
            _, right_inverse = _lengths(right)
        products = _products(left.dtype, right.dtype, precision)
        return cls(similarity, target, norm, norm_inverse, left_inverse, right_inverse, smooth, products)


def _lengths(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The lengths of rows and 1 / length, float32; both 0 for one too short to have a direction."""
    length = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32)
    has_direction = ~(length <= eager.SHORTEST)
    return torch.where(has_direction, length, 0), torch.where(has_direction, 1 / length, 0)


def _products(left: torch.dtype, right: torch.dtype, precision: str) -> dict[str, Any]:
    """Operand type and float32 mode of the products, of the cosines and the gradients; where gradients are summed."""
    tl = _kernels().tl
    cosine = gradient = (tl.float32, "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee")
    if precision == "bf16" or left == right == torch.bfloat16:
        cosine = gradient = (tl.bfloat16, "ieee")
    elif left == right == torch.float16:
        # A gradient can be too small for float16. tf32 holds float16's digits exactly, and has float32's range.
        cosine, gradient = (tl.float16, "ieee"), (tl.float32, "tf32")
    return {
        "PRODUCT": cosine[0],
        "PRECISION": cosine[1],
        "GRAD_PRODUCT": gradient[0],
        "GRAD_PRECISION": gradient[1],
        "HOLD": cosine[0] != tl.float32,
    }


class _Cosines(torch.autograd.Function):
    """From both sides to what the loss of each row needs, (N,): own, the embedding's length, and two zeros.

    The sums over the negatives need the row parameters, which need ``own``; yet the gradients through all of them have
    to be computed as one, since a second gradient of the class weights would be as large as the weights. So
    ``_negatives`` runs apart, without autograd, its sums are added to the zeros, and what flows back into the zeros
    is the derivative in the sums.
    """

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None, tiles: _Tiles
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.save_for_backward(left, right, bias)
        ctx.tiles = tiles
        (n, d), own = left.shape, torch.empty_like(tiles.norm)
        sides = (left.contiguous(), right.contiguous(), tiles.left_inverse, tiles.right_inverse, bias, tiles.target)
        kernels = _kernels()
        block_n, block_d = (16, 16) if kernels.INTERPRETED.value else (32, 128)
        with _on(left):
            kernels.own_kernel[(_blocks(n, block_n),)](*sides, own, n, d, bias is not None, block_n, block_d)
        return own, tiles.norm.clone(), torch.zeros_like(own), torch.zeros_like(own)

    @staticmethod
    def backward(
        ctx: Any, own_grad: Tensor, norm_grad: Tensor, log_sum_grad: Tensor, weighted_sum_grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        left, right, bias = ctx.saved_tensors
        tiles, needed = ctx.tiles, ctx.needs_input_grad
        if torch.is_grad_enabled():  # the gradients will be differentiated themselves
            if tiles.is_part:
                raise RuntimeError('implementation: a sharded head has gradients of gradients with "eager" only')
            upstream = (own_grad, norm_grad, log_sum_grad, weighted_sum_grad)
            return *_eager_gradients((left, right, bias), needed, upstream, tiles), None
        pull = (log_sum_grad.contiguous(), weighted_sum_grad.contiguous(), own_grad.contiguous())
        left_grad = right_grad = bias_grad = None
        if needed[0]:
            left_grad = _left_gradient(left, right, bias, tiles, pull, norm_grad)
        if needed[1] or needed[2]:
            right_grad, bias_grad = _right_gradient(left, right, bias, tiles, pull)
        return left_grad, right_grad if needed[1] else None, bias_grad if needed[2] else None, None


def _negatives(left: Tensor, right: Tensor, bias: Tensor | None, tiles: _Tiles) -> tuple[Tensor, Tensor | float]:
    """log sum_{j != y} exp(scale * N_ij) and, with label smoothing, sum_{j != y} smooth_j * N_ij; both (N,)."""
    splits = _splits(len(left), len(right), left.device)
    log_sum = tiles.norm.new_empty(splits, len(left))
    weighted_sum = None if tiles.smooth is None else torch.empty_like(log_sum)
    _launch(
        _kernels().forward_kernel,
        lambda meta: (_blocks(len(left), meta["BLOCK_N"]), splits),
        (left, right, bias),
        tiles,
        (log_sum, weighted_sum),
        SPLITS=splits,
        PRODUCT=tiles.products["PRODUCT"],
        PRECISION=tiles.products["PRECISION"],
    )
    return log_sum.logsumexp(0), 0.0 if weighted_sum is None else weighted_sum.sum(0)


def _left_gradient(
    left: Tensor, right: Tensor, bias: Tensor | None, tiles: _Tiles, pull: tuple[Tensor, ...], norm_grad: Tensor
) -> Tensor:
    n, d = left.shape
    splits = _splits(n * _blocks(d, 256), len(right), left.device)
    grad = tiles.norm.new_empty(splits, n, d)
    projection = tiles.norm.new_empty(splits, n)
    _launch(
        _kernels().left_kernel,
        lambda meta: (_blocks(n, meta["BLOCK_N"]), splits, _blocks(d, meta["BLOCK_OUT"]) if meta["HOLD"] else 1),
        (left, right, bias),
        tiles,
        (tiles.log_sum, *pull, grad, projection),
        SPLITS=splits,
        SLOPE=tiles.functions[1],
        **tiles.products,
    )
    total = grad.sum(0) if splits > 1 else grad[0]
    along = norm_grad * tiles.norm_inverse
    if tiles.similarity.normalized == "both":
        total *= tiles.left_inverse[:, None]
        along = along - projection.sum(0) * tiles.left_inverse**2
    return total.addcmul_(left, along[:, None]).to(left.dtype)


def _right_gradient(
    left: Tensor, right: Tensor, bias: Tensor | None, tiles: _Tiles, pull: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor | None]:
    grad = torch.empty_like(right, memory_format=torch.contiguous_format)
    bias_grad = None if bias is None else torch.empty_like(bias)
    _launch(
        _kernels().right_kernel,
        lambda meta: (
            _blocks(len(right), meta["BLOCK_C"]),
            _blocks(right.shape[1], meta["BLOCK_OUT"]) if meta["HOLD"] else 1,
        ),
        (left, right, bias),
        tiles,
        (tiles.log_sum, *pull, grad, bias_grad),
        SLOPE=tiles.functions[1],
        PROJECT=tiles.similarity.normalized != "none",
        **tiles.products,
    )
    return grad, bias_grad


def _launch(
    kernel: Any,
    grid: Callable[[dict[str, int]], tuple[int, ...]],
    inputs: tuple[Tensor, Tensor, Tensor | None],
    tiles: _Tiles,
    arguments: tuple[Tensor | None, ...],
    **constants: Any,
) -> None:
    """Runs one of the three large kernels: what they have in common, and ``arguments`` and ``constants`` of its own."""
    left, right, bias = inputs
    with _on(left):
        kernel[grid](
            left.contiguous(),
            right.contiguous(),
            tiles.left_inverse,
            tiles.right_inverse,
            bias,
            tiles.target,
            tiles.rows,
            tiles.smooth,
            *arguments,
            *(len(left), len(right), left.shape[1]),
            NEGATIVE=tiles.functions[0],
            BIAS=bias is not None,
            SMOOTH=tiles.smooth is not None,
            **constants,
        )


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _splits(row_blocks: int, num_classes: int, device: torch.device) -> int:
    """Among how many programs a sum over the classes is divided: enough to keep the GPU busy when rows are few."""
    if _kernels().INTERPRETED.value:
        return max(1, min(48 // row_blocks, num_classes // 32))
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(2 * processors * 64 // row_blocks, num_classes // 256))


def _on(tensor: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _eager_gradients(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    needed: tuple[bool, ...],
    upstream: tuple[Tensor, ...],
    tiles: _Tiles,
) -> tuple[Tensor | None, ...]:
    """The gradients in plain PyTorch, as functions that can be differentiated again."""
    assert tiles.rows is not None
    bias = None if inputs[2] is None else inputs[2].float()
    left, right, norm = eager.sides(inputs[0].float(), inputs[1].float(), tiles.similarity)
    c = F.linear(left, right, bias)
    own_column = tiles.target[:, None]
    scale, *rows = eager.columns(tuple(tiles.rows))
    negative = tiles.similarity.negative(c, tuple(rows))
    log_sum = (scale * negative).scatter(1, own_column, torch.finfo(c.dtype).min).logsumexp(1)
    smooth = torch.zeros_like(c) if tiles.smooth is None else tiles.smooth.expand_as(c)
    weighted_sum = (negative * smooth.scatter(1, own_column, 0)).sum(1)
    wanted = [value for value, need in zip(inputs, needed, strict=False) if need and value is not None]
    outputs = (c.gather(1, own_column).squeeze(1), norm, log_sum, weighted_sum)
    gradients = iter(torch.autograd.grad(outputs, wanted, upstream, create_graph=True))
    return tuple(next(gradients) if need else None for need in needed[:3])
