"""What sets one softmax loss apart from another: how a cosine becomes a logit.

A *similarity* is three elementwise facts. With c the (N, C) cosines between embeddings and class weights:

- ``rows(own, norm, target)``: the row parameters, from the cosine to the row's own class ``own`` (N,), the embedding's
  length ``norm`` (N,) and its label;
- ``positive(own, rows)``: P, the similarity to the own class, (N,), differentiable in ``own`` and in the parameters;
- ``negative(c, rows)``: N, the similarity to any other class, and its slope dN/dc: what engines that never hold the
  (N, C) matrix run in blocks. To N and its slope the row parameters are constants.

The logits are scale * P in the target's column and scale * N elsewhere; cross entropy does the rest. The slope is that
of the backward pass: it leaves out whatever a similarity treats as constant. A row parameter is a float, or a tensor
that broadcasts against ``own`` or ``c``.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Row = float | Tensor
Rows = tuple[Row, ...]
Normalized = Literal["both", "weights", "none"]

# Nearer than this to the clamp of an update weight, its slope, which has no bound there, counts as zero.
EDGE = 1e-6


class Similarity(Protocol):
    """The interface every similarity has; see the module's documentation.

    ``normalized`` says whose length is divided out of the inner products: that of "both" sides (c are cosines), of the
    class "weights" only, or of "none" (the plain softmax, which adds a bias).
    """

    @property
    def normalized(self) -> Normalized: ...
    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows: ...
    def positive(self, own: Tensor, rows: Rows) -> Tensor: ...
    def negative(self, c: Tensor, rows: Rows) -> Tensor: ...
    def negative_slope(self, c: Tensor, rows: Rows) -> Tensor: ...


@dataclass(frozen=True)
class CSSoftmax:
    """P = a+ (c - (1 - r)), N = a- (c - r), with r = (1 - margin) / 2 of the row's class.

    The update weights a+ = max(1 + r - c, 0) ** u and a- = max(c + r, 0) ** u say how hard a pair pulls, by how far its
    similarity is from its goal (1 + r and -r). With ``detach_update`` they are constants in the backward pass.
    ``margin`` is one number or one per class, shape (C,).

    >>> similarity = CSSoftmax(margin=0.2, weight_update=0.0)
    >>> c = torch.tensor([0.9])
    >>> rows = similarity.rows(c, torch.ones(1), torch.tensor([0]))
    >>> similarity.positive(c, rows) - similarity.negative(c, rows)  # at u = 0 the margin, at any cosine
    tensor([-0.2000])
    """

    margin: float | Tensor
    weight_update: float
    detach_update: bool = True
    normalized: Normalized = "both"

    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows:
        return ((1 - _of_class(self.margin, target, own)) / 2,)

    def positive(self, own: Tensor, rows: Rows) -> Tensor:
        (r,) = rows
        return self._times_update(1 + r - own, own - (1 - r))

    def negative(self, c: Tensor, rows: Rows) -> Tensor:
        (r,) = rows
        return self._times_update(c + r, c - r)

    def negative_slope(self, c: Tensor, rows: Rows) -> Tensor:
        (r,) = rows
        gap = c + r
        return self._update(gap) + self._update_slope(gap) * (c - r)

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
    normalized: Normalized = "both"

    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows:
        return ((1 - _of_class(self.margin, target, own)) / 2,)

    def positive(self, own: Tensor, rows: Rows) -> Tensor:
        (r,) = rows
        return r**2 - (1 - own) ** 2

    def negative(self, c: Tensor, rows: Rows) -> Tensor:
        (r,) = rows
        return c**2 - r**2

    def negative_slope(self, c: Tensor, rows: Rows) -> Tensor:
        return 2 * c


@dataclass(frozen=True)
class CosFace:
    """P = c - margin, N = c. At margin 0 it is NormFace; with ``normalized="none"`` too, the plain softmax."""

    margin: float | Tensor = 0.0
    normalized: Normalized = "both"

    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows:
        return (_of_class(self.margin, target, own),)

    def positive(self, own: Tensor, rows: Rows) -> Tensor:
        (margin,) = rows
        return own - margin

    def negative(self, c: Tensor, rows: Rows) -> Tensor:
        return c

    def negative_slope(self, c: Tensor, rows: Rows) -> Tensor:
        return torch.ones_like(c)


@dataclass(frozen=True)
class ArcFace:
    """P = cos(theta + margin), N = c, with theta = acos(c) and the margin in radians.

    Where theta + margin would pass pi, P goes on as c - margin * sin(margin), as in the authors' code: beyond pi the
    cosine rises again and the penalty would turn into a bonus. No acos is taken: its slope is infinite at cosine +-1.
    """

    margin: float | Tensor
    normalized: Normalized = "both"

    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows:
        return (_of_class(self.margin, target, own),)

    def positive(self, own: Tensor, rows: Rows) -> Tensor:
        (margin,) = rows
        cos, sin = _cos_sin(margin)
        inside, root = _sine_squared(own)
        sine = torch.where(inside, root.sqrt(), 0)
        return torch.where(own > -cos, own * cos - sine * sin, own - margin * sin)

    def negative(self, c: Tensor, rows: Rows) -> Tensor:
        return c

    def negative_slope(self, c: Tensor, rows: Rows) -> Tensor:
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
    rows = similarity.rows(one, one, target)
    gap = (similarity.positive(one, rows) - similarity.negative(zero, rows)).mean().item()
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
