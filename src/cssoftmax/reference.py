"""The oracle: the family in plain loops over Python floats, value and gradients, to which every fast path is held.

Nothing here is shared with the fast paths: angles are real angles (``math.acos``), slopes are written out by hand.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Curve = Callable[[float, float], float]


def zero(c: float, m: float) -> float:
    return 0.0


def one(c: float, m: float) -> float:
    return 1.0


@dataclass(frozen=True)
class Reference:
    """P(c, m), N(c, m) and their slopes in c, for cosine c and the margin m of the row's class.

    The last two are the slopes in the embedding's length, for losses that use it.
    """

    positive: Curve
    negative: Curve
    positive_slope: Curve
    negative_slope: Curve
    positive_norm_slope: Curve = zero
    negative_norm_slope: Curve = zero


# What differs from row to row: a Reference for a row's cosine to its own class, its length and its margin.
OfRow = Callable[[float, float, float], Reference]


def cs_softmax(weight_update: float, detach_update: bool = True) -> Reference:
    """Equation 1 of docs/theory.md."""
    u = weight_update

    def power(gap: float) -> float:
        return float(max(gap, 0.0) ** u)

    def power_slope(gap: float) -> float:
        if detach_update or u == 0 or gap <= (0 if u == 1 else 1e-6):
            return 0.0
        return float(u * gap ** (u - 1))

    def positive(c: float, m: float) -> float:
        r = (1 - m) / 2
        return power(1 + r - c) * (c - (1 - r))

    def negative(c: float, m: float) -> float:
        r = (1 - m) / 2
        return power(c + r) * (c - r)

    def positive_slope(c: float, m: float) -> float:
        r = (1 - m) / 2
        return power(1 + r - c) - power_slope(1 + r - c) * (c - (1 - r))

    def negative_slope(c: float, m: float) -> float:
        r = (1 - m) / 2
        return power(c + r) + power_slope(c + r) * (c - r)

    return Reference(positive, negative, positive_slope, negative_slope)


def so_softmax() -> Reference:
    return Reference(
        positive=lambda c, m: ((1 - m) / 2) ** 2 - (1 - c) ** 2,
        negative=lambda c, m: c**2 - ((1 - m) / 2) ** 2,
        positive_slope=lambda c, m: 2 * (1 - c),
        negative_slope=lambda c, m: 2 * c,
    )


def cosface() -> Reference:
    return Reference(
        positive=lambda c, m: c - m,
        negative=lambda c, m: c,
        positive_slope=lambda c, m: 1.0,
        negative_slope=lambda c, m: 1.0,
    )


def arcface(past_pi: str = "linear") -> Reference:
    def margin_acts(theta: float, m: float) -> bool:
        return {"linear": theta + m < math.pi, "easy_margin": theta < math.pi / 2, "none": True}[past_pi]

    def positive(c: float, m: float) -> float:
        theta = _angle(c)
        if margin_acts(theta, m):
            return math.cos(theta + m)
        return c - m * math.sin(m) if past_pi == "linear" else c

    def positive_slope(c: float, m: float) -> float:
        theta = _angle(c)
        if not margin_acts(theta, m):
            return 1.0
        # At theta = 0 the direction of descent is not defined; the embedding's gradient there is zero whatever this is.
        return math.sin(theta + m) / math.sin(theta) if 0 < theta < math.pi else math.cos(m)

    return Reference(positive, lambda c, m: c, positive_slope, one)


def curricularface(t: float) -> OfRow:
    arc = arcface()

    def of_row(own: float, norm: float, margin: float) -> Reference:
        goal = arc.positive(own, margin)
        return Reference(
            arc.positive,
            lambda c, m: c * (t + c) if c > goal else c,
            arc.positive_slope,
            lambda c, m: t + 2 * c if c > goal else 1.0,
        )

    return of_row


def magface(upper_margin: float, lower_norm: float, upper_norm: float) -> OfRow:
    """The cross entropy alone; its other term is :func:`magface_penalty`."""
    arc = arcface()

    def of_row(own: float, norm: float, margin: float) -> Reference:
        rise = (upper_margin - margin) / (upper_norm - lower_norm)
        m = margin + rise * (min(max(norm, lower_norm), upper_norm) - lower_norm)
        if not lower_norm < norm < upper_norm:
            rise = 0.0
        past = _angle(own) + m >= math.pi
        slope = -math.sin(m) - m * math.cos(m) if past else -math.sin(_angle(own) + m)
        return Reference(
            lambda c, _: arc.positive(c, m),
            lambda c, _: c,
            lambda c, _: arc.positive_slope(c, m),
            one,
            positive_norm_slope=lambda c, _: slope * rise,
        )

    return of_row


def magface_penalty(norm: float, lower_norm: float, upper_norm: float) -> tuple[float, float]:
    """g and its slope."""
    if norm < lower_norm:
        value, slope = magface_penalty(lower_norm, lower_norm, upper_norm)
        return value + slope * (norm - lower_norm), slope
    return 1 / norm + norm / upper_norm**2, -1 / norm**2 + 1 / upper_norm**2


def adaface(concentration: float, norm_mean: float, norm_std: float) -> OfRow:
    def of_row(own: float, norm: float, margin: float) -> Reference:
        z = concentration * (min(max(norm, 1e-3), 100.0) - norm_mean) / (norm_std + 1e-3)
        z = min(max(z, -1.0), 1.0)

        def positive(c: float, m: float) -> float:
            return math.cos(min(max(_angle(c) - m * z, 0.0), math.pi)) - m * (1 + z)

        def positive_slope(c: float, m: float) -> float:
            theta = _angle(c)
            if not 0 < theta - m * z < math.pi:
                return 0.0
            return math.sin(theta - m * z) / math.sin(theta) if 0 < theta < math.pi else math.cos(m * z)

        return Reference(positive, lambda c, m: c, positive_slope, one)

    return of_row


def sphereface(annealing: float) -> OfRow:
    """The multiplicative margin: functions of the cosine and the length, N = norm * c."""

    def of_row(own: float, norm: float, margin: float) -> Reference:
        def psi(c: float, m: float) -> float:
            theta = _angle(c)
            k = min(math.floor(m * theta / math.pi), math.ceil(m) - 1)
            return float((-1) ** k * math.cos(m * theta) - 2 * k)

        def psi_slope(c: float, m: float) -> float:
            theta = _angle(c)
            if not 0 < theta < math.pi:
                return 0.0
            return float((-1) ** math.floor(m * theta / math.pi) * m * math.sin(m * theta) / math.sin(theta))

        def mixed(c: float, m: float) -> float:
            return (annealing * c + psi(c, m)) / (1 + annealing)

        return Reference(
            lambda c, m: norm * mixed(c, m),
            lambda c, m: norm * c,
            lambda c, m: norm * (annealing + psi_slope(c, m)) / (1 + annealing),
            lambda c, m: norm,
            positive_norm_slope=mixed,
            negative_norm_slope=lambda c, m: c,
        )

    return of_row


def adacos_scale(cosines: Tensor, target: Tensor, scale: float) -> float:
    """The dynamic scale after a batch with these cosines (N, C), from the scale before it."""
    rows = list(zip(cosines.double().tolist(), target.tolist(), strict=True))
    others = sum(math.exp(scale * c) for row, y in rows for j, c in enumerate(row) if j != y)
    theta = statistics.median_low(_angle(row[y]) for row, y in rows)
    return math.log(others / len(rows)) / math.cos(min(math.pi / 4, theta))


def center_loss(embeddings: Tensor, target: Tensor, centers: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """The rows' losses (N,), the gradient of their sum in the embeddings, and the centers after them."""
    x, c, labels = embeddings.double().tolist(), centers.double().tolist(), target.tolist()
    values = [sum((a - b) ** 2 for a, b in zip(row, c[y], strict=True)) / 2 for row, y in zip(x, labels, strict=True)]
    gradient = [[a - b for a, b in zip(row, c[y], strict=True)] for row, y in zip(x, labels, strict=True)]
    moved = [list(center) for center in c]
    for j, center in enumerate(c):
        mine = [row for row, y in zip(x, labels, strict=True) if y == j]
        for k, value in enumerate(center):
            moved[j][k] -= alpha * sum(value - row[k] for row in mine) / (1 + len(mine))
    values_, gradient_, moved_ = (torch.tensor(v, dtype=torch.float64) for v in (values, gradient, moved))
    return values_, gradient_, moved_


