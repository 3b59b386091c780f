"""Where the samples come from: a name, a folder, parquet files or the Hugging Face hub, all read to one ``Table``."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cssoftmax.data.parquet import read_parquet, read_parts
from cssoftmax.data.progress import is_silent
from cssoftmax.data.table import (
    SPLIT_WORDS,
    DataError,
    OnError,
    Record,
    Table,
    first_line,
    split_word,
    table_of,
)

HUB_IDS = {
    "mnist": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fsdd": "mteb/free-spoken-digit-dataset",
    "esc10": "ashraq/esc50",
}
"""Named data sets and their homes on the hub. ESC-10 is the part of ESC-50 that its column ``esc10`` marks."""

NAMES = ("digits", *HUB_IDS)

IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
SOUND_SUFFIXES = frozenset((".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"))


@dataclass(frozen=True)
class Source:
    """A data set that was found: its name, a digest of its content, and how to read it."""

    name: str
    digest: str
    read: Callable[[], Table]


def named_folder(data_root: Path | None) -> Path | None:
    """The folder that holds the named data sets: the one given, else ``$CSSOFTMAX_DATA``."""
    if data_root is not None:
        return data_root.expanduser()
    root = os.environ.get("CSSOFTMAX_DATA")
    return Path(root).expanduser() if root else None


def find_source(source: str, data_root: Path | None, on_error: OnError = "fail") -> Source:
    """Find a data set by name, path or hub id, and hash its content.

    Raises:
        DataError: the source is unknown, cannot be reached, or holds no classes of images or sounds.
    """
    name, place = locate(source, data_root)
    if isinstance(place, Path):
        return _local_source(name, place, on_error)
    return hub_source(name, place, data_root, on_error)


def locate(source: str, data_root: Path | None) -> tuple[str, Path | str]:
    """The short name of a data set, and where it is: a path, or its id on the hub."""
    if source in HUB_IDS or (source.startswith("hf:") and len(source) > 3):
        hub_id = HUB_IDS.get(source, source.removeprefix("hf:"))
        name = source if source in HUB_IDS else hub_id.split("/")[-1]
        if data_root is not None and not data_root.is_dir():
            raise DataError(f"--data-root {data_root}: no such folder; give one that holds {name}/")
        if data_root is not None and (data_root / name).is_dir():
            return name, data_root / name
        return name, hub_id
    path = Path(source).expanduser()
    if not source or not path.exists():
        raise DataError(
            f"unknown data set {source!r}: not one of {', '.join(NAMES)}, not a folder or parquet file, "
            "and not hf:owner/name"
        )
    return path.resolve().stem if path.is_file() else path.resolve().name, path


def _local_source(name: str, path: Path, on_error: OnError) -> Source:
    root = path.parent if path.is_file() else path
    files = [path] if path.is_file() else files_under(path, {".parquet"})
    if path.is_file() and path.suffix != ".parquet":
        raise DataError(f"{path}: not a parquet file; give a .parquet file or a folder with one subfolder per class")
    if files:
        return Source(name, digest_of(root, files), lambda: read_parquet(name, root, files, on_error))
    entries = class_files(root, on_error)
    return Source(name, digest_of(root, [file for file, _, _ in entries]), lambda: _read_folder(root, entries))


def files_under(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def digest_of(root: Path, files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "blake2b").hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
        digest.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


# Folders with one subfolder per class


def class_files(root: Path, on_error: OnError = "fail") -> list[tuple[Path, str, str]]:
    """Files of a folder data set as (path, class, split), sorted."""
    folders = subfolders(root)
    train = next((folder for folder in folders if SPLIT_WORDS.get(folder.name.lower()) == "train"), None)
    # A class may be called "train" too; a split folder is one that holds class folders.
    if train is not None and subfolders(train):
        splits = [
            (folder, SPLIT_WORDS[folder.name.lower()]) for folder in folders if folder.name.lower() in SPLIT_WORDS
        ]
    else:
        splits = [(root, "")]
    entries = []
    for parent, split in splits:
        class_folders = subfolders(parent)
        if not class_folders:
            raise DataError(f"{parent}: no class folders; put the images or sounds into one subfolder per class")
        for folder in class_folders:
            files = files_under(folder, IMAGE_SUFFIXES | SOUND_SUFFIXES)
            if not files and on_error == "fail":
                raise DataError(f"{folder}: no images or sounds in this class folder; fill it or remove it")
            entries += [(file, folder.name, split) for file in files]
    if not entries:
        raise DataError(f"{root}: no images or sounds in its class folders; fill them")
    return entries


def subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_folder(root: Path, entries: Sequence[tuple[Path, str, str]]) -> Table:
    sounds = [file for file, _, _ in entries if file.suffix.lower() in SOUND_SUFFIXES]
    if 0 < len(sounds) < len(entries):
        raise DataError(f"{root}: holds both images and sounds (such as {sounds[0].name}); keep them in two folders")
    records = [Record(file, file.relative_to(root).as_posix(), label, split, None) for file, label, split in entries]
    return table_of("sound" if sounds else "image", str(root), records, ())


# The hub


def hub_source(name: str, hub_id: str, data_root: Path | None, on_error: OnError = "fail") -> Source:
    import datasets
    import huggingface_hub

    # The client retries for half a minute before it says that there is no connection; asking first takes a moment, and
    # told that it is offline it still loads what it fetched before.
    offline, reason = datasets.config.HF_HUB_OFFLINE, None
    try:
        huggingface_hub.HfApi().dataset_info(hub_id, timeout=10)
    except Exception as error:  # the client raises its own, the network library's and the operating system's errors
        datasets.config.HF_HUB_OFFLINE, reason = True, error
    if is_silent():
        datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(hub_id)
    except Exception as error:
        raise _not_fetched(name, hub_id, data_root, reason or error) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    only = len(splits) == 1
    parts = [(split, "" if only else split_word(split), part) for split, part in splits.items()]
    table = read_parts(name, f"hf:{hub_id}", parts, on_error)
    digest = hashlib.blake2b(digest_size=16)
    for item, record, label in zip(table.data, table.names, table.target, strict=True):
        content = item if isinstance(item, bytes) else item.read_bytes()
        digest.update(f"{record}\0{label}\0{len(content)}\n".encode())
        digest.update(content)
    return Source(name, digest.hexdigest(), lambda: table)


def hub_files(name: str, hub_id: str, data_root: Path | None) -> list[tuple[str, str]]:
    """(split, address) of the parquet files of a data set on the hub: its own, or those that the hub made of it."""
    import datasets
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(hub_id, timeout=10)
        builder = datasets.load_dataset_builder(hub_id)
        if type(builder).__name__ != "Parquet":
            builder = datasets.load_dataset_builder(hub_id, revision="refs/convert/parquet")
    except Exception as error:  # as above
        raise _not_fetched(name, hub_id, data_root, error) from None
    splits = builder.config.data_files
    only = len(splits) == 1
    return [("" if only else split_word(split), str(url)) for split, urls in splits.items() for url in urls]


def _not_fetched(name: str, hub_id: str, data_root: Path | None, error: Exception) -> DataError:
    looked = f"{data_root} has no folder {name}, and " if data_root is not None else ""
    return DataError(
        f"{looked}{hub_id} cannot be fetched from the Hugging Face hub ({first_line(error)}); connect "
        f"to the internet, or put its parquet files into DIR/{name} and give --data-root DIR"
    )
