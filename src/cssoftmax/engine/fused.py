"""The loss where the (N, C) matrix is small: the equations of ``eager`` in few operators.

The matrix stands as (C, N), classes below each other, so that the softmax of few classes runs over many rows at once.
The lengths of the class weights divide it, not the vectors. The backward pass is written out: with G the gradient in
the cosines c, the sums of G * c over columns and rows take the gradients in x and w to the sphere.
"""

from typing import Any

import torch
from torch import Tensor

from cssoftmax.engine import eager, products, rowwise
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
        left = x / length_x[:, None] if similarity.normalized == "both" else x
        with products.best(x.numel() * len(w)):
            c = w @ left.T if bias is None else torch.addmm(bias[:, None], w, left.T)
        own = c.gather(0, column).squeeze(0)
        inverse_x, inverse_w = length_x.reciprocal_(), None
        if similarity.normalized != "none":
            length_w = rowwise.lengths(w)[1]
            own /= length_w[index]
            inverse_w = length_w.reciprocal_()
            c *= inverse_w[:, None]
        parts = rowwise.own_class(own, norm, index, similarity, differentiable)
        negative, slope = rowwise.negative_and_slope(similarity, c, parts.constants())
        logits = negative * scale
        logits.scatter_(0, column, (parts.positive.detach() * scale)[None])
        log_p = torch.log_softmax(logits, 0)
        nll = log_p.gather(0, column).squeeze(0).neg_()
        smooth = None if shares is None else (log_p * shares[:, None]).sum(0).neg_()
        if differentiable:
            ctx.save_for_backward(x, w, bias, index, shares)
            ctx.set_materialize_grads(False)
            ctx.kept = c, slope, log_p.exp_(), parts, inverse_x, inverse_w
            ctx.similarity, ctx.scale = similarity, scale
        return nll, smooth

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor | None, grad_smooth: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return rowwise.differentiably(ctx, _rows_eagerly, (grad_nll, grad_smooth))
        x, w, _, index, shares = ctx.saved_tensors
        c, slope, p, parts, inverse_x, inverse_w = ctx.kept
        needs_x, needs_w, needs_bias = ctx.needs_input_grad[:3]
        sphere = ctx.similarity.normalized == "both"
        column = index[None]

        grad_nll = torch.zeros_like(inverse_x) if grad_nll is None else grad_nll * ctx.scale
        mass = grad_nll
        if grad_smooth is not None:
            grad_smooth = grad_smooth * ctx.scale
            mass = grad_nll + grad_smooth * shares.sum()
        g = p * mass
        if grad_smooth is not None:
            g.addcmul_(shares[:, None], grad_smooth, value=-1)
        grad_own, grad_norm = parts.gradients(g.gather(0, column).squeeze(0).sub_(grad_nll))
        if slope is not None:
            g *= slope
        g.scatter_(0, column, grad_own[None])
        along = None
        if inverse_w is not None:
            along = g * c
            g *= inverse_w[:, None]
        if sphere:
            g *= inverse_x

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
    positive, negative = rowwise.eagerly(x, w, bias, index, ctx.similarity, ctx.kept[3])
    log_p = (ctx.scale * negative.scatter(1, index[:, None], positive[:, None])).log_softmax(1)
    nll = -log_p.gather(1, index[:, None]).squeeze(1)
    return nll, None if shares is None else -(log_p * shares).sum(1)
