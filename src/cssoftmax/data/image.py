"""Decode images to uint8 tensors."""

import io
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cssoftmax.data.progress import track
from cssoftmax.data.table import DataError, Table

MIXED_SIZE = 32
"""Side in pixels to which images of different sizes go when no size is asked for."""
LARGEST_SIDE = 256
"""Images of one common size keep it up to this side in pixels; larger ones go to ``MIXED_SIZE``."""
MOST_PIXELS = 2**26
"""Images with more pixels than this are refused: a small file can decode to gigabytes."""

PHOTOGRAPH = 16_000
"""Mean size in bytes from which images are decoded in threads."""

Array = np.ndarray[Any, Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pixels:
    """How an image becomes a tensor: resized to cover ``height`` x ``width`` pixels, the centre cut out.

    ``channels`` is 1 for grey and 3 for RGB. Images that have that size already are left as they are.
    """

    channels: int
    height: int
    width: int


def decode_images(table: Table, image_size: int | None = None) -> Tensor:
    """Decode the images of a table into one uint8 tensor (N, channels, H, W).

    Grey images give one channel; if any has colour, all become RGB. Transparency is laid over white, 16-bit values are
    reduced to 8 bits, of an animation the first frame is taken, and a camera's orientation tag is applied.

    Args:
        table: the encoded images.
        image_size: side in pixels to which the shorter side is resized before the square centre is cut out. By
            default images of one common size (at most 256) keep it, and others get 32.

    Raises:
        DataError: an image cannot be decoded or is too large; the message names it.
    """

    def decode(index: int) -> Array:
        image = open_image(table.data[index], table.describe(index))
        return np.asarray(image if image_size is None else fit(image, image_size, image_size))

    first = decode(0).shape[:2]
    arrays: list[Array] = []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        # Threads decode photographs in parallel; on thumbnails they lose more to switching than they gain.
        decoded = (pool.map if _mean_bytes(table) > PHOTOGRAPH else map)(decode, range(len(table.data)))
        for array in track(decoded, len(table.data), "decoding images"):
            if array.shape[:2] != first or (image_size is None and max(first) > LARGEST_SIDE):
                logger.info("%s: images are resized to %d x %d pixels", table.root, MIXED_SIZE, MIXED_SIZE)
                return decode_images(table, MIXED_SIZE)
            arrays.append(array)
    finally:
        pool.shutdown(cancel_futures=True)
    return stack_images(arrays)


def _mean_bytes(table: Table) -> float:
    return sum(len(data) if isinstance(data, bytes) else data.stat().st_size for data in table.data) / len(table.data)


def open_image(data: bytes | Path, name: str) -> Image.Image:
    """Decode one image to mode ``L`` (grey) or ``RGB``; ``name`` is what an error calls it."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data if isinstance(data, bytes) else data.read_bytes()))
        if image.width * image.height > MOST_PIXELS:
            raise DataError(f"{name}: {image.width} x {image.height} pixels is too large; shrink the image")
        image.load()
        return to_grey_or_rgb(ImageOps.exif_transpose(image) if image.format in ("JPEG", "MPO") else image)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"{name}: too many pixels; shrink the image") from None
    except Exception as error:  # the decoders of a damaged file raise OSError, SyntaxError, ValueError, struct.error...
        reason = "not an image or damaged" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError(f"{name}: cannot be decoded ({reason}); replace or remove it") from None


def to_grey_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(wide, 0, 65535) // 256).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save it with 8 bits")
    if image.mode == "1":
        return image.convert("L")
    if image.has_transparency_data:
        grey = image.mode in ("LA", "La")
        layer = image.convert("RGBA")
        opaque = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return opaque.convert("L" if grey else "RGB")
    return image.convert("RGB")


def prepare_images(images: Sequence[Image.Image], pixels: Pixels) -> Tensor:
    """Any images of mode ``L`` or ``RGB`` as a network takes them: uint8 (N, channels, height, width)."""
    mode = "L" if pixels.channels == 1 else "RGB"
    return stack_images([np.asarray(fit(image, pixels.height, pixels.width).convert(mode)) for image in images])


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize until it covers ``height`` x ``width`` pixels and cut out the centre."""
    size = (width, height)
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def stack_images(arrays: Sequence[Array]) -> Tensor:
    """Stack uint8 arrays (H, W) and (H, W, 3) to a tensor (N, 1 or 3, H, W), with colour if any has it."""
    if all(array.ndim == 2 for array in arrays):
        return torch.from_numpy(np.stack(arrays)[:, None])
    colour = [array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2) for array in arrays]
    return torch.from_numpy(np.ascontiguousarray(np.stack(colour).transpose(0, 3, 1, 2)))
