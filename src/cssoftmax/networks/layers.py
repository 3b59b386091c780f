"""What the backbones share."""

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU; same height and width at stride 1."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def embedding(inputs: int, size: int) -> nn.Sequential:
    """(N, inputs) features to (N, size) embeddings."""
    return nn.Sequential(nn.Linear(inputs, size, bias=False), nn.BatchNorm1d(size))


class Standardize(nn.Module):
    """(x - mean) / std per channel of (N, channels, H, W); the statistics travel with the network's weights.

    >>> Standardize(torch.tensor([0.5]), torch.tensor([0.25]))(torch.ones(1, 1, 2, 2)).flatten()
    tensor([2., 2., 2., 2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.clamp(min=1e-6).view(-1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.std


class Residual(nn.Module):
    """shortcut(x) + branch(x), then ReLU if ``relu``."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, *, relu: bool = False) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.relu = relu

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.shortcut(inputs) + self.branch(inputs)
        return torch.relu(outputs) if self.relu else outputs
