"""Backbones for log-mel spectrograms: (N, 1, mels, frames) floats to (N, embedding_size)."""

from torch import nn

from cssoftmax.networks.layers import conv, embedding


def melnet(channels: int, embedding_size: int, width: int = 32) -> nn.Sequential:
    """Four pairs of 3x3 convolutions, each pair halving mels and frames, then the average over what is left.

    >>> import torch
    >>> melnet(1, 64)(torch.zeros(2, 1, 64, 100)).shape
    torch.Size([2, 64])
    """
    layers: list[nn.Module] = []
    inputs = channels
    for stage in range(4):
        outputs = width * 2 ** min(stage, 3)
        layers += [conv(inputs, outputs), conv(outputs, outputs, pool=nn.MaxPool2d(2, ceil_mode=True))]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), embedding(inputs, embedding_size))
