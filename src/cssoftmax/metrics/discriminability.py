"""How tight classes are and how far apart, on the unit sphere. Angles are in degrees.

Embeddings count by direction only. A zero embedding has none: its cosine to everything is taken as 0, so that it is 90
degrees from everything. Classes are those that have samples, in ascending order of their numbers.
"""

import math

import torch
from torch import Tensor

from cssoftmax.metrics._checks import directions, labels

# A mean of unit vectors shorter than this is rounding error: the vectors cancel.
CANCELLED = 1e-12
ROWS = 256


def class_centres(embeddings: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The mean direction of each class: the normalised mean of its normalised embeddings.

    Args:
        embeddings: (N, D), finite.
        target: (N,), integers.

    Returns:
        The K classes that have samples, (K,) ascending, and their centres, (K, D) float64 of length 1; a centre is zero
        where the embeddings of a class cancel out.

    Raises:
        ValueError: shapes that do not fit, no samples, embeddings that are not finite.
        TypeError: embeddings that are not floating-point, a target that is not integer.

    >>> class_centres(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 5.0]]), torch.tensor([7, 3, 3]))
    (tensor([3, 7]), tensor([[0., 1.],
            [1., 0.]], dtype=torch.float64))
    """
    x, classes, index, counts = _classes(embeddings, target)
    return classes, _centres(_means(x, index, counts))


def intra_class_angles(embeddings: Tensor, target: Tensor) -> Tensor:
    """For each class, the mean angle between its embeddings and its own centre, in degrees: (K,) float64.

    Args:
        embeddings: (N, D), finite.
        target: (N,), integers; K different ones. Results are in their ascending order.

    Raises:
        ValueError: shapes that do not fit, no samples, embeddings that are not finite.
        TypeError: embeddings that are not floating-point, a target that is not integer.

    >>> intra_class_angles(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -2.0]]), torch.tensor([0, 0, 1]))
    tensor([45.,  0.], dtype=torch.float64)
    """
    x, _, index, counts = _classes(embeddings, target)
    centres = _centres(_means(x, index, counts))[index]
    angles = _degrees((x - centres).norm(dim=1), (x + centres).norm(dim=1))
    return torch.zeros(len(counts), dtype=torch.float64).index_add_(0, index, angles) / counts


def inter_class_angles(embeddings: Tensor, target: Tensor) -> Tensor:
    """For each class, the angle between its centre and the nearest other centre, in degrees: (K,) float64.

    A single class has no other: its angle is nan.

    Args:
        embeddings: (N, D), finite.
        target: (N,), integers; K different ones. Results are in their ascending order.

    Raises:
        ValueError: shapes that do not fit, no samples, embeddings that are not finite.
        TypeError: embeddings that are not floating-point, a target that is not integer.

    >>> inter_class_angles(torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]), torch.tensor([0, 1, 2]))
    tensor([90., 90., 90.], dtype=torch.float64)
    """
    _, centres = class_centres(embeddings, target)
    if len(centres) == 1:
        return torch.full((1,), math.nan, dtype=torch.float64)
    nearest = []
    for first in range(0, len(centres), ROWS):
        block = centres[first : first + ROWS]
        angles = _degrees(_distances(block, centres), _distances(block, -centres))
        rows = torch.arange(len(block))
        angles[rows, first + rows] = math.inf
        nearest.append(angles.amin(1))
    return torch.cat(nearest)


def fisher_ratio(embeddings: Tensor, target: Tensor) -> float:
    """Trace of the between-class scatter over trace of the within-class scatter of the normalised embeddings.

    With means m_c of the n_c embeddings x of class c and the mean m of all: sum_c n_c |m_c - m|^2 over
    sum_c sum_x |x - m_c|^2 (Fukunaga 1990, "Introduction to Statistical Pattern Recognition", chapter 10; means are
    plain means here, not normalised). nan for a single class. Where every class is one point there is no within-class
    scatter but rounding error, and the ratio is inf or very large.

    Args:
        embeddings: (N, D), finite.
        target: (N,), integers.

    Raises:
        ValueError: shapes that do not fit, no samples, embeddings that are not finite.
        TypeError: embeddings that are not floating-point, a target that is not integer.

    >>> x = torch.tensor([[0.6, 0.8], [0.6, -0.8], [-0.6, 0.8], [-0.6, -0.8]])
    >>> round(fisher_ratio(x, torch.tensor([0, 0, 1, 1])), 4)  # 0.36 / 0.64
    0.5625
    """
    x, classes, index, counts = _classes(embeddings, target)
    if len(classes) == 1:
        return math.nan
    means = _means(x, index, counts)
    between = (counts * (means - x.mean(0)).square().sum(1)).sum()
    within = (x - means[index]).square().sum()
    return float(between / within)


def _classes(embeddings: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = directions(embeddings)
    classes, index, counts = torch.unique(labels(target, len(x)), return_inverse=True, return_counts=True)
    return x, classes, index, counts


def _means(x: Tensor, index: Tensor, counts: Tensor) -> Tensor:
    return torch.zeros(len(counts), x.shape[1], dtype=x.dtype).index_add_(0, index, x) / counts[:, None]


def _centres(means: Tensor) -> Tensor:
    length = means.norm(dim=1, keepdim=True)
    return torch.where(length > CANCELLED, means / length, 0.0)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _degrees(difference: Tensor, total: Tensor) -> Tensor:
    """The angle between a and b of length 1 (or 0), from |a - b| and |a + b|: exact near 0 and 180, unlike acos."""
    angle = torch.rad2deg(2 * torch.atan2(difference, total))
    return torch.where((difference == 0) & (total == 0), 90.0, angle)
