"""Inner products of many rows with many: screened in float32, and computed in float64 where that cannot decide."""

import numpy as np
import torch
from torch import Tensor

# Rows multiplied with rows at a time.
SIDE = 1024
# Where at least this share of a block's products is needed exactly, all are computed.
FEW = 1 / 32


def screening_dtype() -> torch.dtype:
    """Of products that only tell which ones matter: PyTorch's "high" and "medium" ones in float32 may be too coarse."""
    return torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64


def screening_error(size: int) -> float:
    """How far a screening product of two unit vectors of so many numbers can be from that in float64.

    Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1; 3 for rounding the factors and
    what float64 rounds.
    """
    return 1.01 * (size + 3) * 2.0**-24


def places(mask: Tensor) -> Tensor:
    """Where a mask is true, in the order of its numbers."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # PyTorch's own takes five times as long


def exact(left: Tensor, right: Tensor, place: Tensor) -> Tensor:
    """The products of ``left @ right.T`` at flat places, float64."""
    if len(place) >= FEW * len(left) * len(right):
        return (left @ right.T).flatten()[place]
    row = place // len(right)
    column = place - row * len(right)
    parts = zip(torch.split(row, SIDE), torch.split(column, SIDE), strict=True)
    return torch.cat([torch.linalg.vecdot(left[i], right[j]) for i, j in parts])
