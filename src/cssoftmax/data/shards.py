"""Data sets that stay where they are, larger than memory or disk: each sample is read and decoded when it is its turn.

A *shard* is what is read together: a row group of a parquet file, or one file of a folder. The order of an epoch is a
function of its seed alone, computed from the shards' sizes without reading one; so any step can be gone on from.
"""

import bisect
import hashlib
import io
import itertools
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cssoftmax.data.parquet import GROUP_COLUMNS, contents, input_column, label_column, opened_parquet, texts
from cssoftmax.data.prepare import Preprocessing, prepare
from cssoftmax.data.sources import SOUND_SUFFIXES, class_files, files_under, hub_files, locate
from cssoftmax.data.table import DataError, Kind, first_line, in_order, kept_splits, one_line, split_word

DECODERS = min(8, os.cpu_count() or 1)
"""Threads that decode, and batches that they are ahead."""
TOGETHER = 256
"""Samples that are held encoded while they are decoded."""
OPEN_FILES = 32
"""Parquet files that are held open: to open one again means to read its directory again."""


@dataclass(frozen=True)
class Part:
    """Shards of one split: a parquet file, or files of a folder.

    ``target`` (n,) counts classes in the order in which the source names them; ``sizes`` are the rows of each shard.
    """

    split: str
    target: Tensor
    groups: tuple[str, ...] | None
    sizes: Sequence[int]
    read: Callable[[int], Sequence[bytes | Path | None]]
    name: Callable[[int], str]


@dataclass(frozen=True)
class Shards:
    """A source's samples, still where they are: (N,) classes, splits and groups of all, and how to read some.

    ``is_test`` is None where the source has no test split, ``groups`` where it has no folds or speakers; ``starts``
    (S + 1,) are the first row of each shard, and of what would follow. ``digest`` is of the files' names, sizes and
    directories; their content is not read for it.
    """

    name: str
    kind: Kind
    root: str
    classes: tuple[str, ...]
    target: Tensor
    is_test: Tensor | None
    groups: tuple[str, ...] | None
    starts: Tensor
    digest: str
    reader: "_Reader"

    @property
    def names(self) -> Iterator[str]:
        return map(self.reader.name, range(len(self.target)))

    def describe(self, row: int) -> str:
        return one_line(f"{self.root}/{self.reader.name(row)}")

    def shard_of(self, rows: Tensor) -> Tensor:
        return torch.bucketize(rows.contiguous(), self.starts, right=True) - 1

    def encoded(self, rows: Tensor, most: int) -> list[bytes | Path]:
        """The encoded files of these rows; shards of ``most`` rows, and three at least, are held for later ones."""
        found: list[bytes | Path | None] = [None] * len(rows)
        shards = self.shard_of(rows)
        places = (rows - self.starts[shards]).tolist()
        with self.reader.lock:
            for number in shards.argsort(stable=True).tolist():
                found[number] = self.reader.shard(int(shards[number]), most)[places[number]]
        if None in found:
            where = self.describe(int(rows[found.index(None)]))
            raise DataError(f"{where}: holds no encoded file; remove the row or embed its bytes")
        return [data for data in found if data is not None]


