"""The loss in plain PyTorch: any device, any order of derivative. The other engines are measured against it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cssoftmax.similarity import Rows, Similarity

# Below this length an embedding or a class weight has no direction: its cosines and its gradient are zero.
SHORTEST = 1e-8


def normalize(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) rows scaled to length one, and their lengths (N,).

    A row shorter than 1e-8 becomes zero, and so do its length and its gradient.
    """
    length = torch.linalg.vector_norm(vectors, dim=1)
    has_direction = ~(length <= SHORTEST)  # NaN stays NaN: it must not pass for a zero
    length = torch.where(has_direction, length, 1)
    return torch.where(has_direction[:, None], vectors / length[:, None], 0), torch.where(has_direction, length, 0)


def sides(embeddings: Tensor, weight: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor, Tensor]:
    """The two sides whose inner products the similarity maps, (N, D) and (C, D), and the embeddings' lengths, (N,)."""
    directions, norm = normalize(embeddings)
    left = directions if similarity.normalized == "both" else embeddings
    right = weight if similarity.normalized == "none" else normalize(weight)[0]
    return left, right, norm


def inner_products(left: Tensor, right: Tensor, bias: Tensor | None, sub_centers: int = 1) -> Tensor:
    """(N, C) inner products of the sides; with sub-centers, where a class has K rows of ``right``, the largest of K."""
    products = F.linear(left, right, bias)
    if sub_centers == 1:
        return products
    return products.view(products.shape[0], products.shape[1] // sub_centers, sub_centers).max(2).values


def similarities(c: Tensor, norm: Tensor, target: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """P of each row's own class, (N,), and N of every class, (N, C), the target's column included."""
    own = c.gather(1, target[:, None]).squeeze(1)
    rows = similarity.rows(own, norm, target)
    return similarity.positive(own, rows), similarity.negative(c, columns(rows))


def columns(rows: Rows) -> Rows:
    """Row parameters (N,) as constants (N, 1), to broadcast against (N, C)."""
    return tuple(row.detach()[:, None] if isinstance(row, Tensor) else row for row in rows)


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
    sub_centers: int = 1,
) -> Tensor:
    """Cross entropy of the logits scale * P (own class) and scale * N (others); arguments as in ``functional``."""
    left, right, norm = sides(embeddings, weight, similarity)
    c = inner_products(left, right, bias, sub_centers)
    index = target.clamp(0, c.shape[1] - 1)  # an ignored label still needs a column to look at
    positive, negative = similarities(c, norm, index, similarity)
    logits = scale * negative.scatter(1, index[:, None], positive[:, None])
    return F.cross_entropy(
        logits,
        target,
        weight=class_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


class Part(NamedTuple):
    """What is known of the rows where the class weights at hand are a part of all: for the sharded head.

    Attributes:
        target: each row's label among all classes, (N,).
        add_up: from the cosines to the rows' own classes, (N,), 0 where that is elsewhere, to those over all parts;
            and so with their gradients.
    """

    target: Tensor
    add_up: Callable[[Tensor], Tensor]


def per_row(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    index: Tensor,
    similarity: Similarity,
    scale: float | Tensor,
    shares: Tensor | None,
    part: Part,
    sub_centers: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the loss of each row needs of a part of the classes, (N,); see :func:`cssoftmax.engine.chunked.per_row`."""
    left, right, norm = sides(x, w, similarity)
    c = inner_products(left, right, bias, sub_centers)
    here = (index >= 0).nonzero().squeeze(1)
    column = index[here]
    own = part.add_up(c.new_zeros(len(c)).index_put((here,), c[here, column]))
    rows = similarity.rows(own, norm, part.target)
    negative = similarity.negative(c, columns(rows))
    total = None
    if shares is not None:
        total = (scale * negative * shares).index_put((here, column), c.new_zeros(())).sum(1)
    z = (scale * negative).index_put((here, column), c.new_tensor(-math.inf))
    top = z.detach().amax(1, keepdim=True).clamp(min=torch.finfo(z.dtype).min) if len(w) else c.new_zeros(len(c), 1)
    others = (z - top).exp().sum(1).log() + top.squeeze(1)
    return similarity.positive(own, rows), others, total
