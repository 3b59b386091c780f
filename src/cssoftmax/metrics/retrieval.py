"""Does the search for the nearest embeddings, by cosine, find the right class?

A zero embedding has cosine 0 to everything. Of equally near samples the one with the lower index is nearer, so that
embeddings that are all the same come out at chance.
"""

import math

import torch
from torch import Tensor

from cssoftmax.metrics._checks import directions, labels, positive

# Cosines held at a time: 16 MiB of float64.
BLOCK = 2**21


def recall_at_1(embeddings: Tensor, target: Tensor) -> float:
    """The fraction of samples whose nearest other sample is of the same class, from 0 to 1.

    Also called precision at 1, or leave-one-out nearest-neighbour accuracy. Samples that are alone in their class are
    searched among, but not for; nan if all are alone.

    Args:
        embeddings: (N, D), finite.
        target: (N,), integers.

    Raises:
        ValueError: shapes that do not fit, no samples, embeddings that are not finite.
        TypeError: embeddings that are not floating-point, a target that is not integer.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.5], [1.0, 2.0]])
    >>> recall_at_1(x, torch.tensor([0, 0, 1, 1]))  # the third is nearer to the second than to the fourth
    0.75
    """
    return leave_one_out(embeddings, target)[0]


def map_at_r(embeddings: Tensor, target: Tensor) -> float:
    """Mean average precision at R, from 0 to 1 (Musgrave et al. 2020, "A Metric Learning Reality Check", section 3.2).

    For a sample with R others of its class, the mean over the ranks i = 1 to R of the precision among the i nearest
    others where the i-th is of the same class, and 0 where it is not; then the mean over the samples. Samples with
    R = 0 are searched among, but not for; nan if there are no others.

    Args:
        embeddings: (N, D), finite.
        target: (N,), integers.

    Raises:
        ValueError: shapes that do not fit, no samples, embeddings that are not finite.
        TypeError: embeddings that are not floating-point, a target that is not integer.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [0.0, 1.0]])
    >>> map_at_r(x, torch.tensor([0, 1, 0, 2]))  # R = 1 for both samples of class 0, and their nearest is of class 1
    0.0
    """
    return leave_one_out(embeddings, target)[1]


def leave_one_out(embeddings: Tensor, target: Tensor) -> tuple[float, float]:
    """``recall_at_1`` and ``map_at_r`` in one search, which is what takes the time.

    >>> leave_one_out(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
    (1.0, 1.0)
    """
    x = directions(embeddings)
    y = labels(target, len(x))
    _, index, counts = torch.unique(y, return_inverse=True, return_counts=True)
    others = counts[index] - 1
    queries = others.nonzero().flatten()
    if len(queries) == 0:
        return math.nan, math.nan
    first, average = 0.0, 0.0
    for rows in torch.split(queries, _rows(len(x))):
        r = others[rows][:, None]
        nearest = _nearest(x[rows], x, int(r.max()), rows)
        rank = torch.arange(1, nearest.shape[1] + 1)
        hit = ((y[nearest] == y[rows][:, None]) & (rank <= r)).double()
        first += float(hit[:, 0].sum())
        average += float(((hit.cumsum(1) / rank * hit).sum(1, keepdim=True) / r).sum())
    return first / len(queries), average / len(queries)


def knn_accuracy(
    train_embeddings: Tensor, train_target: Tensor, embeddings: Tensor, target: Tensor, k: int = 5
) -> float:
    """The fraction of samples that a vote of their ``k`` nearest training samples puts into the right class, 0 to 1.

    Every neighbour has one vote; of classes with equally many, that of the nearest neighbour wins.

    Args:
        train_embeddings: (M, D), finite.
        train_target: (M,), integers.
        embeddings: (N, D), finite.
        target: (N,), integers.
        k: at least 1; above M it counts as M.

    Raises:
        ValueError: shapes that do not fit, no samples, embeddings that are not finite, k below 1.
        TypeError: embeddings that are not floating-point, targets or k that are not integer.

    >>> train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> knn_accuracy(train, torch.tensor([0, 1]), torch.tensor([[3.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]), k=1)
    0.5
    """
    gallery = directions(train_embeddings, "train_embeddings")
    gallery_labels = labels(train_target, len(gallery), "train_target")
    x = directions(embeddings)
    y = labels(target, len(x))
    if x.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"embeddings: expected {gallery.shape[1]} columns, as many as train_embeddings, got {x.shape[1]}"
        )
    k = min(positive(k, "k"), len(gallery))
    right = 0
    for rows in torch.split(torch.arange(len(x)), _rows(len(gallery) + k * k)):
        near = gallery_labels[_nearest(x[rows], gallery, k)]
        votes = (near[:, :, None] == near[:, None, :]).sum(2)
        elected = (votes * k - torch.arange(k)).argmax(1, keepdim=True)  # most votes, then nearest
        right += int((near.gather(1, elected).flatten() == y[rows]).sum())
    return right / len(x)


def _rows(columns: int) -> int:
    return max(1, BLOCK // columns)


def _nearest(queries: Tensor, gallery: Tensor, k: int, itself: Tensor | None = None) -> Tensor:
    """Indices of the k nearest of the gallery, nearest first: (B, k); without the one at index ``itself`` (B,)."""
    # A key is the cosine as a whole number (in steps of 2^-38 with 10,000 samples) less the index as a fraction, which
    # fits the 53 bits of a float64. All keys differ, so that what is nearer depends neither on rounding in the product
    # nor on how topk breaks ties.
    width = 2 ** len(gallery).bit_length()
    keys = (queries @ gallery.T).mul_(2**52 // width).round_()
    keys -= torch.arange(len(gallery), dtype=keys.dtype) / width
    if itself is not None:
        keys[torch.arange(len(queries)), itself] = -math.inf
    return keys.topk(k).indices
