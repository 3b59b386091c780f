"""The loss where the (N, C) matrix is small: the equations of ``eager`` in few operators.

The matrix stands as (C, N), classes below each other, so that sums over few classes run over many rows at once. The
lengths of both sides divide it, not the vectors. The backward pass is written out: with G the gradient in the cosines
c, the sums of G * c over columns and rows take the gradients in x and w to the sphere.
"""

from typing import Any

import torch
from torch import Tensor

from cssoftmax.engine import eager, products, rowwise
from cssoftmax.engine.rowwise import LOG2E
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
    """The same as :func:`cssoftmax.engine.eager.loss`, which also takes over what does not suit this engine."""
    if not rowwise.suits(embeddings, weight, similarity, scale):
        return eager.loss(
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
    index, ignored = rowwise.columns_of(target, ignore_index)
    shares = rowwise.shares(class_weight, weight, label_smoothing)
    nll, smooth = _Rows.apply(embeddings, weight, bias, index, similarity, float(scale), shares)  # type: ignore[no-untyped-call]
    return rowwise.reduce(nll, smooth, index, ignored, class_weight, reduction, label_smoothing)


class _Rows(torch.autograd.Function):
    """Of each row -log p_y and, with ``shares``, (C,), -sum_j shares_j * log p_j: (N,) each."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        index: Tensor,
        similarity: Similarity,
        scale: float,
        shares: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        differentiable = any(ctx.needs_input_grad)
        column = index[None]
        norm, length_x = rowwise.lengths(x)
        with products.best(x.numel() * len(w)):
            c = product = w @ x.T if bias is None else torch.addmm(bias[:, None], w, x.T)
        own, inverse_x, inverse_w = c.gather(0, column).squeeze(0), length_x.reciprocal(), None
        if similarity.normalized != "none":
            length_w = rowwise.lengths(w)[1]
            own /= length_w[index] * length_x if similarity.normalized == "both" else length_w[index]
            inverse_w = length_w.reciprocal_()
            c = product * inverse_w[:, None]
        if similarity.normalized == "both":
            c *= inverse_x
        parts = rowwise.own_class(own, norm, index, similarity, differentiable)
        negative, slope = rowwise.negative_and_slope(similarity, c, parts.constants())
        z = negative.scatter_(0, column, parts.positive.detach()[None])
        top = z.amax(0).mul_(scale * LOG2E)
        torch.add(-top, z, alpha=scale * LOG2E, out=z)
        at_target = z.gather(0, column).squeeze(0)
        if shares is not None:
            total = shares @ z
        sums = z.exp2_().sum(0)
        log_sum = sums.log2()
        nll = (log_sum - at_target).div_(LOG2E)
        smooth = None if shares is None else (shares.sum() * log_sum - total).div_(LOG2E)
        if differentiable:
            ctx.save_for_backward(x, w, bias, index, shares)
            ctx.set_materialize_grads(False)
            ctx.kept = product, z, sums, slope, parts, inverse_x, inverse_w
            ctx.similarity, ctx.scale = similarity, scale
        return nll, smooth

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor | None, grad_smooth: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return rowwise.differentiably(ctx, _rows_eagerly, (grad_nll, grad_smooth))
        x, w, _, index, shares = ctx.saved_tensors
        product, exponentials, sums, slope, parts, inverse_x, inverse_w = ctx.kept
        needs_x, needs_w, needs_bias = ctx.needs_input_grad[:3]
        sphere = ctx.similarity.normalized == "both"
        column = index[None]

        grad_nll = torch.zeros_like(inverse_x) if grad_nll is None else grad_nll * ctx.scale
        mass = grad_nll
        if grad_smooth is not None:
            grad_smooth = grad_smooth * ctx.scale
            mass = grad_nll + grad_smooth * shares.sum()
        g = exponentials * (mass / sums)
        if grad_smooth is not None:
            g.addcmul_(shares[:, None], grad_smooth, value=-1)
        grad_own, grad_norm = parts.gradients(g.gather(0, column).squeeze(0).sub_(grad_nll))
        if slope is not None:
            g *= slope
        g.scatter_(0, column, grad_own[None])
        if inverse_w is not None:
            g *= inverse_w[:, None]
        if sphere:
            g *= inverse_x
        # To the gradient in the products, these are what G * c is to that in the cosines.
        along = None if inverse_w is None else g * product

        grad_x = grad_w = None
        with products.best(x.numel() * len(w)):
            if needs_x:
                # Along the embedding: what its length does to P, less what would leave the sphere.
                radial = None if grad_norm is None else grad_norm * inverse_x
                if along is not None and sphere:
                    outward = along.sum(0).mul_(inverse_x.square())
                    radial = outward.neg_() if radial is None else radial - outward
                grad_x = g.T @ w if radial is None else (x * radial[:, None]).addmm_(g.T, w)
            if needs_w:
                if along is None or inverse_w is None:
                    grad_w = g @ x
                else:
                    outward = along.sum(1).mul_(inverse_w.square())
                    grad_w = (w * outward[:, None]).addmm_(g, x, beta=-1)
        return grad_x, grad_w, g.sum(1) if needs_bias else None, None, None, None, None


def _rows_eagerly(
    ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor, shares: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    positive, negative = rowwise.eagerly(x, w, bias, index, ctx.similarity, ctx.kept[4])
    log_p = (ctx.scale * negative.scatter(1, index[:, None], positive[:, None])).log_softmax(1)
    nll = -log_p.gather(1, index[:, None]).squeeze(1)
    return nll, None if shares is None else -(log_p * shares).sum(1)
