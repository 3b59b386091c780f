"""What sets one softmax loss apart from another: how a cosine becomes a logit.

A *similarity* is three elementwise facts. With c the (N, C) cosines between embeddings and class weights:

- ``rows(own, norm, target)``: the row parameters, from the cosine to the row's own class ``own`` (N,), the embedding's
  length ``norm`` (N,) and its label;
- ``positive(own, rows)``: P, the similarity to the own class, (N,), differentiable in ``own`` and in the parameters;
- ``negative(c, rows)``: N, the similarity to any other class, and its slope dN/dc: what engines that never hold the
  (N, C) matrix run in blocks. To N and its slope the row parameters are constants.

The logits are scale * P in the target's column and scale * N elsewhere; cross entropy does the rest. The slope is that
of the backward pass: it leaves out whatever a similarity treats as constant. A row parameter is a float, or a tensor
that broadcasts against ``own`` or ``c``. An engine may call ``rows`` more than once, always with the whole batch.

A factor (margin, ...) is a float, a tensor () or a tensor with one number per class, (C,). What changes in training is
a tensor: the loss modules keep it in their buffers.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

Row = float | Tensor
Rows = tuple[Row, ...]
Normalized = Literal["both", "weights", "none"]
PastPi = Literal["linear", "easy_margin", "none"]

# Nearer than this to the clamp of an update weight, its slope, which has no bound there, counts as zero.
EDGE = 1e-6
# Square roots that make a power, and cost less than pow.
ROOTS = {0.5: 1, 0.25: 2, 0.125: 3}


class Similarity(Protocol):
    """The interface every similarity has; see the module's documentation.

    ``normalized`` says whose length is divided out of the inner products: that of "both" sides (c are cosines), of the
    class "weights" only, or of "none" (the plain softmax, which adds a bias). A similarity whose N and slope share work
    may also have ``negative_and_slope(c, rows)``, the two as a pair, with None for a slope that is 1 throughout.
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
        return ((1 - _per_row(self.margin, target, own)) / 2,)

    def positive(self, own: Tensor, rows: Rows) -> Tensor:
        (r,) = rows
        return self._times_update(1 + r - own, own - (1 - r))

    def negative(self, c: Tensor, rows: Rows) -> Tensor:
        (r,) = rows
        return self._times_update(c + r, c - r)

    def negative_slope(self, c: Tensor, rows: Rows) -> Tensor:
        (r,) = rows
        gap = c + r
        if self.weight_update == 0 or self.detach_update:
            return self._update(gap)
        return self._update(gap) + self._update_slope(gap) * (c - r)

    def negative_and_slope(self, c: Tensor, rows: Rows) -> tuple[Tensor, Tensor | None]:
        (r,) = rows
        gap, similarity = c + r, c - r
        if self.weight_update == 0:
            return similarity, None
        update = self._update(gap)
        slope = update if self.detach_update else update + self._update_slope(gap) * similarity
        return update * similarity, slope

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
            if u not in ROOTS:
                return gap.clamp(min=0).pow(u)
            root = gap.clamp(min=0)
            for _ in range(ROOTS[u]):
                root = root.sqrt()
            return root
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
        return ((1 - _per_row(self.margin, target, own)) / 2,)

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
        return (_per_row(self.margin, target, own),)

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

    Where theta + margin would pass pi, the cosine rises again and the penalty would turn into a bonus. ``past_pi`` says
    what P is there:

    - "linear": c - margin * sin(margin), as in the authors' first code and in pytorch-metric-learning; P falls by a
      step there unless the margin is small;
    - "easy_margin": pi is never passed, for the margin acts only where theta < pi / 2; elsewhere P = c;
    - "none": cos(theta + margin) all the same, as in the authors' later code.

    No acos is taken: its slope is infinite at cosine +-1.
    """

    margin: float | Tensor
    past_pi: PastPi = "linear"
    normalized: Normalized = "both"

    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows:
        return (_per_row(self.margin, target, own),)

    def positive(self, own: Tensor, rows: Rows) -> Tensor:
        margin = rows[0]
        cos, sin = _cos_sin(margin)
        added = _cos_of_sum(own, cos, sin)
        if self.past_pi == "none":
            return added
        if self.past_pi == "easy_margin":
            return torch.where(own > 0, added, own)
        return torch.where(own > -cos, added, own - margin * sin)

    def negative(self, c: Tensor, rows: Rows) -> Tensor:
        return c

    def negative_slope(self, c: Tensor, rows: Rows) -> Tensor:
        return torch.ones_like(c)


@dataclass(frozen=True)
class CurricularFace(ArcFace):
    """ArcFace's P; N = c where c <= P, and c * (t + c) where the other class is *hard*, c > P."""

    t: float | Tensor = 0.0

    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows:
        margin = super().rows(own, norm, target)
        return *margin, self.positive(own, margin).detach(), _per_row(self.t, target, own)

    def negative(self, c: Tensor, rows: Rows) -> Tensor:
        _, positive, t = rows
        return torch.where(c > positive, c * (t + c), c)

    def negative_slope(self, c: Tensor, rows: Rows) -> Tensor:
        _, positive, t = rows
        return torch.where(c > positive, t + 2 * c, torch.ones_like(c))


