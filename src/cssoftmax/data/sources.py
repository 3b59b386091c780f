"""Where the samples come from: a name, a folder, parquet files or the Hugging Face hub, all read to one ``Table``."""

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cssoftmax.data.progress import is_silent

Kind = Literal["image", "sound"]
OnError = Literal["fail", "skip"]
"""What to do about a sample that cannot be used: say so and stop, or leave it out and list it."""

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

INPUT_COLUMNS: dict[str, Kind] = {"image": "image", "img": "image", "audio": "sound", "sound": "sound"}
LABEL_COLUMNS = ("fine_label", "label", "labels", "category", "class", "target")
GROUP_COLUMNS = ("fold", "speaker", "group")

# The words that the hub recognises in file and folder names.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}


class DataError(ValueError):
    """A mistake in the data or in how they were asked for; the message is one line that names it and the remedy."""


@dataclass(frozen=True)
class Table:
    """Records of a data set, still encoded.

    ``data`` holds the encoded files (or their paths), ``names`` a name of each record under ``root``; ``is_test`` is
    None where the source has no test split, ``groups`` where it has no folds or speakers. ``skipped`` says of each
    record that was left out which, and why.
    """

    kind: Kind
    root: str
    data: Sequence[bytes | Path]
    names: tuple[str, ...]
    target: tuple[int, ...]
    classes: tuple[str, ...]
    is_test: tuple[bool, ...] | None
    groups: tuple[str, ...] | None
    skipped: tuple[str, ...] = ()

    def describe(self, index: int) -> str:
        return one_line(f"{self.root}/{self.names[index]}")


@dataclass(frozen=True)
class Source:
    """A data set that was found: its name, a digest of its content, and how to read it."""

    name: str
    digest: str
    read: Callable[[], Table]


@dataclass(frozen=True)
class _Record:
    data: bytes | Path
    name: str
    label: str
    split: str
    group: str | None


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
        return Source(name, digest_of(root, files), lambda: _read_parquet(name, root, files, on_error))
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
    records = [_Record(file, file.relative_to(root).as_posix(), label, split, None) for file, label, split in entries]
    return _table("sound" if sounds else "image", str(root), records, ())


# Parquet files and the hub


def _read_parquet(name: str, root: Path, files: Sequence[Path], on_error: OnError) -> Table:
    import datasets
    import pyarrow

    parts = []
    for path in files:
        relative = path.relative_to(root).as_posix()
        try:
            table = datasets.Dataset(opened_parquet(path, str(path), whole=True).read())
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a readable parquet file ({first_line(error)}); fetch it again") from None
        parts.append((relative, split_word(relative), table))
    return _read_parts(name, str(root), parts, on_error)


def opened_parquet(place: str | Path, where: str, *, whole: bool = False) -> Any:
    """A parquet file on disk or, by its address, elsewhere, to be read by row groups or as a ``whole``.

    Raises:
        DataError: it cannot be read, or what is read at once takes more memory than is free: a small file can unpack
            to terabytes.
    """
    import fsspec
    import psutil
    import pyarrow
    import pyarrow.parquet

    try:
        on_disk = isinstance(place, Path)
        file = pyarrow.parquet.ParquetFile(place if on_disk else fsspec.open(place).open(), pre_buffer=not on_disk)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{where}: not a readable parquet file ({first_line(error)}); fetch it again") from None
    sizes = [file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups)]
    needed, free = sum(sizes) if whole else max(sizes, default=0), psutil.virtual_memory().available
    if needed > free:
        what, remedy = ("it", "add --stream") if whole else ("a row group", "write it anew with smaller row groups")
        raise DataError(f"{where}: {what} takes {needed / 1e9:.3g} GB of memory, {free / 1e9:.3g} are free; {remedy}")
    return file


def split_word(name: str) -> str:
    return next((SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS), "")


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
    table = _read_parts(name, f"hf:{hub_id}", parts, on_error)
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


def _read_parts(name: str, root: str, parts: Sequence[tuple[str, str, Any]], on_error: OnError) -> Table:
    """Read ``datasets.Dataset`` parts given as (name, split, part)."""
    import datasets

    records: list[_Record] = []
    order: list[str] = []
    kinds: set[Kind] = set()
    skipped: list[str] = []
    for part_name, split, part in parts:
        where = f"{root}/{part_name}"
        if name == "esc10" and "esc10" in part.column_names:
            part = part.select([row for row, marked in enumerate(part["esc10"]) if marked])
        column, kind = input_column(part.features, where)
        labelled = label_column(part.features, where)
        group_column = next((column for column in GROUP_COLUMNS if column in part.column_names), None)
        arrow = part.with_format("arrow")[:]
        labels = texts(arrow, part.features, labelled)
        groups = texts(arrow, part.features, group_column) if group_column else [None] * len(labels)
        feature = part.features[labelled]
        order += feature.names if isinstance(feature, datasets.ClassLabel) else []
        kinds.add(kind)
        for row, (data, label, group) in enumerate(zip(contents(arrow.column(column)), labels, groups, strict=True)):
            if label is None:
                fault = f"{where}: row {row} has no label in column {labelled!r}, or one unknown; label it or remove it"
            elif data is None:
                fault = f"{where}: row {row} holds no encoded file; remove the row or embed its bytes"
            else:
                records.append(_Record(data, f"{part_name} row {row}", label, split, group))
                continue
            if on_error == "fail":
                raise DataError(fault)
            skipped.append(fault.rpartition(";")[0])
    if len(kinds) > 1:
        raise DataError(f"{root}: holds both images and sounds; keep them in two folders")
    if not records:
        raise DataError(f"{root}: no rows in it; give files with at least two classes")
    return _table(kinds.pop(), root, records, order, skipped)


