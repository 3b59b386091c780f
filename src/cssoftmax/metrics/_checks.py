"""What every measure asks of its arguments. Messages are one line and name the argument."""

import math

import torch
from torch import Tensor


def directions(embeddings: Tensor, name: str = "embeddings") -> Tensor:
    """Embeddings (N, D) as float64 unit vectors on the CPU; zero embeddings stay zero."""
    x = _matrix(embeddings, name)
    # Division by the largest entry first: squares of very long and very short embeddings leave float64's range.
    peak = torch.linalg.vector_norm(x, math.inf, dim=1, keepdim=True)
    x = x / torch.where(peak > 0, peak, 1.0)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x.div_(torch.where(length > 0, length, 1.0))


def labels(target: Tensor, samples: int, name: str = "target") -> Tensor:
    """Class numbers (N,) as int64 on the CPU."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(target).__name__}")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"{name}: expected integer class numbers, got {target.dtype}")
    if target.shape != (samples,):
        raise ValueError(f"{name}: expected shape ({samples},), one label a sample, got {tuple(target.shape)}")
    return target.detach().to("cpu", torch.int64)


def logits_and_labels(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, C) as float64, and class numbers (N,) below C as int64, both on the CPU."""
    scores = _matrix(logits, "logits")
    classes = labels(target, len(scores))
    if classes.min() < 0 or classes.max() >= scores.shape[1]:
        raise ValueError(
            f"target: expected classes from 0 to {scores.shape[1] - 1}, as many as logits has columns, "
            f"got {int(classes.min())} to {int(classes.max())}"
        )
    return scores, classes


def positive(number: int, name: str) -> int:
    """A whole number of at least 1."""
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name}: expected an int, got {type(number).__name__}")
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number


def _matrix(x: Tensor, name: str) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {x.dtype}")
    if x.ndim != 2 or x.numel() == 0:
        raise ValueError(f"{name}: expected a matrix with at least one row and one column, got {tuple(x.shape)}")
    x = x.detach().to("cpu", torch.float64)
    if not x.isfinite().all():
        raise ValueError(f"{name}: holds NaN or infinite values")
    return x
