"""The loss where the (N, C) matrix is small, with the elementwise work in compiled C: three products and few calls.

As in ``chunked``, a row's loss is a function of the similarity P to its own class and of the sum of exponentials over
the other classes; see ``kernels.c``. What it does not do is left to ``fused``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cssoftmax.engine import fused, products, rowwise
from cssoftmax.engine.compiled import build
from cssoftmax.engine.rowwise import LOG2E, STEEP
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
    """The same as :func:`cssoftmax.engine.eager.loss`; in float32, with a C compiler, without label smoothing.

    Everything else, and a similarity that does something C has no operation for, is done by ``fused``.
    """
    suits = (
        not label_smoothing
        and rowwise.suits(embeddings, weight, similarity, scale)
        and build.suits(embeddings, weight)
        and not build.refused(similarity)
    )
    if not suits:
        return fused.loss(
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
    index, ignored = rowwise.columns_of(target.contiguous(), ignore_index)
    nll = _Rows.apply(embeddings, weight, bias, index, similarity, float(scale))  # type: ignore[no-untyped-call]
    return rowwise.reduce(nll, None, index, ignored, class_weight, reduction, 0.0)


class _Rows(torch.autograd.Function):
    """Of each row -log p_y, (N,)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor, similarity: Similarity, scale: float
    ) -> Tensor:
        differentiable = any(ctx.needs_input_grad)
        common = build.common()
        norm, inverse_x = x.new_empty(2, len(x))
        common.lengths(x, norm, inverse_x)
        by_row = inverse_x if similarity.normalized == "both" else None
        inverse_w = None
        if similarity.normalized != "none":
            inverse_w = w.new_empty(len(w))
            common.lengths(w, None, inverse_w)
        with products.best(x.numel() * len(w)):
            block = x @ w.T
        own = block.gather(1, index[:, None]).squeeze(1)
        if inverse_w is not None:
            own *= inverse_w[index]
        if by_row is not None:
            own *= by_row
        if bias is not None:
            own += bias[index]
        parts = rowwise.own_class(own, norm, index, similarity, differentiable)
        rows = parts.constants()
        ctx.kernels = build.kernels(similarity, rows)
        if ctx.kernels is None:
            return fused._Rows.forward(ctx, x, w, bias, index, similarity, scale, None)[0]
        tops, sums = x.new_empty(2, len(x))
        ctx.kernels.forward(
            block, by_row, inverse_w, bias, index, 0, scale * LOG2E, rows, tops, sums, keep=differentiable
        )
        others = tops.add_(sums.log2()).div_(LOG2E)
        excess = others.sub_(parts.positive.detach(), alpha=scale)
        if differentiable:
            ctx.save_for_backward(x, w, bias, index, None)
            ctx.set_materialize_grads(False)
            ctx.kept = block, sums, excess, parts, inverse_x, inverse_w
            ctx.similarity, ctx.scale = similarity, scale
        return F.softplus(excess, threshold=STEEP)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.kernels is None:
            return fused._Rows.backward(ctx, grad, None)[:6]
        if grad is None:
            return (None,) * 6
        if torch.is_grad_enabled():
            return rowwise.differentiably(ctx, _rows_eagerly, (grad,))
        x, w, _, index, _ = ctx.saved_tensors
        block, sums, excess, parts, inverse_x, inverse_w = ctx.kept
        needs_x, needs_w, needs_bias = ctx.needs_input_grad[:3]
        sphere = ctx.similarity.normalized == "both"

        mass = excess.sigmoid().mul_(grad).mul_(ctx.scale)
        owns, grad_norm = parts.gradients(-mass)
        if sphere:
            mass *= inverse_x
            owns = owns * inverse_x
        if inverse_w is not None:
            owns = owns * inverse_w[index]
        g = torch.empty_like(block)
        ctx.kernels.finished(block, g, index, 0, mass.div_(sums.clamp(min=torch.finfo(sums.dtype).tiny)), owns)
        grad_x = grad_w = None
        with products.best(x.numel() * len(w)):
            if needs_x:
                grad_x = g @ w
            if needs_w:
                grad_w = g.T @ x
        if grad_x is not None:
            radial = None if grad_norm is None else grad_norm * inverse_x
            if sphere:
                ctx.kernels.project(grad_x, x, inverse_x, radial)
            elif radial is not None:
                grad_x.addcmul_(x, radial[:, None])
        if grad_w is not None and inverse_w is not None:
            ctx.kernels.project(grad_w, w, inverse_w)
        return grad_x, grad_w, g.sum(0) if needs_bias else None, None, None, None


def _rows_eagerly(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor, _: None) -> tuple[Tensor, ...]:
    positive, negative = rowwise.eagerly(x, w, bias, index, ctx.similarity, ctx.kept[3])
    logits = (ctx.scale * negative).scatter(1, index[:, None], ctx.scale * positive[:, None])
    return (F.cross_entropy(logits, index, reduction="none"),)