def input_column(features: Any, where: str) -> tuple[str, Kind]:
    import datasets

    typed: list[tuple[str, Kind]] = [
        (column, "image" if isinstance(feature, datasets.Image) else "sound")
        for column, feature in features.items()
        if isinstance(feature, datasets.Image | datasets.Audio)
    ]
    usual = [(column, kind) for column, kind in INPUT_COLUMNS.items() if column in features]
    found = typed or usual
    if not found:
        raise DataError(
            f"{where}: no image or audio column among {', '.join(features)}; name it 'image' or 'audio', of "
            "encoded files"
        )
    return found[0]


def label_column(features: Any, where: str) -> str:
    import datasets

    usual = [column for column in LABEL_COLUMNS if column in features]
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if usual:
        return usual[0]
    if len(typed) == 1:
        return str(typed[0])
    raise DataError(f"{where}: no label column among {', '.join(features)}; name the one with the classes 'label'")


def texts(arrow: Any, features: Any, column: str) -> list[str | None]:
    """Values of a column of classes, strings or integers as text; None where missing."""
    values = arrow.column(column).to_pylist()
    names = getattr(features[column], "names", None)
    if names is None:
        return [None if value is None else str(value) for value in values]
    return [names[value] if value is not None and 0 <= value < len(names) else None for value in values]


def contents(column: Any) -> list[bytes | Path | None]:
    """Encoded files of a column of bytes, or of structs of bytes and path; None where there is neither."""
    found: list[bytes | Path | None] = []
    for chunk in column.chunks:
        for value in chunk.to_pylist():
            content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
            if isinstance(content, bytes):
                found.append(content)
            elif path is not None and Path(path).is_file():
                found.append(Path(path))
            else:
                found.append(None)
    return found


def _table(
    kind: Kind, root: str, records: Sequence[_Record], order: Sequence[str], skipped: Sequence[str] = ()
) -> Table:
    """Assemble records; classes in the given order, else sorted."""
    kept, test_split = kept_splits(root, {record.split for record in records})
    records = [record for record in records if record.split in kept]
    classes = in_order({record.label for record in records}, order)
    index = {name: number for number, name in enumerate(classes)}
    groups = [record.group for record in records if record.group is not None]
    return Table(
        kind=kind,
        root=root,
        data=[record.data for record in records],
        names=tuple(record.name for record in records),
        target=tuple(index[record.label] for record in records),
        classes=tuple(classes),
        is_test=tuple(record.split == test_split for record in records) if test_split else None,
        groups=tuple(groups) if len(groups) == len(records) else None,
        skipped=tuple(skipped),
    )


def kept_splits(root: str, splits: Collection[str]) -> tuple[set[str], str | None]:
    """Of the splits there are, those to read; and the test split. A validation split stands in for a missing one."""
    test_split = next((split for split in ("test", "validation") if split in splits), None)
    if test_split is None:
        return set(splits), None
    kept = {split for split in ("train", "", test_split) if split in splits}
    if len(kept) == 1:
        raise DataError(f"{root}: has a {test_split} split but no train split; add it")
    return kept, test_split


def in_order(present: Collection[str], order: Iterable[str]) -> list[str]:
    """The names of classes in the order that the source gives them, else sorted."""
    return [name for name in dict.fromkeys(order) if name in present] or sorted(present, key=natural_key)


def keep(table: Table, rows: Sequence[int], skipped: Sequence[str]) -> Table:
    """The table with these rows alone, and why the others were left out; classes without a row go."""
    present = {table.target[row] for row in rows}
    number = {old: new for new, old in enumerate(sorted(present))}
    return replace(
        table,
        data=[table.data[row] for row in rows],
        names=tuple(table.names[row] for row in rows),
        target=tuple(number[table.target[row]] for row in rows),
        classes=tuple(name for old, name in enumerate(table.classes) if old in present),
        is_test=table.is_test and tuple(table.is_test[row] for row in rows),
        groups=table.groups and tuple(table.groups[row] for row in rows),
        skipped=(*table.skipped, *skipped),
    )


def one_line(text: str) -> str:
    """Text with what cannot be printed, such as a newline in a file's name, written as an escape.

    >>> print(one_line("cat\\n<b>.png"))
    cat\\n<b>.png
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def natural_key(text: str) -> tuple[bool, int, str]:
    """Sort key that puts numbers first and in order, then other text."""
    return (not text.isdecimal(), int(text) if text.isdecimal() else 0, text)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0].strip() or type(error).__name__
