"""Load a data set: by name, from a folder, from parquet files, from the hub, or as a stream."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cssoftmax.data.cache import FORMAT, Samples, default_cache_dir, read_cache, write_cache
from cssoftmax.data.image import Pixels, decode_images, fit, open_image, stack_images
from cssoftmax.data.prepare import Preprocessing, prepare
from cssoftmax.data.progress import track
from cssoftmax.data.shards import Shards, Streamed, find_shards
from cssoftmax.data.sound import NAMED, LogMel, decode_sounds, default_log_mel, read_channels
from cssoftmax.data.sources import find_source, named_folder
from cssoftmax.data.split import Dataset, Split, digest, select, stratified_mask
from cssoftmax.data.table import DataError, OnError, Table, keep, natural_key, one_line

LOOKED_AT = 256
"""Samples of a streamed data set by which it is found how all of them are decoded."""
FROM_A_SHARD = 32
"""How many of one shard, at most."""


def load_dataset(
    source: str,
    *,
    data_root: Path | None = None,
    cache_dir: Path | None = None,
    image_size: int | None = None,
    test_group: str | None = None,
    seed: int = 0,
    on_error: OnError = "fail",
    shuffle_buffer: int | None = None,
) -> Dataset:
    """Load a data set by name, from a folder, from parquet files or from the Hugging Face hub.

    Decoded samples are cached, keyed by the content, so that the next load is fast.

    With ``shuffle_buffer`` the data set may be larger than memory and disk. Only its labels are read; each sample is
    read and decoded when it is its turn. Images then get the size and the channels, sounds the duration and the rate,
    that some 256 samples ask for; the fingerprint is of the files' sizes and directories; ``repeated`` stays empty.

    Args:
        source: one of

            - ``digits`` (scikit-learn's, 8 x 8), ``mnist``, ``cifar10``, ``cifar100`` (fine labels), ``fsdd`` (spoken
              digits), ``esc10`` (environmental sounds);
            - a folder with one subfolder per class, or with ``train`` and ``test`` (or ``val``) folders of such;
            - a parquet file, or a folder of them, in the layout of the hub (``train-*.parquet``, ``test-*.parquet``);
            - ``hf:owner/name`` on the hub.
        data_root: folder in which named data sets and hub ids are looked for before the hub, as
            ``data_root/mnist/*.parquet``; by default ``$CSSOFTMAX_DATA``.
        cache_dir: folder for decoded samples; by default ``$CSSOFTMAX_CACHE`` or ``~/.cache/cssoftmax``.
        image_size: side in pixels to which images are resized (shorter side) and cut (square centre). By default
            images of one common size (at most 256) keep it, and others get 32.
        test_group: fold or speaker to test on; training leaves it out. By default the official split; where there is
            none, the first group (fold "1" of esc10); where there are no groups, a fifth of each class (of ``digits``
            30 percent), picked by a hash of the file name so that the split is stable.
        seed: changes that picked part; no official split depends on it.
        on_error: what to do about a sample that cannot be decoded, or has no label, and about a class without any:
            "fail", or "skip" them and list them in ``Dataset.skipped``.
        shuffle_buffer: stream, and draw each batch out of so many samples (:meth:`cssoftmax.data.Streamed.order`).
            About twice as many are held, encoded. By default the data set is loaded into memory.

    Raises:
        DataError: the data are missing, unknown, damaged or not fit to train on; one line that names the remedy.

    >>> digits = load_dataset("digits")
    >>> digits.train.inputs.shape, len(digits.test.target)
    (torch.Size([1258, 1, 8, 8]), 539)
    """
    if image_size is not None and image_size < 1:
        raise DataError(f"--image-size {image_size}: must be at least 1 pixel")
    samples: Samples | Shards
    if shuffle_buffer is None:
        name, key, decoded = _decoded(source, named_folder(data_root), cache_dir, image_size, on_error)
        samples = decoded
        rows = torch.arange(len(decoded.target)) if decoded.rows is None else decoded.rows
        whole = Split(decoded.inputs, decoded.target, decoded.groups, rows)
        is_test = _is_test(decoded, name, test_group, seed)
        preprocessing = decoded.log_mel or Pixels(*decoded.inputs.shape[1:])
        skipped, repeated = decoded.skipped, _repeated(decoded, is_test)
    else:
        name, key, found, inputs = _streamed(source, named_folder(data_root), image_size, on_error, shuffle_buffer)
        samples = found
        whole = Split(inputs, found.target, found.groups, inputs.rows)
        is_test = _is_test(found, name, test_group, seed)
        preprocessing, skipped, repeated = inputs.preprocessing, (), ()
    if samples.kind == "sound" and image_size is not None:
        raise DataError(f"--image-size {image_size}: {source} holds sounds; leave the size away")
    train, test = select(whole, ~is_test), select(whole, is_test)
    _check(name, samples.classes, train, test)
    fingerprint = digest(key, samples.target.numpy().tobytes(), is_test.numpy().tobytes())
    return Dataset(name, samples.kind, samples.classes, train, test, fingerprint, preprocessing, skipped, repeated)


def digits(image_size: int | None) -> Samples:
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    arrays = np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    if image_size is not None:
        arrays = np.stack([np.asarray(fit(Image.fromarray(array), image_size, image_size)) for array in arrays])
    return Samples(
        kind="image",
        classes=tuple("0123456789"),
        inputs=stack_images(arrays),
        target=torch.from_numpy(target).long(),
        is_test=None,
        groups=None,
        names=tuple(str(index) for index in range(len(target))),
    )


def _decoded(
    source: str, data_root: Path | None, cache_dir: Path | None, image_size: int | None, on_error: OnError
) -> tuple[str, str, Samples]:
    """A data set's name, what its tensors depend on, and these."""
    if source == "digits":
        return "digits", f"digits {image_size}", digits(image_size)
    found = find_source(source, data_root, on_error)
    parameters = NAMED.get(found.name)
    described = [FORMAT, found.name, found.digest, image_size, parameters and asdict(parameters)]
    described += [on_error] if on_error == "skip" else []
    key = digest(json.dumps(described))
    path = (cache_dir or default_cache_dir()) / f"{found.name}-{key}.safetensors"
    samples = read_cache(path)
    if samples is None:
        table = found.read()
        rows = torch.arange(len(table.data))
        if on_error == "skip":
            table, rows = _without_damaged(table)
        log_mel = None if table.kind == "image" else parameters or default_log_mel(table)
        inputs = decode_images(table, image_size) if log_mel is None else decode_sounds(table, log_mel)
        samples = _samples(table, inputs, log_mel, rows)
        write_cache(path, samples)
    return found.name, key, samples


def _streamed(
    source: str, data_root: Path | None, image_size: int | None, on_error: OnError, buffer: int
) -> tuple[str, str, Shards, Streamed]:
    """A data set's name, what its tensors depend on, where they are, and how to decode them."""
    if buffer < 1:
        raise DataError(f"--shuffle-buffer {buffer}: must be at least 1 sample")
    if on_error == "skip":
        raise DataError("--on-error skip: a stream is not looked through beforehand; leave this out, or --stream")
    if source == "digits":
        raise DataError("--stream: digits are 1797 small images that come with a library; leave --stream out")
    found = find_shards(source, data_root)
    # Some of some shards, for one may be large; of a folder, where each is a file, of as many as are looked at.
    starts, shards = found.starts.tolist(), len(found.starts) - 1
    number = min(shards, max(LOOKED_AT // FROM_A_SHARD, LOOKED_AT * shards // len(found.target)))
    chosen = torch.linspace(0, shards - 1, number).long().tolist()
    rows = torch.tensor(
        [row for n in chosen for row in range(starts[n], min(starts[n] + FROM_A_SHARD, starts[n + 1]))],
        dtype=torch.int64,
    )
    looked_at = Table(
        kind=found.kind,
        root=found.root,
        data=found.encoded(rows, 0),
        names=tuple(found.reader.name(row) for row in rows.tolist()),
        target=(),
        classes=(),
        is_test=None,
        groups=None,
    )
    preprocessing: Preprocessing
    if found.kind == "image":
        preprocessing = Pixels(*decode_images(looked_at, image_size).shape[1:])
    else:
        preprocessing = NAMED.get(found.name) or default_log_mel(looked_at)
    one = prepare(looked_at.data[:1], preprocessing, names=looked_at.names[:1])
    shape = torch.Size((len(found.target), *one.shape[1:]))
    key = digest(json.dumps([FORMAT, found.name, found.digest, asdict(preprocessing)]))
    inputs = Streamed(found, torch.arange(len(found.target)), preprocessing, shape, one.dtype, buffer)
    return found.name, key, found, inputs


def _without_damaged(table: Table) -> tuple[Table, Tensor]:
    """The samples that can be decoded, and their places in the table."""
    rows, skipped = [], []
    for row in track(range(len(table.data)), len(table.data), "looking for damaged samples"):
        try:
            (open_image if table.kind == "image" else read_channels)(table.data[row], table.describe(row))
            rows.append(row)
        except DataError as error:
            skipped.append(str(error).rpartition(";")[0])
    if not rows:
        raise DataError(f"{table.root}: not one sample can be decoded ({skipped[0]}); give other data")
    return keep(table, rows, skipped), torch.tensor(rows)


def _repeated(samples: Samples, is_test: Tensor) -> tuple[str, ...]:
    if samples.hashes is None:
        return ()
    trained = {value: row for row, value in enumerate(samples.hashes.tolist()) if not is_test[row]}
    return tuple(
        one_line(f"{samples.names[row]} = {samples.names[trained[value]]}")
        for row, value in enumerate(samples.hashes.tolist())
        if is_test[row] and value in trained
    )


def _hashes(inputs: Tensor) -> Tensor:
    digests = (hashlib.blake2b(sample.numpy().tobytes(), digest_size=8).digest() for sample in inputs)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])


def _samples(table: Table, inputs: Tensor, log_mel: LogMel | None, rows: Tensor) -> Samples:
    return Samples(
        kind=table.kind,
        classes=table.classes,
        inputs=inputs,
        target=torch.tensor(table.target),
        is_test=None if table.is_test is None else torch.tensor(table.is_test),
        groups=table.groups,
        names=table.names,
        log_mel=log_mel,
        rows=rows,
        hashes=_hashes(inputs),
        skipped=table.skipped,
    )


def _is_test(samples: Samples | Shards, name: str, test_group: str | None, seed: int) -> Tensor:
    groups = sorted(set(samples.groups or ()), key=natural_key)
    if test_group is not None and test_group not in groups:
        choice = f"choose from {', '.join(groups)}" if groups else f"{name} has no groups, leave it away"
        raise DataError(f"--test-group {test_group}: unknown; {choice}")
    if test_group is None and samples.is_test is not None:
        return samples.is_test
    if samples.groups is not None:
        held_out = test_group or groups[0]
        return torch.tensor([group == held_out for group in samples.groups])
    return stratified_mask(samples.target, samples.names, 0.3 if name == "digits" else 0.2, seed)


def _check(name: str, classes: Sequence[str], train: Split, test: Split) -> None:
    trained = _labels(train)
    if len(classes) < 2 or len(trained) < 2:
        raise DataError(f"{name}: only one class ({', '.join(classes)}) to train on; give at least two")
    unseen = _labels(test) - trained
    if unseen:
        listed = ", ".join(classes[index] for index in sorted(unseen)[:5])
        raise DataError(f"{name}: no training samples of the tested classes {listed}; add some")
    if not len(test.target):
        raise DataError(f"{name}: no samples to test on; give every class at least two")


def _labels(split: Split) -> set[int]:
    return set(split.target.bincount().nonzero().flatten().tolist())
