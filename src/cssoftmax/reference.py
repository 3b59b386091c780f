"""The oracle: the family in plain loops over Python floats, value and gradients, to which every fast path is held.

Nothing here is shared with the fast paths: angles are real angles (``math.acos``), slopes are written out by hand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Curve = Callable[[float, float], float]


@dataclass(frozen=True)
class Reference:
    """P(c, m), N(c, m) and their slopes in c, for cosine c and the margin m of the row's class."""

    positive: Curve
    negative: Curve
    positive_slope: Curve
    negative_slope: Curve


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


def arcface() -> Reference:
    def positive(c: float, m: float) -> float:
        theta = math.acos(max(-1.0, min(1.0, c)))
        return math.cos(theta + m) if theta + m < math.pi else c - m * math.sin(m)

    def positive_slope(c: float, m: float) -> float:
        theta = math.acos(max(-1.0, min(1.0, c)))
        if theta + m >= math.pi:
            return 1.0
        # At theta = 0 the direction of descent is not defined; the embedding's gradient there is zero whatever this is.
        return math.sin(theta + m) / math.sin(theta) if theta > 0 else math.cos(m)

    return Reference(positive, lambda c, m: c, positive_slope, lambda c, m: 1.0)


def loss(
    embeddings: Tensor,
    weight: Tensor,
    target: Tensor,
    reference: Reference,
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

    Arguments as in :func:`cssoftmax.functional.similarity_loss`. The gradients are those of the loss's sum over rows
    for ``reduction="none"``.

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
        logit, slope = [0.0] * num_classes, [0.0] * num_classes
        products, lengths = [0.0] * num_classes, [1.0] * num_classes
        for j in range(num_classes):
            lengths[j] = _length(w[j]) if cosine else 1.0
            product = math.fsum(a * b for a, b in zip(x[i], w[j], strict=True)) + offset[j]
            c = products[j] = product / (length_x * lengths[j]) if length_x and lengths[j] else 0.0
            value, value_slope = (
                (reference.positive, reference.positive_slope)
                if j == y
                else (reference.negative, reference.negative_slope)
            )
            logit[j], slope[j] = scale * value(c, margins[y]), scale * value_slope(c, margins[y])

        top = max(logit)
        log_sum = top + math.log(math.fsum(math.exp(v - top) for v in logit))
        for j in range(num_classes):
            share = (1 - label_smoothing) * (j == y) * rescale[y] + label_smoothing / num_classes * rescale[j]
            values[i] += share * (log_sum - logit[j])
        mass = (1 - label_smoothing) * rescale[y] + label_smoothing / num_classes * math.fsum(rescale)
        for j in range(num_classes):
            share = (1 - label_smoothing) * (j == y) * rescale[y] + label_smoothing / num_classes * rescale[j]
            d = slope[j] * (mass * math.exp(logit[j] - log_sum) - share) / divisor if divisor else math.nan
            if not (length_x and lengths[j]):
                continue  # no direction, no gradient
            for k in range(size):
                if cosine:
                    unit_x, unit_w = x[i][k] / length_x, w[j][k] / lengths[j]
                    grad_x[i][k] += d * (unit_w - products[j] * unit_x) / length_x
                    grad_w[j][k] += d * (unit_x - products[j] * unit_w) / lengths[j]
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
    return length if length > 1e-8 else 0.0
