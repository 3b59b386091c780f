"""Tables read from parquet files and from what the Hugging Face library makes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cssoftmax.data.table import DataError, Kind, OnError, Record, Table, first_line, split_word, table_of

INPUT_COLUMNS: dict[str, Kind] = {"image": "image", "img": "image", "audio": "sound", "sound": "sound"}
LABEL_COLUMNS = ("fine_label", "label", "labels", "category", "class", "target")
GROUP_COLUMNS = ("fold", "speaker", "group")


def read_parquet(name: str, root: Path, files: Sequence[Path], on_error: OnError) -> Table:
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
    return read_parts(name, str(root), parts, on_error)


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


def read_parts(name: str, root: str, parts: Sequence[tuple[str, str, Any]], on_error: OnError) -> Table:
    """Read ``datasets.Dataset`` parts given as (name, split, part)."""
    import datasets

    records: list[Record] = []
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
                records.append(Record(data, f"{part_name} row {row}", label, split, group))
                continue
            if on_error == "fail":
                raise DataError(fault)
            skipped.append(fault.rpartition(";")[0])
    if len(kinds) > 1:
        raise DataError(f"{root}: holds both images and sounds; keep them in two folders")
    if not records:
        raise DataError(f"{root}: no rows in it; give files with at least two classes")
    return table_of(kinds.pop(), root, records, order, skipped)


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