@dataclass(frozen=True)
class MagFace(ArcFace):
    """ArcFace whose margin grows on a line from ``margin`` to ``upper_margin`` as the embedding's length a does from
    ``lower_norm`` to ``upper_norm``, and is constant outside."""

    upper_margin: float | Tensor = 0.8
    lower_norm: float = 10.0
    upper_norm: float = 110.0

    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows:
        low, high = (_per_row(margin, target, own) for margin in (self.margin, self.upper_margin))
        share = (norm.clamp(self.lower_norm, self.upper_norm) - self.lower_norm) / (self.upper_norm - self.lower_norm)
        return (low + (high - low) * share,)

    def penalty(self, norm: Tensor) -> Tensor:
        """g(a) = 1 / a + a / upper_norm^2, least at a = ``upper_norm``; below ``lower_norm`` its tangent there.

        >>> MagFace(0.45).penalty(torch.tensor([0.0, 10.0, 110.0]))
        tensor([0.2000, 0.1008, 0.0182])
        """
        least, most = self.lower_norm, self.upper_norm
        inside = norm.clamp(min=least)
        return 1 / inside - (norm - inside) / least**2 + norm / most**2


@dataclass(frozen=True)
class AdaFace:
    """P = cos(theta + angle) - shift, N = c, with angle = -margin * z and shift = margin * (1 + z).

    z, the embedding's quality, is its length less ``norm_mean``, over ``norm_std``, times ``concentration``, and lies
    in [-1, 1]; it is a constant in the backward pass. theta + angle is held in [0, pi].
    """

    margin: float | Tensor
    concentration: float = 0.333
    norm_mean: float | Tensor = 20.0
    norm_std: float | Tensor = 100.0
    normalized: Normalized = "both"

    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows:
        mean, std = (_per_row(value, target, own) for value in (self.norm_mean, self.norm_std))
        quality = ((clipped_norm(norm.detach()) - mean) / (std + 1e-3) * self.concentration).clamp(-1, 1)
        margin = _per_row(self.margin, target, own)
        return -margin * quality, margin * (1 + quality)

    def positive(self, own: Tensor, rows: Rows) -> Tensor:
        angle, shift = rows
        cos, sin = _cos_sin(angle)
        added = _cos_of_sum(own, cos, sin)
        added = torch.where((sin < 0) & (own >= cos), torch.ones_like(own), added)
        return torch.where((sin > 0) & (own <= -cos), -torch.ones_like(own), added) - shift

    def negative(self, c: Tensor, rows: Rows) -> Tensor:
        return c

    def negative_slope(self, c: Tensor, rows: Rows) -> Tensor:
        return torch.ones_like(c)


@dataclass(frozen=True)
class ElasticArcFace(ArcFace):
    """ArcFace with ``deviation``, one number for each row of the batch, (N,), added to the margin."""

    deviation: float | Tensor = 0.0

    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows:
        return (_per_row(self.margin, target, own) + _as(own, self.deviation),)


@dataclass(frozen=True)
class ElasticCosFace(CosFace):
    """CosFace with ``deviation``, one number for each row of the batch, (N,), added to the margin."""

    deviation: float | Tensor = 0.0

    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows:
        return (_per_row(self.margin, target, own) + _as(own, self.deviation),)


