"""Samples as a person sees or hears them: small encoded pictures, and short recordings."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from cssoftmax.data.sound import read_sound
from cssoftmax.data.sources import find_source, named_folder
from cssoftmax.data.table import DataError, OnError

LARGEST_SIDE = 96
"""Pictures are shrunk to this many pixels."""
LOSSLESS = 1024
"""Grey pictures of at most this many pixels are kept as they are: they are smaller than their blurred copies."""
RATE = 16_000
"""Recordings are resampled to this rate in Hz: one that MP3 has."""
SECONDS = 5.0, 400.0
"""Recordings are cut to the first of these, and to fewer seconds each if all together would pass the second."""


def pictures(inputs: Tensor) -> list[bytes]:
    """Images, uint8 (N, channels, H, W), as WebP files of at most 96 pixels a side.

    >>> import torch
    >>> [picture[8:12] for picture in pictures(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))]
    [b'WEBP']
    """
    files = []
    for pixels in inputs:
        image = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels[:3].permute(1, 2, 0).numpy())
        lossless = len(pixels) == 1 and pixels.numel() <= LOSSLESS
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        content = io.BytesIO()
        image.save(content, "WEBP", lossless=lossless, quality=80, method=4)
        files.append(content.getvalue())
    return files


def recordings(source: str, data_root: Path | None, rows: Sequence[int], on_error: OnError = "fail") -> list[bytes]:
    """The recordings of a data set at these places in its source, as MP3 files, cut about their centre.

    Args:
        source, data_root, on_error: as for :func:`cssoftmax.data.load_dataset`.
        rows: places in the source, as :class:`cssoftmax.data.Split` holds them.

    Raises:
        DataError: the data are missing or damaged.
    """
    table = find_source(source, named_folder(data_root), on_error).read()
    if table.kind != "sound":
        raise DataError(f"{source}: holds images, not sounds")
    return shortened([table.data[row] for row in rows], [table.describe(row) for row in rows])


def shortened(sounds: Sequence[bytes | Path], names: Sequence[str]) -> list[bytes]:
    """Encoded sounds as :func:`recordings` gives them; ``names`` are what errors call them."""
    import soundfile

    longest = round(RATE * min(SECONDS[0], SECONDS[1] / max(len(sounds), 1)))
    files = []
    for sound, name in zip(sounds, names, strict=True):
        waveform = read_sound(sound, name, RATE)
        start = max(len(waveform) - longest, 0) // 2
        waveform = waveform[start : start + longest]
        content = io.BytesIO()
        loudest = max(float(np.abs(waveform).max()), 1e-9)
        soundfile.write(content, waveform / max(loudest, 1.0), RATE, format="MP3", compression_level=0.7)
        files.append(content.getvalue())
    return files
