"""The loss where the (N, C) matrix is small, as compiled C: three products, and one pass over the matrix.

The pass makes the loss and its gradient in the products, see ``kernels.c``; what is left to the backward pass is two
products, from which it takes what points along the vectors. What this engine does not do is left to ``fused``, or to
``chunked`` where the matrix is large.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cssoftmax.engine import chunked, fused, products, rowwise
from cssoftmax.engine.compiled import build
from cssoftmax.engine.rowwise import LOG2E
from cssoftmax.engine.trace import NoTranslation
from cssoftmax.similarity import Similarity


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
) -> Tensor:
    """The same as :func:`cssoftmax.engine.eager.loss`, in float32, for reduction "mean" and "sum".

    Without a C compiler the others do it all. They also do label smoothing, row parameters that have a gradient
    (MagFace's, SphereFace's), and similarities that do something C has no operation for.
    """
    suits = (
        not label_smoothing
        and reduction != "none"
        and target.numel() > 0
        and rowwise.suits(embeddings, weight, similarity, scale)
        and build.suits(embeddings, weight)
    )
    if suits:
        index, ignored = rowwise.columns_of(target.contiguous(), ignore_index)
        shares = rowwise.reduce_shares(index, ignored, class_weight, reduction)
        try:
            value: Tensor = _Loss.apply(embeddings, weight, bias, index, similarity, float(scale), shares)  # type: ignore[no-untyped-call]
            return value
        except NoTranslation:
            pass
    small = embeddings.shape[0] * weight.shape[0] <= rowwise.SMALL
    other: Callable[..., Tensor] = fused.loss if small else chunked.loss
    return other(
        embeddings,
        weight,
        bias,
        target,
        similarity,
        scale=scale,
        class_weight=class_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


# Classes up to which the kernels' own products to the gradients are faster than a library's, and the features up to
# which they find room for a few rows on the stack.
FEW = 64
NARROW = 8192


class _Loss(torch.autograd.Function):
    """The sum over the rows of -log p_y times the row's share, () or (N,)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        index: Tensor,
        similarity: Similarity,
        scale: float,
        shares: Tensor | float,
    ) -> Tensor:
        differentiable = any(ctx.needs_input_grad)
        common = build.common()
        if w.shape[0] <= FEW:
            block, own, norm, inverse_x, inverse_w = common.multiplied(x, w, bias, index, similarity.normalized)
        else:
            norm, inverse_x = x.new_empty(x.shape[0]), x.new_empty(x.shape[0])
            inverse_w = None
            if similarity.normalized != "none":
                inverse_w = w.new_empty(w.shape[0])
                common.lengths(w, None, inverse_w)
            common.lengths(x, norm, inverse_x)
            with products.best(x.numel() * w.shape[0]):
                block = x @ w.T
            own = common.owns(block, inverse_x if similarity.normalized == "both" else None, inverse_w, bias, index)
        by_row = inverse_x if similarity.normalized == "both" else None
        with torch.enable_grad():
            rows = similarity.rows(own.requires_grad_(), norm.requires_grad_(), index)
        kernels = build.kernels(similarity, rows)
        if kernels is None or not kernels.has_losses:
            raise NoTranslation
        if any(isinstance(row, Tensor) and row.requires_grad for row in rows):
            raise NoTranslation
        total = kernels.losses(block, by_row, inverse_w, bias, index, scale * LOG2E, rows, shares, differentiable)
        if differentiable:
            ctx.save_for_backward(x, w, bias, index)
            ctx.kept = block, inverse_x, inverse_w, rows, shares
            ctx.similarity, ctx.scale, ctx.kernels = similarity, scale, kernels
        return x.new_full((), total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return rowwise.differentiably(ctx, _loss_eagerly, (grad,))
        x, w, _, _ = ctx.saved_tensors
        g, inverse_x, inverse_w, _, _ = ctx.kept
        needs_x, needs_w, needs_bias = ctx.needs_input_grad[:3]
        factor = float(grad)
        grad_x = grad_w = grad_bias = None
        if needs_bias:
            grad_bias = g.sum(0).mul_(factor)
        sphere = ctx.similarity.normalized == "both"
        if w.shape[0] <= FEW and w.shape[1] <= NARROW:
            by_row = inverse_x if sphere else None
            grad_x, grad_w = ctx.kernels.gradients(g, x, w, by_row, inverse_w, factor, needs_x, needs_w)
            return grad_x, grad_w, grad_bias, None, None, None, None
        with products.best(x.numel() * w.shape[0]):
            if needs_x:
                grad_x = g @ w
            if needs_w:
                grad_w = g.T @ x
        if grad_x is not None:
            if sphere:
                ctx.kernels.project(grad_x, x, inverse_x, factor)
            else:
                grad_x *= factor
        if grad_w is not None:
            if inverse_w is not None:
                ctx.kernels.project(grad_w, w, inverse_w, factor)
            else:
                grad_w *= factor
        return grad_x, grad_w, grad_bias, None, None, None, None


def _loss_eagerly(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor) -> tuple[Tensor]:
    _, _, _, rows, shares = ctx.kept
    own = rowwise.Own(x, x, rows, x)
    positive, negative = rowwise.eagerly(x, w, bias, index, ctx.similarity, own)
    logits = (ctx.scale * negative).scatter(1, index[:, None], ctx.scale * positive[:, None])
    return ((F.cross_entropy(logits, index, reduction="none") * shares).sum(),)