class _Reader:
    """Reads shards and holds those that were read last."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.rows = [0, *itertools.accumulate(len(part.target) for part in parts)]
        self.shards = [0, *itertools.accumulate(len(part.sizes) for part in parts)]
        self.names = [part.name for part in parts]
        self.reads = [part.read for part in parts]
        self.lock = threading.Lock()
        self.held: OrderedDict[int, Sequence[bytes | Path | None]] = OrderedDict()
        self.held_rows = 0

    def name(self, row: int) -> str:
        part = bisect.bisect_right(self.rows, row) - 1
        return self.names[part](row - self.rows[part])

    def shard(self, number: int, most: int) -> Sequence[bytes | Path | None]:
        if number in self.held:
            self.held.move_to_end(number)
            return self.held[number]
        part = bisect.bisect_right(self.shards, number) - 1
        found = self.held[number] = self.reads[part](number - self.shards[part])
        self.held_rows += len(found)
        while self.held_rows > most and len(self.held) > 3:
            self.held_rows -= len(self.held.popitem(last=False)[1])
        return found


@dataclass(frozen=True)
class Streamed:
    """The inputs of a :class:`cssoftmax.data.Split` that is not in memory.

    ``inputs[index]`` decodes some, as the tensor (n, channels, H, W) that they are; nothing of it is kept.

    Attributes:
        source: where they are.
        rows: which of the source's they are, int64 (N,).
        preprocessing: how they are decoded.
        shape: (N, channels, H, W).
        dtype: uint8 of images, float32 of sounds.
        buffer: samples out of which each batch is drawn; see :meth:`order`.
    """

    source: Shards
    rows: Tensor
    preprocessing: Preprocessing
    shape: torch.Size
    dtype: torch.dtype
    buffer: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        rows = self.rows[index]
        decoded = torch.empty(len(rows), *self.shape[1:], dtype=self.dtype)
        for places in torch.split(rows.argsort(), TOGETHER):  # shard by shard
            names = [self.source.describe(row) for row in rows[places].tolist()]
            if names:
                decoded[places] = prepare(self.encoded(rows[places]), self.preprocessing, names=names)
        return decoded

    def encoded(self, rows: Tensor) -> list[bytes | Path]:
        """Files of some of the source's rows."""
        return self.source.encoded(rows, 2 * self.buffer)

    def select(self, index: Tensor) -> "Streamed":
        """Some of them, not decoded yet."""
        rows = self.rows[index]
        return replace(self, rows=rows, shape=torch.Size((len(rows), *self.shape[1:])))

    def order(self, generator: torch.Generator, batch_size: int, processes: int = 1) -> Tensor:
        """Indices of an epoch's full batches one after the other, of which process p reads ``[p::processes]``.

        All shards stand in a line, in random order, which is cut into one piece a process. In its piece each sample
        moves a random way, of up to ``buffer`` places and round the end, to its turn. So each batch is a random sample
        of ``buffer`` consecutive ones, and a process reads its own shards, each once, but for those at the ends of its
        piece. A buffer as large as the piece makes it a random permutation.
        """
        shard = self.source.shard_of(self.rows)
        line = torch.randperm(len(self.source.starts) - 1, generator=generator)[shard].argsort(stable=True)
        table = torch.empty(len(line) // batch_size, batch_size, dtype=torch.int64)
        start = 0
        for process in range(processes):
            share = table[:, process::processes]
            piece = line[start : start + share.numel()]
            start += len(piece)
            way = min(self.buffer, len(piece)) * torch.rand(len(piece), generator=generator, dtype=torch.float64)
            turn = (torch.arange(len(piece)) + way) % max(len(piece), 1)
            share.copy_(piece[turn.argsort(stable=True)].view(share.shape))
        return table.flatten()


def read_ahead(inputs: Tensor | Streamed, batches: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Each batch's indices and its inputs; what is streamed is read and decoded some batches ahead, in threads."""
    if isinstance(inputs, Tensor):
        for index in batches:
            yield index, inputs[index.to(inputs.device)]
        return
    pool = ThreadPoolExecutor(DECODERS)
    try:
        waiting = deque[tuple[Tensor, Any]]()
        for index in batches:
            waiting.append((index, pool.submit(inputs.__getitem__, index)))
            if len(waiting) > DECODERS:
                index, decoded = waiting.popleft()
                yield index, decoded.result()
        for index, decoded in waiting:
            yield index, decoded.result()
    finally:
        pool.shutdown(cancel_futures=True)


def find_shards(source: str, data_root: Path | None) -> Shards:
    """Find a data set as :func:`cssoftmax.data.sources.find_source` does, and read its labels, not its samples.

    Raises:
        DataError: the source is unknown, cannot be reached, or holds no classes of images or sounds.
    """
    _opened.cache_clear()
    name, place = locate(source, data_root)
    if isinstance(place, str):
        files = hub_files(name, place, data_root)
        return _of_parquet(name, f"hf:{place}", [(Path(url).name, split, url) for split, url in files])
    root = place.parent if place.is_file() else place
    tables = [place] if place.is_file() else files_under(place, {".parquet"})
    if place.is_file() and place.suffix != ".parquet":
        raise DataError(f"{place}: not a parquet file; give a .parquet file or a folder with one subfolder per class")
    if tables:
        named = [(path.relative_to(root).as_posix(), path) for path in tables]
        return _of_parquet(name, str(root), [(part, split_word(part), path) for part, path in named])
    return _of_folder(name, root)


def _of_folder(name: str, root: Path) -> Shards:
    entries = class_files(root)
    sounds = sum(file.suffix.lower() in SOUND_SUFFIXES for file, _, _ in entries)
    if 0 < sounds < len(entries):
        raise DataError(f"{root}: holds both images and sounds; keep them in two folders")
    digest = hashlib.blake2b(digest_size=16)
    met: dict[str, int] = {}
    parts = []
    kept, test_split = kept_splits(str(root), {split for _, _, split in entries})
    for split in sorted(kept, key=[split for _, _, split in entries].index):
        files = [file for file, _, there in entries if there == split]
        names = [file.relative_to(root).as_posix() for file in files]
        target = torch.tensor([met.setdefault(label, len(met)) for _, label, there in entries if there == split])
        for file, path in zip(files, names, strict=True):
            digest.update(f"{path}\0{file.stat().st_size}\n".encode())
        parts.append(Part(split, target, None, [1] * len(files), _files(files), names.__getitem__))
    kind: Kind = "sound" if sounds else "image"
    return _shards(name, kind, str(root), parts, test_split, in_order(met, ()), list(met), digest.hexdigest())


def _files(files: Sequence[Path]) -> Callable[[int], Sequence[bytes | Path | None]]:
    return lambda number: [files[number]]


def _shards(
    name: str,
    kind: Kind,
    root: str,
    parts: Sequence[Part],
    test_split: str | None,
    classes: Sequence[str],
    met: Sequence[str],
    digest: str,
) -> Shards:
    numbers = {label: number for number, label in enumerate(classes)}
    number = torch.tensor([numbers[label] for label in met])
    groups = [part.groups for part in parts]
    sizes = torch.tensor([0, *(size for part in parts for size in part.sizes)])
    is_test = torch.cat([torch.full((len(part.target),), part.split == test_split) for part in parts])
    return Shards(
        name=name,
        kind=kind,
        root=root,
        classes=tuple(classes),
        target=number[torch.cat([part.target for part in parts])],
        is_test=is_test if test_split else None,
        groups=None if None in groups else tuple(group for part in groups for group in part or ()),
        starts=sizes.cumsum(0),
        digest=digest,
        reader=_Reader(parts),
    )


def _of_parquet(name: str, root: str, files: Sequence[tuple[str, str, str | Path]]) -> Shards:
    """Files given as (name, split, place)."""
    import datasets

    digest = hashlib.blake2b(digest_size=16)
    met: dict[str, int] = {}
    order: list[str] = []
    kinds: set[Kind] = set()
    parts = []
    kept, test_split = kept_splits(root, {split for _, split, _ in files})
    for part, split, place in files:
        if split not in kept:
            continue
        where = f"{root}/{part}"
        file = _opened(place, where)
        features = datasets.Features.from_arrow_schema(file.schema_arrow)
        column, kind = input_column(features, where)
        kinds.add(kind)
        labelled = label_column(features, where)
        order += getattr(features[labelled], "names", None) or []
        grouped = next((column for column in GROUP_COLUMNS if column in features), None)
        marked = "esc10" if name == "esc10" and "esc10" in features else None
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        arrow = file.read([column for column in (labelled, grouped, marked) if column])
        if marked:
            marks = torch.tensor(arrow.column(marked).to_pylist())
            sizes = [int(shard.sum()) for shard in torch.split(marks, sizes)]
            arrow = arrow.filter(arrow.column(marked))
        labels = texts(arrow, features, labelled)
        if None in labels:
            raise DataError(
                f"{where}: row {labels.index(None)} has no label in column {labelled!r}, or one unknown; label it or "
                "remove it"
            )
        groups = None
        if grouped:
            shared: dict[str | None, str | None] = {}
            groups = [shared.setdefault(group, group) for group in texts(arrow, features, grouped)]
        target = torch.tensor([met.setdefault(str(label), len(met)) for label in labels], dtype=torch.int64)
        directory = io.BytesIO()
        file.metadata.write_metadata_file(directory)
        digest.update(f"{part}\0".encode() + directory.getvalue())
        parts.append(
            Part(
                split,
                target,
                None if groups is None or None in groups else tuple(str(group) for group in groups),
                sizes,
                _row_groups(place, where, column, marked),
                f"{part} row {{}}".format,
            )
        )
    if len(kinds) > 1:
        raise DataError(f"{root}: holds both images and sounds; keep them in two folders")
    if not any(len(part.target) for part in parts):
        raise DataError(f"{root}: no rows in it; give files with at least two classes")
    return _shards(name, kinds.pop(), root, parts, test_split, in_order(met, order), list(met), digest.hexdigest())


def _row_groups(
    place: str | Path, where: str, column: str, marked: str | None
) -> Callable[[int], Sequence[bytes | Path | None]]:
    import pyarrow

    def read(number: int) -> Sequence[bytes | Path | None]:
        try:
            arrow = _opened(place, where).read_row_group(number, [column, *([marked] if marked else [])])
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{where}: cannot be read any more ({first_line(error)}); see that it is there") from None
        return contents((arrow.filter(arrow.column(marked)) if marked else arrow).column(column))

    return read


_opened = lru_cache(OPEN_FILES)(opened_parquet)
