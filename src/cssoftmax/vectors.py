"""Embeddings of a whole source in a parquet file: written in parts that outlive an interruption, and searched."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from cssoftmax import files
from cssoftmax.data import Item, Stream
from cssoftmax.data.parquet import opened_parquet
from cssoftmax.data.prepare import Raw
from cssoftmax.embedder import Embedder
from cssoftmax.runs import JobError
from cssoftmax.training import Interrupted

PART = 1024
"""Samples that are embedded before they are written down."""
ROWS = 65_536
"""Rows that are searched at a time."""


@dataclass(frozen=True)
class Hit:
    """A sample of a file of embeddings, and the cosine of its embedding to that of a query."""

    id: str
    label: str | None
    cosine: float


def write_vectors(
    embedder: Embedder,
    stream: Stream,
    output: Path,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Embeds all items of ``stream`` into the parquet file ``output``: columns id, label, vector (D,) of length one.

    Items are decoded and embedded a few at a time. What is done lies in a hidden folder beside ``output`` until all is;
    the same call goes on from there. ``output`` appears whole or not at all; asked for again, it is left as it is.

    Args:
        embedder: the network.
        stream: the source, of the kind that the network was trained on.
        output: a new file, or one that this function wrote.
        on_progress: called with the items done, and all.

    Returns:
        The number of items.

    Raises:
        JobError: ``output`` is a file of another origin.
        cssoftmax.data.DataError: an item cannot be decoded; what came before it is kept.
        cssoftmax.training.Interrupted: Ctrl-C; what is done is kept.
    """
    made_of = {"weights": embedder.digest, "source": stream.digest, "name": stream.name}
    if output.exists():
        before = origin(output)
        if before is None:
            raise JobError(f"{output}: is not a file of embeddings and would be overwritten; give another --output")
        if before == made_of:
            return int(pyarrow.parquet.ParquetFile(output).metadata.num_rows)
    parts = output.with_name(f".{output.name}.parts")
    with files.only_one(parts):
        return _write(embedder, stream, output, parts, made_of, on_progress)


def _write(
    embedder: Embedder,
    stream: Stream,
    output: Path,
    parts: Path,
    made_of: dict[str, Any],
    on_progress: Callable[[int, int], None],
) -> int:
    _begin(parts, made_of)
    schema = _schema(embedder, made_of)
    items, written, count = stream.items(), [], 0
    try:
        for number in range(-(-stream.total // PART)):
            path = parts / f"{number:06d}.parquet"
            if path.exists():
                count += sum(1 for _ in islice(items, PART))
            else:
                chosen = list(islice(items, PART))
                if not chosen:
                    break
                files.write_bytes(path, _encoded(embedder, chosen, schema))
                count += len(chosen)
            written.append(path)
            on_progress(count, stream.total)
    except KeyboardInterrupt:
        raise Interrupted(f"{count} of {stream.total} are embedded; the same command goes on") from None
    _join(written, output, schema)
    shutil.rmtree(parts)
    return count


def origin(path: Path) -> dict[str, Any] | None:
    """Which weights and which source a file of embeddings is made of; None if it is no such file."""
    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
        return dict(json.loads(metadata[b"cssoftmax"]))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError):
        return None


def search(embedder: Embedder, query: Raw, path: Path, *, count: int = 5) -> list[Hit]:
    """The samples of a file of embeddings that are nearest to a query, by cosine, the nearest first.

    Args:
        embedder: the network that made the embeddings.
        query: an image or a sound.
        path: what :func:`write_vectors` wrote.
        count: how many, at least 1.

    Raises:
        JobError: there is no such file, or it was made with other weights.
        cssoftmax.data.DataError: the query cannot be decoded.
    """
    if not path.exists():
        raise JobError(f"{path}: no such file; `cssoftmax embed RUN SOURCE -o {path}` makes one")
    made_of = origin(path)
    if made_of is None:
        raise JobError(f"{path}: not a file of embeddings; `cssoftmax embed RUN SOURCE -o FILE` makes one")
    if made_of["weights"] != embedder.digest:
        raise JobError(f"{path}: was made with other weights, whose embeddings cannot be compared; embed anew")
    wanted = embedder.embed([query])[0]
    best: list[Hit] = []
    for batch in opened_parquet(path, str(path)).iter_batches(ROWS):
        vectors = batch.column("vector").values.to_numpy().reshape(len(batch), -1)
        cosines = vectors @ wanted
        nearest = np.argsort(-cosines, kind="stable")[:count].tolist()
        ids, labels = batch.column("id"), batch.column("label")
        best += [Hit(ids[row].as_py(), labels[row].as_py(), float(cosines[row])) for row in nearest]
        best = sorted(best, key=lambda hit: -hit.cosine)[:count]
    return best


def _begin(parts: Path, made_of: dict[str, Any]) -> None:
    """Readies the folder of parts; parts of other weights or another source go."""
    note = parts / "origin.json"
    try:
        if json.loads(note.read_text(encoding="utf-8")) == made_of:
            files.remove_abandoned(parts)
            return
    except (OSError, ValueError):
        pass
    for part in parts.iterdir():
        part.unlink()
    files.write_json(note, made_of)


def _schema(embedder: Embedder, made_of: dict[str, Any]) -> Any:
    size = embedder.config["recipe"]["embedding_size"]
    return pyarrow.schema(
        [
            pyarrow.field("id", pyarrow.string()),
            pyarrow.field("label", pyarrow.string()),
            pyarrow.field("vector", pyarrow.list_(pyarrow.float32(), size)),
        ],
        metadata={"cssoftmax": json.dumps(made_of)},
    )


def _encoded(embedder: Embedder, items: list[Item], schema: Any) -> bytes:
    vectors = embedder.embed([item.data for item in items], names=[item.id for item in items])
    columns = [
        pyarrow.array([item.id for item in items]),
        pyarrow.array([item.label for item in items], pyarrow.string()),
        pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), vectors.shape[1]),
    ]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, schema=schema), buffer)
    return buffer.getvalue()


def _join(parts: list[Path], output: Path, schema: Any) -> None:
    """One file of all parts, written aside and renamed."""
    with files.aside(output) as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for path in parts:
            writer.write_table(pyarrow.parquet.read_table(path).cast(schema))
