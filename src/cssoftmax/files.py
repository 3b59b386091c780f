"""Files written aside, read back and renamed: whoever opens one sees the old or the new, never half of it."""

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


class InUse(ValueError):
    """Another process writes to the folder."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` beside ``path``, to disk, reads it back, and only then puts it in the place of the old file.

    Raises:
        OSError: it cannot be written, or is not what was written; ``path``, the reason, and what to do.
    """
    with aside(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if Path(file.name).read_bytes() != content:
            raise OSError(errno.EIO, "it reads back differently")


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
    """Adds a line to a text file, to disk, or leaves the file as it was; OSError names ``path`` and the reason."""
    content = (line + "\n").encode()
    try:
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise _cannot_write(path, error) from error


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keeps other processes that ask for it out of ``folder``, made if need be; the lock ends with the process.

    Raises:
        InUse: another one is in there.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InUse(f"{folder}: another command writes to this folder; wait for it") from None
        yield
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Removes what :func:`write_bytes` left aside in ``folder`` when the process was killed."""
    for left in folder.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> OSError:
    return OSError(f"{path}: cannot be written ({error.strerror}); free the disk, or choose another folder")


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file with their checksum; tensors are copied to the CPU: none shares memory with another."""
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    write_bytes(path, _repeatable(save(copies, {**(metadata or {}), "checksum": _checksum(copies)})))


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file; one without a checksum, of another program, is taken as it is.

    Raises:
        ValueError: the file cannot be read, or is damaged; one line with ``path`` and the reason.
    """
    try:
        # safetensors opens the file twice; by its descriptor both are of one, even while another takes its place.
        with path.open("rb") as opened, safe_open(_by_descriptor(path, opened), "pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged ({str(error).splitlines()[0].rstrip(':')})") from error
    if metadata.get("checksum", expected := _checksum(tensors)) != expected:
        raise ValueError(f"{path}: damaged (its content does not have its checksum)")
    return metadata, tensors


def _by_descriptor(path: Path, opened: BinaryIO) -> Path:
    by_descriptor = Path(f"/dev/fd/{opened.fileno()}")
    return by_descriptor if by_descriptor.exists() else path  # Windows


def _repeatable(content: bytes) -> bytes:
    """The same file for the same content: safetensors writes metadata in an order that changes from call to call."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return str(value)
