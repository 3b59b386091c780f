"""Which samples show best what embeddings do well and badly. All return indices of samples."""

import torch
from torch import Tensor

from cssoftmax.metrics._checks import directions, labels, logits_and_labels, positive
from cssoftmax.metrics.discriminability import class_centres

# Cosines held at a time: 16 MiB of float32, 32 MiB of float64.
BLOCK = 2**22


def hardest_pairs(embeddings: Tensor, target: Tensor, count: int, *, same: bool) -> tuple[Tensor, Tensor]:
    """The pairs that verification gets most wrong: of one class and far apart, or of two classes and close together.

    Each sample is paired with its hardest partner; of these pairs the hardest come first, and no sample comes twice, so
    that one mislabelled sample does not fill the list.

    Args:
        embeddings: (N, D), finite.
        target: (N,), integers.
        count: of pairs, at least 1; there may be fewer.
        same: pairs of one class with the smallest cosines, else pairs of two classes with the largest.

    Returns:
        The pairs, int64 (K, 2), K at most ``count``, and their cosines, float64 (K,).

    Raises:
        ValueError: shapes that do not fit, no samples, embeddings that are not finite, count below 1.
        TypeError: embeddings that are not floating-point, a target or count that is not integer.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]])
    >>> hardest_pairs(x, torch.tensor([0, 0, 1, 1]), 1, same=False)[0]
    tensor([[1, 2]])
    """
    x = directions(embeddings)
    y = labels(target, len(x))
    positive(count, "count")
    sign = -1.0 if same else 1.0
    near, hardest, partner = x.float(), torch.empty(len(x)), torch.empty(len(x), dtype=torch.int64)
    for rows in torch.split(torch.arange(len(x)), max(BLOCK // len(x), 1)):
        hardness = sign * (near[rows] @ near.T)
        alike = y[rows][:, None] == y
        hardness.masked_fill_(~alike if same else alike, -torch.inf)
        hardness[torch.arange(len(rows)), rows] = -torch.inf
        hardest[rows], partner[rows] = hardness.max(1)
    taken: set[int] = set()
    pairs: list[tuple[int, int]] = []
    for index in hardest.argsort(descending=True, stable=True).tolist():
        if len(pairs) == count or hardest[index] == -torch.inf:
            break
        first, second = sorted((index, int(partner[index])))
        if taken.isdisjoint((first, second)):
            taken |= {first, second}
            pairs.append((first, second))
    found = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return found, (x[found[:, 0]] * x[found[:, 1]]).sum(1)


def surest_errors(logits: Tensor, target: Tensor, count: int) -> Tensor:
    """The wrongly classified samples whose wrong class leads the right one by most: int64 (K,), K at most ``count``.

    Args:
        logits: (N, C), finite.
        target: (N,), integers from 0 to C - 1.
        count: at least 1.

    Raises:
        ValueError: shapes that do not fit, no samples, classes out of range, logits that are not finite, count below 1.
        TypeError: logits that are not floating-point, a target or count that is not integer.

    >>> surest_errors(torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 5.0]]), torch.tensor([0, 0, 0]), 2)
    tensor([2, 1])
    """
    scores, y = logits_and_labels(logits, target)
    positive(count, "count")
    lead = scores.amax(1) - scores.gather(1, y[:, None])[:, 0]
    order = lead.argsort(descending=True, stable=True)
    return order[lead[order] > 0][:count]


def typical_samples(embeddings: Tensor, target: Tensor) -> dict[int, int]:
    """For each class that has samples, the one nearest to the class's mean direction: {class: sample}.

    >>> typical_samples(torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, 0, 3]))
    {0: 1, 3: 3}
    """
    x = directions(embeddings)
    classes, centres = class_centres(embeddings, target)
    index = torch.searchsorted(classes, labels(target, len(x)))
    nearness = (x * centres[index]).sum(1)
    order = nearness.argsort(descending=True, stable=True)
    order = order[index[order].argsort(stable=True)]  # by class, the nearest first
    first = index[order].diff(prepend=torch.tensor([-1])) > 0
    return dict(zip(classes.tolist(), order[first].tolist(), strict=True))


def class_margins(embeddings: Tensor, class_weights: Tensor, target: Tensor) -> Tensor:
    """By how much the cosine to the own class weight leads the largest other one: (N,) float64, in [-2, 2].

    A sample is classified rightly by cosine where its margin is above 0. inf where there is a single class.

    Args:
        embeddings: (N, D), finite.
        class_weights: (C, D), finite.
        target: (N,), integers from 0 to C - 1.

    Raises:
        ValueError: shapes that do not fit, no samples, classes out of range, values that are not finite.
        TypeError: embeddings that are not floating-point, a target that is not integer.

    >>> class_margins(torch.tensor([[3.0, 0.0], [0.6, 0.8]]), torch.eye(2), torch.tensor([0, 0]))
    tensor([ 1.0000, -0.2000], dtype=torch.float64)
    """
    x, weights = directions(embeddings), directions(class_weights, "class_weights")
    y = labels(target, len(x))
    margins = []
    for rows in torch.split(torch.arange(len(x)), max(BLOCK // len(weights), 1)):
        cosines, own_class = logits_and_labels(x[rows] @ weights.T, y[rows])
        own = cosines.gather(1, own_class[:, None])
        margins.append((own - cosines.scatter(1, own_class[:, None], -torch.inf).amax(1, keepdim=True))[:, 0])
    return torch.cat(margins)
