"""What fused and chunked share: whether they suit, and the part of a loss that is a row long."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from cssoftmax.engine import eager
from cssoftmax.similarity import Rows, Similarity

# exp2 costs a third of exp.
LOG2E = math.log2(math.e)

# Entries of the (N, C) matrix up to which holding it several times over is the fastest in PyTorch.
SMALL = 2**20

# Above it, log(1 + exp(z)) is z in float64 too.
STEEP = 40.0


def suits(embeddings: Tensor, weight: Tensor, similarity: Similarity, scale: float | Tensor) -> bool:
    """Whether a backward pass written by hand can serve: plain tensors, constant factors, no transform at work."""
    plain = (Tensor, torch.nn.Parameter)
    return (
        not torch.compiler.is_compiling()
        and type(embeddings) in plain
        and type(weight) in plain
        and not embeddings.is_meta
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not (isinstance(scale, Tensor) and (scale.requires_grad or scale.numel() > 1))
        and not any(isinstance(value, Tensor) and value.requires_grad for value in vars(similarity).values())
    )


def columns_of(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor | None]:
    """The labels, with class 0 for an ignored one, which still needs a column to look at; and where such are, if any.

    Labels are in 0..C-1 or ``ignore_index``, which usually is negative.
    """
    if target.numel() == 0 or (ignore_index < 0 and int(target.min()) >= 0):
        return target, None
    ignored = target == ignore_index
    return target.masked_fill(ignored, 0), ignored


def shares(class_weight: Tensor | None, weight: Tensor, label_smoothing: float) -> Tensor | None:
    """With label smoothing, the share of each class in a row's other part, class_weight_j / C: (C,)."""
    if not label_smoothing:
        return None
    return weight.new_full((len(weight),), 1 / len(weight)) if class_weight is None else class_weight / len(weight)


def reduce(
    nll: Tensor,
    smooth: Tensor | None,
    index: Tensor,
    ignored: Tensor | None,
    class_weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """The loss from -log p_y of each row and, with label smoothing, -sum_j shares_j * log p_j."""
    rescale = None if class_weight is None else class_weight[index]
    value = nll if rescale is None else nll * rescale
    if smooth is not None:
        value = (1 - label_smoothing) * value + label_smoothing * smooth
    if ignored is not None:
        value = value.masked_fill(ignored, 0)
        rescale = None if rescale is None else rescale.masked_fill(ignored, 0)
    if reduction == "none":
        return value
    if reduction == "sum":
        return value.sum()
    if rescale is not None:
        return value.sum() / rescale.sum()
    return value.mean() if ignored is None else value.sum() / (~ignored).sum()


def reduce_shares(index: Tensor, ignored: Tensor | None, class_weight: Tensor | None, reduction: str) -> Tensor | float:
    """By what a row's loss enters their sum or mean: one number for all, or one each, (N,)."""
    if ignored is None and class_weight is None:
        return 1.0 if reduction == "sum" else 1 / index.shape[0]
    share = torch.ones(index.shape[0]) if class_weight is None else class_weight[index]
    if ignored is not None:
        share = share.masked_fill(ignored, 0)
    return share if reduction == "sum" else share / share.sum()


def lengths(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Their lengths, 0 for one too short to have a direction; and what to divide it by: infinity for that one."""
    length = torch.linalg.vector_norm(vectors, dim=1)
    return F.threshold(length, eager.SHORTEST, 0), F.threshold(length, eager.SHORTEST, math.inf)


class Own(NamedTuple):
    """P of each row's own class with its graph, which ends at the cosine and the embedding's length, all (N,)."""

    cosine: Tensor
    norm: Tensor
    rows: Rows
    positive: Tensor

    def gradients(self, upstream: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of the cosine and of the length, None where that plays no part."""
        own, norm = torch.autograd.grad(
            self.positive, (self.cosine, self.norm), upstream, retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(upstream) if own is None else own, norm

    def constants(self) -> Rows:
        """The row parameters as what N takes them for."""
        return tuple(row.detach() if isinstance(row, Tensor) else row for row in self.rows)


def own_class(cosine: Tensor, norm: Tensor, index: Tensor, similarity: Similarity, differentiable: bool) -> Own:
    """Takes the row parameters from the similarity, once a loss: it may draw them at random."""
    with torch.set_grad_enabled(differentiable):
        cosine, norm = cosine.requires_grad_(differentiable), norm.requires_grad_(differentiable)
        rows = similarity.rows(cosine, norm, index)
        return Own(cosine, norm, rows, similarity.positive(cosine, rows))


def differentiably(
    ctx: Any, function: Callable[..., tuple[Tensor | None, ...]], upstream: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The backward pass of an operator on (x, w, bias, ...) whose gradients are to be differentiated: by autograd.

    ``function`` gives the operator's outputs from its context and saved tensors in plain PyTorch.
    """
    needed = ctx.needs_input_grad
    if all(grad is None for grad in upstream):
        return (None,) * len(needed)
    with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
        outputs = function(ctx, *ctx.saved_tensors)
        pairs = [(a, b) for a, b in zip(outputs, upstream, strict=True) if a is not None and b is not None]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                [value for value, need in zip(ctx.saved_tensors, needed, strict=False) if need],
                [grad for _, grad in pairs],
                create_graph=True,
                allow_unused=True,
            )
        )
    return tuple(next(found) if need else None for need in needed)


def negative_and_slope(similarity: Similarity, c: Tensor, rows: Rows) -> tuple[Tensor, Tensor | None]:
    """N and its slope; None for the slope 1, where N is c itself."""
    if hasattr(similarity, "negative_and_slope"):
        pair: tuple[Tensor, Tensor | None] = similarity.negative_and_slope(c, rows)
        return pair
    negative = similarity.negative(c, rows)
    return negative, None if negative is c else similarity.negative_slope(c, rows)


def eagerly(
    x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor, similarity: Similarity, own: Own
) -> tuple[Tensor, Tensor]:
    """P of the own class, (N,), and N of every class, (N, C), in plain PyTorch, with the row parameters of ``own``."""
    left, right, norm = eager.sides(x, w, similarity)
    c = F.linear(left, right, bias)
    cosine = c.gather(1, index[:, None]).squeeze(1)
    rows = tuple(
        new if isinstance(old, Tensor) and old.requires_grad else old
        for old, new in zip(own.rows, similarity.rows(cosine, norm, index), strict=True)
    )
    return similarity.positive(cosine, rows), similarity.negative(c, eager.columns(own.constants()))
