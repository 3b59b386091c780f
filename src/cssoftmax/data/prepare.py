"""Anybody's images and sounds as a trained network takes them: the same steps as in training, without its data."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cssoftmax.data.image import Pixels, open_image, prepare_images, to_grey_or_rgb
from cssoftmax.data.sound import LogMel, check, prepare_sounds, read_sound, to_mono
from cssoftmax.data.table import DataError

Array = np.ndarray[Any, Any]
Preprocessing = Pixels | LogMel
Raw = str | Path | bytes | Array | Image.Image
"""One image or sound: a path, an encoded file, pixels uint8 (H, W) or (H, W, 3), a ``PIL.Image``, or a waveform
(samples,) or (samples, channels)."""


def prepare(
    items: Sequence[Raw],
    preprocessing: Preprocessing,
    *,
    sample_rate: int | None = None,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Images to uint8 (N, channels, H, W), sounds to log-mel spectrograms in decibels, float32 (N, 1, mels, frames).

    Args:
        items: of the kind that the network was trained on.
        preprocessing: of the data set or the run.
        sample_rate: of waveforms given as arrays, in Hz; by default the rate that the network was trained at. Files
            know their own.
        names: what errors call the items; by default their paths, or numbers.

    Raises:
        DataError: an item cannot be decoded, or is not of that kind; the message names it.

    >>> prepare([np.zeros((40, 30, 3), np.uint8)], Pixels(1, 8, 8)).shape
    torch.Size([1, 1, 8, 8])
    """
    if not len(items):
        raise DataError("no images or sounds given; give at least one")
    called = names or [str(item) if isinstance(item, str | Path) else f"item {i}" for i, item in enumerate(items)]
    named = zip(items, called, strict=True)
    if isinstance(preprocessing, Pixels):
        return prepare_images([_image(item, name) for item, name in named], preprocessing)
    rate = preprocessing.sample_rate
    return prepare_sounds([_sound(item, name, rate, sample_rate or rate) for item, name in named], preprocessing)


def preprocessing_of(saved: Mapping[str, Any]) -> Preprocessing:
    """The other way of ``dataclasses.asdict``."""
    kind = Pixels if "height" in saved else LogMel
    if set(saved) != {field.name for field in fields(kind)}:
        raise ValueError(f"preprocessing: {dict(saved)} describes neither images nor sounds")
    return kind(**saved)


def _image(item: Raw, name: str) -> Image.Image:
    if isinstance(item, str | Path | bytes):
        return open_image(_content(item), name)
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim not in (2, 3) or (item.ndim == 3 and item.shape[2] not in (1, 3, 4)):
            raise DataError(
                f"{name}: an image is uint8 (H, W), (H, W, 3) or (H, W, 4), not {item.dtype} {item.shape}; scale "
                "pixels to 0..255"
            )
        item = Image.fromarray(item[..., 0] if item.ndim == 3 and item.shape[2] == 1 else item)
    if not isinstance(item, Image.Image):
        raise DataError(f"{name}: {type(item).__name__} is not a path, bytes, an array or a PIL image")
    return to_grey_or_rgb(item)


def _sound(item: Raw, name: str, rate: int, sample_rate: int) -> Array:
    if isinstance(item, str | Path | bytes):
        return read_sound(_content(item), name, rate)
    if not isinstance(item, np.ndarray) or item.ndim not in (1, 2) or not np.issubdtype(item.dtype, np.floating):
        raise DataError(f"{name}: a waveform is floating-point (samples,) or (samples, channels) in [-1, 1]")
    channels = np.asarray(item if item.ndim == 2 else item[:, None], np.float32)
    check(channels, name)
    return to_mono(channels, name, sample_rate, rate)


def _content(item: str | Path | bytes) -> bytes | Path:
    if isinstance(item, bytes):
        return item
    path = Path(item).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return path
