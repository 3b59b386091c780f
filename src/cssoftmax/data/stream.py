"""Samples one after the other, still encoded, labelled or not: what embedding a large source takes."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cssoftmax.data.parquet import contents, input_column, label_column, opened_parquet, texts
from cssoftmax.data.sources import (
    IMAGE_SUFFIXES,
    SOUND_SUFFIXES,
    class_files,
    digest_of,
    files_under,
    hub_source,
    locate,
    named_folder,
    subfolders,
)
from cssoftmax.data.table import DataError

ROWS = 256
"""Rows of a parquet file that are read together."""


@dataclass(frozen=True)
class Item:
    """One image or sound: its id, its class where it has one, and its encoded file."""

    id: str
    label: str | None
    data: bytes | Path


@dataclass(frozen=True)
class Stream:
    """A source: its name, a digest of its content, how many items, and how to go through them."""

    name: str
    digest: str
    total: int
    items: Callable[[], Iterator[Item]]


def open_stream(source: str, data_root: Path | None = None) -> Stream:
    """Find a source as :func:`cssoftmax.data.load_dataset` does; a folder needs no classes, and one file will do.

    Folders and parquet files are read as they are gone through; of the hub, encoded files are held in memory. Ids are
    paths under the folder, or ``FILE row NUMBER``. Train and test samples follow each other.

    Raises:
        DataError: the source is unknown, or holds no images or sounds.

    >>> stream = open_stream("digits")
    >>> stream.total, next(stream.items()).label
    (1797, '0')
    """
    if source == "digits":
        return _digits()
    name, place = locate(source, named_folder(data_root))
    if isinstance(place, str):
        found = hub_source(name, place, data_root)
        table = found.read()
        rows = range(len(table.data))
        return Stream(
            name,
            found.digest,
            len(rows),
            lambda: (Item(table.names[row], table.classes[table.target[row]], table.data[row]) for row in rows),
        )
    if place.is_file() and place.suffix.lower() in IMAGE_SUFFIXES | SOUND_SUFFIXES:
        return _of_files(name, place.parent, [(place, None)])
    root = place.parent if place.is_file() else place
    tables = [place] if place.is_file() else files_under(place, {".parquet"})
    if tables:
        return _of_parquet(name, root, tables)
    if subfolders(root):
        return _of_files(name, root, [(file, label) for file, label, _ in class_files(root)])
    files = files_under(root, IMAGE_SUFFIXES | SOUND_SUFFIXES)
    if not files:
        raise DataError(f"{root}: no images or sounds in it; give a folder, a parquet file or hf:owner/name")
    return _of_files(name, root, [(file, None) for file in files])


def _of_files(name: str, root: Path, files: Sequence[tuple[Path, str | None]]) -> Stream:
    def items() -> Iterator[Item]:
        for file, label in files:
            yield Item(file.relative_to(root).as_posix(), label, file)

    return Stream(name, digest_of(root, [file for file, _ in files]), len(files), items)


def _of_parquet(name: str, root: Path, files: Sequence[Path]) -> Stream:
    import datasets
    import pyarrow

    def items() -> Iterator[Item]:
        for path in files:
            file, part = opened_parquet(path, str(path)), path.relative_to(root).as_posix()
            features = datasets.Features.from_arrow_schema(file.schema_arrow)
            column, _ = input_column(features, str(path))
            try:
                labelled = label_column(features, str(path))
            except DataError:
                labelled = None
            row = 0
            for batch in file.iter_batches(ROWS):
                arrow = pyarrow.Table.from_batches([batch])
                if name == "esc10" and "esc10" in arrow.column_names:
                    arrow = arrow.filter(arrow.column("esc10"))
                encoded = contents(arrow.column(column))
                labels = texts(arrow, features, labelled) if labelled else [None] * len(encoded)
                for data, label in zip(encoded, labels, strict=True):
                    if data is None:
                        raise DataError(f"{path}: row {row} holds no encoded file; remove the row or embed its bytes")
                    yield Item(f"{part} row {row}", label, data)
                    row += 1

    return Stream(
        name, digest_of(root, files), sum(opened_parquet(path, str(path)).metadata.num_rows for path in files), items
    )


def _digits() -> Stream:
    from PIL import Image

    from cssoftmax.data.load import digits

    samples = digits(None)

    def items() -> Iterator[Item]:
        for name, label, pixels in zip(samples.names, samples.target.tolist(), samples.inputs[:, 0], strict=True):
            file = io.BytesIO()
            Image.fromarray(pixels.numpy()).save(file, "png")
            yield Item(name, samples.classes[label], file.getvalue())

    return Stream("digits", "digits", len(samples.names), items)
