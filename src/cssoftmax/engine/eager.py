"""The loss in plain PyTorch: any device, any order of derivative. The other engines are measured against it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from cssoftmax.similarity import Similarity

# Below this length an embedding or a class weight has no direction: its cosines and its gradient are zero.
SHORTEST = 1e-8


def normalize(vectors: Tensor) -> Tensor:
    """(N, D) rows scaled to length one; a row shorter than 1e-8 becomes zero, and so does its gradient."""
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    has_direction = length > SHORTEST
    return torch.where(has_direction, vectors / torch.where(has_direction, length, 1), 0)


def cosines(embeddings: Tensor, weight: Tensor) -> Tensor:
    """(N, D) and (C, D) to (N, C)."""
    return normalize(embeddings) @ normalize(weight).mT


def products(embeddings: Tensor, weight: Tensor, bias: Tensor | None, similarity: Similarity) -> Tensor:
    """What the similarity maps: cosines, or for the plain softmax inner products plus ``bias`` (C,). Shape (N, C)."""
    return cosines(embeddings, weight) if similarity.cosine else F.linear(embeddings, weight, bias)


def similarities(c: Tensor, target: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """P of each row's own class, (N,), and N of every class, (N, C), the target's column included."""
    own = c.gather(1, target[:, None]).squeeze(1)
    row = similarity.row(own, target)
    return similarity.positive(own, row), similarity.negative(c, row[:, None] if isinstance(row, Tensor) else row)


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
    """Cross entropy of the logits scale * P (own class) and scale * N (others); arguments as in ``functional``."""
    c = products(embeddings, weight, bias, similarity)
    index = target.clamp(0, len(weight) - 1)  # an ignored label still needs a column to look at
    positive, negative = similarities(c, index, similarity)
    logits = scale * negative.scatter(1, index[:, None], positive[:, None])
    return F.cross_entropy(
        logits,
        target,
        weight=class_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