def loss(
    embeddings: Tensor,
    weight: Tensor,
    target: Tensor,
    reference: Reference | OfRow,
    *,
    scale: float,
    margin: float | Sequence[float] = 0.0,
    cosine: bool = True,
    bias: Sequence[float] | None = None,
    class_weight: Sequence[float] | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and its gradients in the embeddings and the class weights, all float64.

    Arguments as in :func:`cssoftmax.functional.similarity_loss`; ``cosine`` is False for the plain softmax
    alone. The gradients are those of the loss's sum over rows for ``reduction="none"``.

    >>> value, _, _ = loss(torch.eye(2), torch.eye(2), torch.arange(2), cosface(), scale=1.0, margin=0.5)
    >>> round(value.item(), 4)
    0.4741
    """
    x, w, labels = embeddings.double().tolist(), weight.double().tolist(), target.tolist()
    num_rows, num_classes, size = len(x), len(w), len(w[0])
    margins = [margin] * num_classes if isinstance(margin, (int, float)) else list(margin)
    rescale = [1.0] * num_classes if class_weight is None else list(class_weight)
    offset = [0.0] * num_classes if bias is None else list(bias)

    total = sum(rescale[y] for y in labels if y != ignore_index)
    divisor = total if reduction == "mean" else 1.0
    values = [0.0] * num_rows
    grad_x = [[0.0] * size for _ in range(num_rows)]
    grad_w = [[0.0] * size for _ in range(num_classes)]

    for i, y in enumerate(labels):
        if y == ignore_index:
            continue
        length_x = _length(x[i]) if cosine else 1.0
        unit_x = [v / length_x if length_x else 0.0 for v in x[i]]
        logit, slope, norm_slope = [0.0] * num_classes, [0.0] * num_classes, [0.0] * num_classes
        products, lengths = [0.0] * num_classes, [1.0] * num_classes
        for j in range(num_classes):
            lengths[j] = _length(w[j]) if cosine else 1.0
            product = math.fsum(a * b for a, b in zip(x[i], w[j], strict=True)) + offset[j]
            products[j] = product / (length_x * lengths[j]) if length_x and lengths[j] else 0.0
        row = reference if isinstance(reference, Reference) else reference(products[y], length_x, margins[y])
        for j in range(num_classes):
            curves = (
                (row.positive, row.positive_slope, row.positive_norm_slope)
                if j == y
                else (row.negative, row.negative_slope, row.negative_norm_slope)
            )
            logit[j], slope[j], norm_slope[j] = (scale * curve(products[j], margins[y]) for curve in curves)

        top = max(logit)
        log_sum = top + math.log(math.fsum(math.exp(v - top) for v in logit))
        for j in range(num_classes):
            share = (1 - label_smoothing) * (j == y) * rescale[y] + label_smoothing / num_classes * rescale[j]
            values[i] += share * (log_sum - logit[j])
        mass = (1 - label_smoothing) * rescale[y] + label_smoothing / num_classes * math.fsum(rescale)
        for j in range(num_classes):
            share = (1 - label_smoothing) * (j == y) * rescale[y] + label_smoothing / num_classes * rescale[j]
            outer = (mass * math.exp(logit[j] - log_sum) - share) / divisor if divisor else math.nan
            d = outer * slope[j]
            if not (length_x and lengths[j]):
                continue  # no direction, no gradient
            for k in range(size):
                if cosine:
                    unit_w = w[j][k] / lengths[j]
                    grad_x[i][k] += d * (unit_w - products[j] * unit_x[k]) / length_x
                    grad_x[i][k] += outer * norm_slope[j] * unit_x[k]
                    grad_w[j][k] += d * (unit_x[k] - products[j] * unit_w) / lengths[j]
                else:
                    grad_x[i][k] += d * w[j][k]
                    grad_w[j][k] += d * x[i][k]

    result = torch.tensor(values, dtype=torch.float64)
    if reduction == "mean":
        result = result.sum() / total if total else torch.tensor(math.nan, dtype=torch.float64)
    elif reduction == "sum":
        result = result.sum()
    return result, torch.tensor(grad_x, dtype=torch.float64), torch.tensor(grad_w, dtype=torch.float64)


def _length(vector: Sequence[float]) -> float:
    """0 for a vector too short to have a direction."""
    length = math.sqrt(math.fsum(v * v for v in vector))
    return 0.0 if length <= 1e-8 else length


def _angle(c: float) -> float:
    return math.acos(max(-1.0, min(1.0, c)))
