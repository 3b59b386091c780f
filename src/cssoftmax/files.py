"""Files written aside and renamed: whoever opens one sees the old or the new, never half of it."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import save
from torch import Tensor


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` beside ``path``, to disk, and renames it there; OSError names ``path`` and the reason."""
    with aside(path) as file:
        file.write(content)


@contextlib.contextmanager
def aside(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, beside ``path``, that is renamed to it at the end; OSError names ``path`` and the reason."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def append_line(path: Path, line: str) -> None:
    """Adds a line to a text file; OSError names ``path`` and the reason."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise _cannot_write(path, error) from error


def remove_abandoned(folder: Path) -> None:
    """Removes what :func:`write_bytes` left aside in ``folder`` when the process was killed."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> OSError:
    return OSError(f"{path}: cannot be written ({error.strerror}); free the disk, or choose another folder")


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file; tensors are copied to the CPU, so that none shares memory with another."""
    write_bytes(
        path, save({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, metadata)
    )
