"""Data sets as tensors: load, split, and measure them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
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
from cssoftmax.data.table import DataError, Kind, OnError, Table, keep, natural_key, one_line

BLOCK = 2**24
"""Numbers of decoded samples that are held in float64 at a time."""
LOOKED_AT = 256
"""Samples of a streamed data set by which it is found how all of them are decoded."""
FROM_A_SHARD = 32
"""How many of one shard, at most."""
MOST_BYTES = 2**26
"""Of a streamed data set so many bytes of decoded samples are held at a time."""


@dataclass(frozen=True)
class Split:
    """Samples with their classes.

    Attributes:
        inputs: images, uint8 (N, channels, H, W), or log-mel spectrograms in decibels, float32 (N, 1, mels, frames);
            of a streamed data set what reads and decodes some of these, given their indices.
        target: index of the class of each sample, int64 (N,).
        groups: fold or speaker of each sample, where the data set has them.
        rows: place of each sample in its source, int64 (N,); None where there is no source.
    """

    inputs: Tensor | Streamed
    target: Tensor
    groups: tuple[str, ...] | None
    rows: Tensor | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set of images or sounds in classes.

    Attributes:
        name: short name.
        kind: "image" or "sound".
        classes: names of the classes, by index.
        train: samples to train on.
        test: samples held out.
        fingerprint: hash of the content, the decoding and the split.
        preprocessing: how an image or a sound became its tensor.
        skipped: what was left out, and why; a line each.
        repeated: test samples whose content is that of a training sample, as "TEST = TRAIN"; a line each.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    train: Split
    test: Split
    fingerprint: str
    preprocessing: Preprocessing
    skipped: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()


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
    train, test = _select(whole, ~is_test), _select(whole, is_test)
    _check(name, samples.classes, train, test)
    fingerprint = _hash(key, samples.target.numpy().tobytes(), is_test.numpy().tobytes())
    return Dataset(name, samples.kind, samples.classes, train, test, fingerprint, preprocessing, skipped, repeated)


def validation_split(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Carve a stratified part off the train split to choose settings by; the real test split is dropped.

    Args:
        dataset: the data set.
        fraction: share of each class of the train split to validate on, over 0 and under 1.
        seed: picks the part.

    Returns:
        The data set whose ``test`` is the carved part and whose ``train`` is the rest.

    Raises:
        DataError: the fraction is out of range, or no class has two samples.

    >>> part = validation_split(load_dataset("digits"), 0.2, seed=0)
    >>> len(part.train.target), len(part.test.target)
    (1008, 250)
    """
    if not 0 < fraction < 1:
        raise DataError(f"validation fraction {fraction}: must be over 0 and under 1")
    train = dataset.train
    held_out = stratified_mask(train.target, map(str, range(len(train.target))), fraction, seed)
    if not held_out.any():
        raise DataError(f"{dataset.name}: no class has two training samples; add samples, or do not validate")
    fingerprint = _hash(dataset.fingerprint, f"validation {fraction} {seed}")
    rest, part = _select(train, ~held_out), _select(train, held_out)
    return replace(dataset, train=rest, test=part, fingerprint=fingerprint)


def validation_group(dataset: Dataset, group: str) -> Dataset:
    """Carve one fold or speaker off the train split to choose settings by; the real test split is dropped.

    Raises:
        DataError: the train split has no such group, or nothing but it.
    """
    groups = dataset.train.groups or ()
    held_out = torch.tensor([name == group for name in groups], dtype=torch.bool)
    if not held_out.any() or held_out.all():
        raise DataError(f"{dataset.name}: cannot validate on {group!r}, the train split needs it and another group")
    fingerprint = _hash(dataset.fingerprint, f"validation group {group}")
    rest, part = _select(dataset.train, ~held_out), _select(dataset.train, held_out)
    return replace(dataset, train=rest, test=part, fingerprint=fingerprint)


def hold_out_classes(dataset: Dataset, names: Sequence[str]) -> tuple[Dataset, Split]:
    """Take classes out of both splits: networks that never saw them can be tested on them.

    Args:
        dataset: the data set.
        names: of the classes to take out; at least two others must stay.

    Returns:
        The data set of the other classes, numbered anew in their order, and the held-out classes' samples of the test
        split, numbered in the data set's order too.

    Raises:
        DataError: an unknown class, or fewer than two classes are left.

    >>> known, unknown = hold_out_classes(load_dataset("digits"), ["4", "9"])
    >>> known.classes, unknown.target.unique().tolist()
    (('0', '1', '2', '3', '5', '6', '7', '8'), [0, 1])
    """
    for name in names:
        if name not in dataset.classes:
            raise DataError(f"{dataset.name}: no class {name!r} to hold out; there are {', '.join(dataset.classes)}")
    out = torch.tensor([name in names for name in dataset.classes])
    if (~out).sum() < 2:
        raise DataError(f"{dataset.name}: {len(dataset.classes)} classes are too few to hold {len(names)} out")
    number = torch.where(out, out.cumsum(0), (~out).cumsum(0)) - 1

    def renumbered(split: Split, mask: Tensor) -> Split:
        chosen = _select(split, mask)
        return replace(chosen, target=number[chosen.target])

    train, test = dataset.train, dataset.test
    known = replace(
        dataset,
        classes=tuple(name for name in dataset.classes if name not in names),
        train=renumbered(train, ~out[train.target]),
        test=renumbered(test, ~out[test.target]),
        fingerprint=_hash(dataset.fingerprint, json.dumps(["without", *names])),
    )
    return known, renumbered(test, out[test.target])


