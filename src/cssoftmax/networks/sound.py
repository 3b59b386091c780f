"""Backbones for log-mel spectrograms: (N, channels, mels, frames) floats to (N, embedding_size)."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cssoftmax.networks.layers import SideBySide, conv, embedding


def melnet(channels: int, embedding_size: int, width: int = 32) -> nn.Sequential:
    """Four pairs of 3x3 convolutions, each pair halving mels and frames, then the average over what is left.

    >>> import torch
    >>> melnet(1, 64)(torch.zeros(2, 1, 64, 100)).shape
    torch.Size([2, 64])
    """
    return nn.Sequential(conv(channels, width), *_halvings(width), embedding(8 * width, embedding_size))


def texturenet(channels: int, embedding_size: int, width: int = 16) -> SideBySide:
    """A :func:`melnet` that begins at half the resolution, and beside it a layer on :class:`Texture`, half each.

    Convolutions find events; the statistics are of what goes on throughout, as rain and surf do.

    Raises:
        ValueError: ``embedding_size`` is less than 2.

    >>> import torch
    >>> texturenet(1, 64)(torch.zeros(2, 1, 64, 216)).shape
    torch.Size([2, 64])
    """
    if embedding_size < 2:
        raise ValueError(f"its two parts need an embedding size of at least 2, not {embedding_size}")
    stem = nn.Sequential(nn.Conv2d(channels, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    texture, hidden, half = Texture(channels), 16 * width, embedding_size // 2
    return SideBySide(
        nn.Sequential(stem, *_halvings(width), embedding(8 * width, embedding_size - half)),
        nn.Sequential(
            texture,
            nn.BatchNorm1d(texture.features, affine=False),
            nn.Linear(texture.features, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            embedding(hidden, half),
        ),
    )


def _halvings(width: int) -> list[nn.Module]:
    """From maps of ``width`` channels to (N, 8 width): all of :func:`melnet` between its first convolution and its
    embedding."""
    layers: list[nn.Module] = []
    for stage in range(4):
        outputs = width * 2**stage
        if stage:
            layers.append(conv(outputs // 2, outputs))
        layers.append(conv(outputs, outputs, pool=nn.MaxPool2d(2, ceil_mode=True)))
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()]


class Texture(nn.Module):
    """Statistics of a spectrogram over time, without weights: (N, channels, mels, frames) to (N, features).

    Of 32 bands the mean level, its deviation, and the deviation of its change from frame to frame; of 16 the logarithm
    of the power with which the level goes up and down at seven ranges of rates, from once to 32 times in 64 frames.
    Spectrograms are standardised.

    Source: after McDermott and Simoncelli, "Sound texture perception via statistics of the auditory periphery" (2011),
    of which these are the marginal moments and the modulation power.

    >>> import torch
    >>> Texture(1)(torch.randn(2, 1, 64, 216)).shape
    torch.Size([2, 208])
    """

    BANDS = 32
    ENVELOPES = 16
    WINDOW = 64
    RATES = (1, 2, 4, 6, 9, 14, 21, 33)
    FLOOR = 2e-3
    """Of the power, in squares of a deviation; of ESC-10, whose deviation is 22 dB, that of one decibel."""

    spectrum: Tensor
    ranges: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        time, rate = torch.arange(self.WINDOW)[:, None], torch.arange(self.WINDOW // 2 + 1)
        angle = 2 * math.pi * time * rate / self.WINDOW
        spectrum = torch.hann_window(self.WINDOW)[:, None] * torch.cat([angle.cos(), angle.sin()], 1)
        limits = list(pairwise(self.RATES))
        ranges = torch.stack([((rate >= low) & (rate < high)) / (high - low) for low, high in limits], 1)
        self.register_buffer("spectrum", spectrum, persistent=False)
        self.register_buffer("ranges", ranges, persistent=False)
        self.features = channels * (3 * self.BANDS + self.ENVELOPES * len(limits))

    def forward(self, inputs: Tensor) -> Tensor:
        frames = inputs.shape[3]
        level = F.adaptive_avg_pool2d(inputs, (self.BANDS, frames))
        change = level - level.roll(1, 3)
        moments = [level.mean(3), level.std(3, correction=0), change.std(3, correction=0)]
        envelope = F.adaptive_avg_pool2d(inputs, (self.ENVELOPES, frames))
        envelope = F.pad(envelope - envelope.mean(3, keepdim=True), (0, max(self.WINDOW - frames, 0)))
        parts = envelope.unfold(3, self.WINDOW, self.WINDOW // 2) @ self.spectrum
        cosine, sine = parts.chunk(2, 4)
        power = (cosine.square() + sine.square()).mean(3) @ self.ranges
        return torch.cat([*(part.flatten(1) for part in moments), (power + self.FLOOR).log().flatten(1)], 1)