@dataclass(frozen=True)
class SphereFace:
    """P = |x| (lambda cos(theta) + psi(theta)) / (1 + lambda), N = c = |x| cos(theta): embeddings are not normalised.

    psi(theta) = (-1)^k cos(margin * theta) - 2 k with k = floor(margin * theta / pi) falls all the way from theta = 0
    to pi. ``annealing`` is lambda: the larger, the nearer to the softmax of N alone. A zero embedding,
    which has no angle, has P = 0.
    """

    margin: float | Tensor
    annealing: float | Tensor = 0.0
    normalized: Normalized = "weights"

    def rows(self, own: Tensor, norm: Tensor, target: Tensor) -> Rows:
        return _per_row(self.margin, target, own), _per_row(self.annealing, target, own), norm

    def positive(self, own: Tensor, rows: Rows) -> Tensor:
        margin, annealing, norm = rows
        assert isinstance(norm, Tensor)
        has_angle = norm > 0
        c = own / torch.where(has_angle, norm, 1)
        inside, _ = _sine_squared(c)
        ends = torch.where(c > 0, torch.zeros_like(c), torch.full_like(c, math.pi))
        theta = torch.where(inside, torch.where(inside, c, 0).acos(), ends)
        k = (margin * theta.detach() / math.pi).floor()
        psi = (1 - 2 * (k % 2)) * torch.cos(margin * theta) - 2 * k
        return torch.where(has_angle, (annealing * own + norm * psi) / (1 + annealing), own)

    def negative(self, c: Tensor, rows: Rows) -> Tensor:
        return c

    def negative_slope(self, c: Tensor, rows: Rows) -> Tensor:
        return torch.ones_like(c)


def default_probability(num_classes: int) -> float:
    """The probability p that the default scale lets a perfect embedding have: 1 - C^(-3/2), and at least 0.9.

    More classes want a higher one: docs/choosing.md has the sweep on validation data that it comes from.

    >>> [round(default_probability(classes), 4) for classes in (2, 10, 100, 1000)]
    [0.9, 0.9684, 0.999, 1.0]
    """
    return max(0.9, 1 - math.pow(num_classes, -1.5))


def default_scale(similarity: Similarity, num_classes: int, probability: float | None = None) -> float:
    """The scale at which a perfect embedding is given ``probability`` for its own class.

    Perfect: cosine 1 to the own class, 0 to all others. Then scale * (P(1) - N(0)) = log((C - 1) p / (1 - p)), and the
    loss's floor, -log p, is the same for every loss of the family, whatever its margin. A margin that differs by class
    enters by its mean gap. None takes :func:`default_probability`. ValueError if the gap is not above 0, as from
    CosFace's margin 1 on.

    >>> round(default_scale(CosFace(), num_classes=10), 2)
    5.62
    """
    if probability is None:
        probability = default_probability(num_classes)
    target = torch.arange(num_classes)
    one, zero = torch.ones(num_classes, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.float64)
    rows = similarity.rows(one, one, target)
    gap = (similarity.positive(one, rows) - similarity.negative(zero, rows)).mean().item()
    if gap <= 0:
        raise ValueError("scale: at such a margin not even a perfect embedding tells classes apart; give a scale")
    return math.log(max(num_classes - 1, 1) * probability / (1 - probability)) / gap


def clipped_norm(norm: Tensor) -> Tensor:
    """The embedding's length as AdaFace takes it."""
    return norm.clamp(1e-3, 100)


def _per_row(factor: float | Tensor, target: Tensor, like: Tensor) -> Row:
    """A factor for each row, (N,): that of the row's class, or the one number that serves all."""
    if not isinstance(factor, Tensor):
        return factor
    factor = factor.to(like)
    return factor[target] if factor.ndim else factor.expand_as(like)


def _as(like: Tensor, value: float | Tensor) -> Row:
    return value.to(like) if isinstance(value, Tensor) else value


def _cos_of_sum(c: Tensor, cos: Row, sin: Row) -> Tensor:
    """cos(theta + angle) for c = cos(theta), from the angle's cosine and sine."""
    inside, square = _sine_squared(c)
    return c * cos - torch.where(inside, square.sqrt(), 0) * sin


def _sine_squared(c: Tensor) -> tuple[Tensor, Tensor]:
    """Where 1 - c^2 is positive, and 1 - c^2 there (elsewhere 1, so that no root has an infinite slope)."""
    square = (1 - c) * (1 + c)
    inside = square > 0
    return inside, torch.where(inside, square, 1)


def _cos_sin(angle: Row) -> tuple[Row, Row]:
    return (angle.cos(), angle.sin()) if isinstance(angle, Tensor) else (math.cos(angle), math.sin(angle))