def some(split: Split, count: int, seed: int) -> Split:
    """A random part of a split, of at most ``count`` samples; of a streamed one the first of an epoch.

    >>> len(some(load_dataset("digits").train, 100, seed=0).target)
    100
    """
    if len(split.target) <= count:
        return split
    generator = torch.Generator().manual_seed(seed)
    inputs = split.inputs
    order = (
        torch.randperm(len(inputs), generator=generator) if isinstance(inputs, Tensor) else inputs.order(generator, 1)
    )
    chosen = order[:count]
    return Split(
        _chosen(inputs, chosen), split.target[chosen], None, None if split.rows is None else split.rows[chosen]
    )


def at_most(count: int, split: Split) -> int:
    """As many samples, or, of a stream, as few as may be held decoded."""
    if isinstance(split.inputs, Tensor):
        return count
    return max(1, min(count, MOST_BYTES // (split.inputs.shape[1:].numel() * split.inputs.dtype.itemsize)))


def blends(split: Split, count: int, seed: int) -> Tensor:
    """Means of two samples of different classes each: stand-ins for samples of classes that are not known.

    Args:
        split: any.
        count: how many, at most.
        seed: picks the pairs.

    Returns:
        Inputs like those of the split, (M, channels, H, W); none where the split has one class.

    >>> blends(load_dataset("digits").test, 100, seed=0).shape
    torch.Size([100, 1, 8, 8])
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split.target), generator=generator)
    others = order.roll(1)
    pairs = torch.stack([order, others])[:, split.target[order] != split.target[others]][:, :count]
    first, second = split.inputs[pairs[0]], split.inputs[pairs[1]]
    mean = (first.float() + second.float()) / 2
    return mean.round().to(first.dtype) if first.dtype == torch.uint8 else mean


def channel_statistics(split: Split) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, float32 (channels,): of images scaled to [0, 1], of sounds in dB.

    >>> mean, std = channel_statistics(load_dataset("digits").train)
    >>> mean.shape, std.shape
    (torch.Size([1]), torch.Size([1]))
    """
    scale = 255.0 if split.inputs.dtype == torch.uint8 else 1.0
    total = torch.zeros(split.inputs.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    sample = split.inputs.shape[1:].numel()
    together = max(1, min(4096, BLOCK // sample))
    for start in range(0, len(split.inputs), together):
        values = split.inputs[start : start + together].double().div_(scale)
        total += values.sum(dim=(0, 2, 3))
        squares += values.square_().sum(dim=(0, 2, 3))
    count = len(split.inputs) * sample // len(total)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()


def stratified_mask(target: Tensor, names: Iterable[str], fraction: float, seed: int) -> Tensor:
    """Pick a share of each class by a hash of the samples' names: bool (N,).

    The order of the samples does not matter, and one more sample moves at most one other. At least one sample of a
    class is picked and at least one is not; a class of one sample is not picked.
    """
    hashes = (hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest() for name in names)
    hashed = np.fromiter(hashes, "S8", len(target))
    order = torch.from_numpy(np.lexsort([hashed, target.numpy()]))
    counts = target.bincount()
    place = torch.arange(len(target)) - (counts.cumsum(0) - counts)[target[order]]
    picked = torch.minimum((counts.double() * fraction).round().clamp(min=1), counts - 1)
    mask = torch.zeros(len(target), dtype=torch.bool)
    mask[order] = place < picked[target[order]]
    return mask


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
    key = _hash(json.dumps(described))
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
    key = _hash(json.dumps([FORMAT, found.name, found.digest, asdict(preprocessing)]))
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


def _select(split: Split, mask: Tensor) -> Split:
    groups = split.groups
    chosen = None if groups is None else tuple(groups[index] for index in mask.nonzero().flatten().tolist())
    rows = None if split.rows is None else split.rows[mask]
    return Split(_chosen(split.inputs, mask), split.target[mask], chosen, rows)


def _chosen(inputs: Tensor | Streamed, index: Tensor) -> Tensor | Streamed:
    return inputs[index] if isinstance(inputs, Tensor) else inputs.select(index)


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


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()
