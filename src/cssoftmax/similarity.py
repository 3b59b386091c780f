"""What sets one softmax loss apart from another: how a cosine becomes a logit.

A *similarity* is three elementwise facts. With c the (N, C) cosines between embeddings and class weights:

- ``row(own, target)``: one parameter per row, from the cosine to the row's own class ``own`` (N,) and its label;
- ``positive(c, row)``: P, the similarity to the own class, and its slope dP/dc;
- ``negative(c, row)``: N, the similarity to any other class, and its slope dN/dc.

The logits are scale * P in the target's column and scale * N elsewhere; cross entropy does the rest. Slopes are what
the backward pass uses, so they leave out whatever a similarity treats as constant. A ``row`` is a float, or a tensor
that broadcasts against ``c``.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Row = float | Tensor

# Nearer than this to the clamp of an update weight, its slope, which has no bound there, counts as zero.
EDGE = 1e-6


class Similarity(Protocol):
    """The interface every similarity has; see the module's documentation.

    ``cosine`` is False for the plain softmax, whose "cosines" are inner products plus a bias.
    """

    @property
    def cosine(self) -> bool: ...
    def row(self, own: Tensor, target: Tensor) -> Row: ...
    def positive(self, c: Tensor, row: Row) -> Tensor: ...
    def negative(self, c: Tensor, row: Row) -> Tensor: ...
    def positive_slope(self, c: Tensor, row: Row) -> Tensor: ...
    def negative_slope(self, c: Tensor, row: Row) -> Tensor: ...


@dataclass(frozen=True)
class CSSoftmax:
    """P = a+ (c - (1 - r)), N = a- (c - r), with r = (1 - margin) / 2 of the row's class.

    The update weights a+ = max(1 + r - c, 0) ** u and a- = max(c + r, 0) ** u say how hard a pair pulls, by how far its
    similarity is from its goal (1 + r and -r). With ``detach_update`` they are constants in the backward pass.
    ``margin`` is one number or one per class, shape (C,).

    >>> similarity = CSSoftmax(margin=0.2, weight_update=0.0)
    >>> c = torch.tensor([0.9])
    >>> row = similarity.row(c, torch.tensor([0]))
    >>> similarity.positive(c, row) - similarity.negative(c, row)  # at u = 0 the margin, at any cosine
    tensor([-0.2000])
    """

    margin: float | Tensor
    weight_update: float
    detach_update: bool = True
    cosine: bool = True

    def row(self, own: Tensor, target: Tensor) -> Row:
        return (1 - _of_class(self.margin, target, own)) / 2

    def positive(self, c: Tensor, row: Row) -> Tensor:
        return self._times_update(1 + row - c, c - (1 - row))

    def negative(self, c: Tensor, row: Row) -> Tensor:
        return self._times_update(c + row, c - row)

    def positive_slope(self, c: Tensor, row: Row) -> Tensor:
        gap = 1 + row - c
        return self._update(gap) - self._update_slope(gap) * (c - (1 - row))

    def negative_slope(self, c: Tensor, row: Row) -> Tensor:
        gap = c + row
        return self._update(gap) + self._update_slope(gap) * (c - row)

    def _times_update(self, gap: Tensor, similarity: Tensor) -> Tensor:
        if self.weight_update == 0:
            return similarity
        return self._update(gap.detach() if self.detach_update else gap) * similarity

    def _update(self, gap: Tensor) -> Tensor:
        u = self.weight_update
        if u == 0:
            return torch.ones_like(gap)
        if u == 1:
            return gap.clamp(min=0)
        if not gap.requires_grad:
            return gap.clamp(min=0).pow(u)
        # The slope u * gap ** (u - 1) has no bound as gap falls to 0.
        return torch.where(gap > EDGE, gap.clamp(min=EDGE).pow(u), gap.detach().clamp(min=0).pow(u))

    def _update_slope(self, gap: Tensor) -> Tensor:
        u = self.weight_update
        if u == 0 or self.detach_update:
            return torch.zeros_like(gap)
        if u == 1:
            return (gap >= 0).to(gap.dtype)
        return torch.where(gap > EDGE, u * gap.clamp(min=EDGE).pow(u - 1), torch.zeros_like(gap))


@dataclass(frozen=True)
class SOSoftmax:
    """P = r^2 - (1 - c)^2, N = c^2 - r^2, with r = (1 - margin) / 2: second-order in the cosine.

    CS-Softmax with u = 1, differentiated through the update weights, where no clamp is active.
    """

    margin: float | Tensor
    cosine: bool = True

    def row(self, own: Tensor, target: Tensor) -> Row:
        return (1 - _of_class(self.margin, target, own)) / 2

    def positive(self, c: Tensor, row: Row) -> Tensor:
        return row**2 - (1 - c) ** 2

    def negative(self, c: Tensor, row: Row) -> Tensor:
        return c**2 - row**2

    def positive_slope(self, c: Tensor, row: Row) -> Tensor:
        return 2 * (1 - c)

    def negative_slope(self, c: Tensor, row: Row) -> Tensor:
        return 2 * c


@dataclass(frozen=True)
class CosFace:
    """P = c - margin, N = c. With margin 0 it is NormFace; with ``cosine=False`` and margin 0, the plain softmax."""

    margin: float | Tensor = 0.0
    cosine: bool = True

    def row(self, own: Tensor, target: Tensor) -> Row:
        return _of_class(self.margin, target, own)

    def positive(self, c: Tensor, row: Row) -> Tensor:
        return c - row

    def negative(self, c: Tensor, row: Row) -> Tensor:
        return c

    def positive_slope(self, c: Tensor, row: Row) -> Tensor:
        return torch.ones_like(c)

    def negative_slope(self, c: Tensor, row: Row) -> Tensor:
        return torch.ones_like(c)


@dataclass(frozen=True)
class ArcFace:
    """P = cos(theta + margin), N = c, with theta = acos(c) and the margin in radians.

    Where theta + margin would pass pi, P goes on as c - margin * sin(margin), as in the authors' code: beyond pi the
    cosine rises again and the penalty would turn into a bonus. No acos is taken: its slope is infinite at cosine +-1.
    """

    margin: float | Tensor
    cosine: bool = True

    def row(self, own: Tensor, target: Tensor) -> Row:
        return _of_class(self.margin, target, own)

    def positive(self, c: Tensor, row: Row) -> Tensor:
        cos, sin = _cos_sin(row)
        inside, root = _sine_squared(c)
        sine = torch.where(inside, root.sqrt(), 0)
        return torch.where(c > -cos, c * cos - sine * sin, c - row * sin)

    def positive_slope(self, c: Tensor, row: Row) -> Tensor:
        cos, sin = _cos_sin(row)
        inside, root = _sine_squared(c)
        return torch.where(c > -cos, cos + torch.where(inside, c / root.sqrt(), 0) * sin, 1.0)

    def negative(self, c: Tensor, row: Row) -> Tensor:
        return c

    def negative_slope(self, c: Tensor, row: Row) -> Tensor:
        return torch.ones_like(c)


def default_scale(similarity: Similarity, num_classes: int, probability: float = 0.999) -> float:
    """The scale at which a perfect embedding is given ``probability`` for its own class.

    Perfect: cosine 1 to the own class, 0 to all others. Then scale * (P(1) - N(0)) = log((C - 1) p / (1 - p)), and the
    loss's floor, -log p, is the same for every loss of the family, whatever its margin. A margin that differs by class
    enters by its mean gap.

    >>> round(default_scale(CosFace(), num_classes=10), 2)
    9.1
    """
    target = torch.arange(num_classes)
    one, zero = torch.ones(num_classes, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.float64)
    row = similarity.row(one, target)
    gap = (similarity.positive(one, row) - similarity.negative(zero, row)).mean().item()
    return math.log(max(num_classes - 1, 1) * probability / (1 - probability)) / gap


def _of_class(margin: float | Tensor, target: Tensor, like: Tensor) -> Row:
    """The margin of each row's class: (N,), or the one number that serves all."""
    return margin.to(like)[target] if isinstance(margin, Tensor) else margin


def _sine_squared(c: Tensor) -> tuple[Tensor, Tensor]:
    """Where 1 - c^2 is positive, and 1 - c^2 there (elsewhere 1, so that no root has an infinite slope)."""
    square = (1 - c) * (1 + c)
    inside = square > 0
    return inside, torch.where(inside, square, 1)


def _cos_sin(angle: Row) -> tuple[Row, Row]:
    return (angle.cos(), angle.sin()) if isinstance(angle, Tensor) else (math.cos(angle), math.sin(angle))
