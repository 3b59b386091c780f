"""Decoded samples on disk: one safetensors file per data set and parameters, checked when read."""

import json
import logging
import os
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from cssoftmax.data.sound import LogMel
from cssoftmax.data.table import Kind

FORMAT = 1
"""Raise when the decoding changes: the data are others then, and runs on them cannot be gone on with."""
LAYOUT = 3
"""Raise when the layout of the file changes, so that old files are not read."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """Decoded samples of all splits.

    ``inputs`` (N, channels, H, W), ``target`` int64 (N,), ``is_test`` bool (N,) or None where the source has no test
    split, ``groups`` the fold or speaker of each sample or None, ``names`` of the records, ``log_mel`` how sounds were
    transformed, ``rows`` int64 (N,) their places in the source, ``hashes`` int64 (N,) of the inputs, ``skipped``
    what was left out, and why.
    """

    kind: Kind
    classes: tuple[str, ...]
    inputs: Tensor
    target: Tensor
    is_test: Tensor | None
    groups: tuple[str, ...] | None
    names: tuple[str, ...]
    log_mel: LogMel | None = None
    rows: Tensor | None = None
    hashes: Tensor | None = None
    skipped: tuple[str, ...] = ()


def default_cache_dir() -> Path:
    """``$CSSOFTMAX_CACHE`` or ``~/.cache/cssoftmax``."""
    return Path(os.environ.get("CSSOFTMAX_CACHE") or "~/.cache/cssoftmax").expanduser()


def write_cache(path: Path, samples: Samples) -> None:
    """Write samples to ``path``, whole or not at all. A disk that cannot be written costs a warning, not the run."""
    tensors = {"inputs": samples.inputs.contiguous(), "target": samples.target}
    optional = {"is_test": samples.is_test, "rows": samples.rows, "hashes": samples.hashes}
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    header = json.dumps(
        {
            "layout": LAYOUT,
            "kind": samples.kind,
            "classes": samples.classes,
            "groups": samples.groups,
            "names": samples.names,
            "log_mel": samples.log_mel and asdict(samples.log_mel),
            "skipped": samples.skipped,
            "tensors": _layout(tensors),
        }
    )
    metadata = {"header": header, "checksum": str(_checksum(header, tensors))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        os.close(descriptor)
        try:
            save_file(tensors, aside, metadata=metadata)
            Path(aside).replace(path)
        finally:
            Path(aside).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        logger.warning("cannot write the cache %s (%s); going on without it", path, error)


def read_cache(path: Path) -> Samples | None:
    """Read samples written by ``write_cache``; None if there are none, or, with a warning, if they are damaged."""
    if not path.exists():
        return None
    try:
        # Opened once: safetensors opens a path twice, and another writer may rename its file there in between.
        content = path.read_bytes()
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        header = json.loads(metadata["header"])
        if header.get("layout") != LAYOUT:
            return None
        if _layout(tensors) != header["tensors"] or str(_checksum(metadata["header"], tensors)) != metadata["checksum"]:
            raise ValueError("checksum differs")
        groups = header["groups"]
        return Samples(
            kind=header["kind"],
            classes=tuple(header["classes"]),
            inputs=tensors["inputs"],
            target=tensors["target"],
            is_test=tensors.get("is_test"),
            groups=None if groups is None else tuple(groups),
            names=tuple(header["names"]),
            log_mel=header["log_mel"] and LogMel(**header["log_mel"]),
            rows=tensors.get("rows"),
            hashes=tensors.get("hashes"),
            skipped=tuple(header["skipped"]),
        )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("the cache %s is damaged (%s); decoding the data again", path, error)
        return None


def _layout(tensors: dict[str, Tensor]) -> dict[str, list[object]]:
    return {name: [str(tensor.dtype), *tensor.shape] for name, tensor in sorted(tensors.items())}


def _checksum(header: str, tensors: dict[str, Tensor]) -> int:
    checksum = zlib.crc32(header.encode())
    for _, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(tensor.view(torch.uint8).numpy().data, checksum)
    return checksum


def _remove_abandoned(folder: Path) -> None:
    """Remove what writers killed over an hour ago have left."""
    for aside in folder.glob("*.safetensors*.tmp"):
        if time.time() - aside.stat().st_mtime > 3600:
            aside.unlink(missing_ok=True)
