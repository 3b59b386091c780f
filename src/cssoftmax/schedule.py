"""A margin or scale that changes over the steps of a training."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Shape = Literal["linear", "cosine", "inverse"]


@dataclass(frozen=True)
class Schedule:
    """A number that goes from ``start`` to ``end`` in ``steps`` training steps and stays there.

    Give it to a loss in place of a margin or a scale. The loss counts its training forwards itself: the first one sees
    ``start``, the one after ``steps`` of them ``end``; evaluation counts nothing. The count and the value are buffers
    of the loss, so that a resumed training goes on where it was. A step that calls the loss twice (mixup) counts twice.

    Attributes:
        start, end: the two values.
        steps: >= 1.
        shape: "linear"; "cosine", half a cosine, flat at both ends; or "inverse", start / (1 + rate * step), the decay
            of SphereFace's annealing, with the rate at which ``end`` is reached in ``steps`` (both values > 0).

    Raises:
        TypeError, ValueError: an argument of wrong type or out of range; the message names it.

    >>> from cssoftmax import CosFaceLoss
    >>> loss = CosFaceLoss(8, 3, margin=Schedule(0.0, 0.3, steps=2), scale=16.0)
    >>> for _ in range(3):
    ...     print(f"{loss.margin.item():.2f}")
    ...     value = loss(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))
    0.00
    0.15
    0.30
    """

    start: float
    end: float
    steps: int
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name}: a number is needed, got {type(value).__name__}")
            if not math.isfinite(value):
                raise ValueError(f"{name}: {value} is not finite")
            if self.shape == "inverse" and value <= 0:
                raise ValueError(f"{name}: {value} is not > 0, which the shape 'inverse' needs")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):
            raise TypeError(f"steps: an integer >= 1 is needed, got {type(self.steps).__name__}")
        if self.steps < 1:
            raise ValueError(f"steps: {self.steps} is below 1")
        if self.shape not in get_args(Shape):
            raise ValueError(f"shape: {self.shape!r} is not one of {', '.join(map(repr, get_args(Shape)))}")

    def at(self, step: Tensor) -> Tensor:
        """The value for the training forward that has ``step`` (any shape, integers >= 0) others before it.

        >>> Schedule(0.0, 1.0, steps=4, shape="cosine").at(torch.arange(6))
        tensor([0.0000, 0.1464, 0.5000, 0.8536, 1.0000, 1.0000])
        """
        done = (step / self.steps).clamp(max=1)
        if self.shape == "inverse":
            return torch.where(done < 1, self.start / (1 + (self.start / self.end - 1) * done), self.end)
        if self.shape == "cosine":
            done = (1 - torch.cos(math.pi * done)) / 2
        return self.start * (1 - done) + self.end * done
