"""A data set's samples, and what can be done to them: split, leave classes out, take some, measure."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cssoftmax.data.prepare import Preprocessing
from cssoftmax.data.shards import Streamed
from cssoftmax.data.table import DataError, Kind

BLOCK = 2**24
"""Numbers of decoded samples that are held in float64 at a time."""
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

    >>> from cssoftmax.data import load_dataset
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
    fingerprint = digest(dataset.fingerprint, f"validation {fraction} {seed}")
    rest, part = select(train, ~held_out), select(train, held_out)
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
    fingerprint = digest(dataset.fingerprint, f"validation group {group}")
    rest, part = select(dataset.train, ~held_out), select(dataset.train, held_out)
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

    >>> from cssoftmax.data import load_dataset
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
        chosen = select(split, mask)
        return replace(chosen, target=number[chosen.target])

    train, test = dataset.train, dataset.test
    known = replace(
        dataset,
        classes=tuple(name for name in dataset.classes if name not in names),
        train=renumbered(train, ~out[train.target]),
        test=renumbered(test, ~out[test.target]),
        fingerprint=digest(dataset.fingerprint, json.dumps(["without", *names])),
    )
    return known, renumbered(test, out[test.target])


def some(split: Split, count: int, seed: int) -> Split:
    """A random part of a split, of at most ``count`` samples; of a streamed one the first of an epoch.

    >>> from cssoftmax.data import load_dataset
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


def at_most(split: Split, count: int) -> int:
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

    >>> from cssoftmax.data import load_dataset
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

    >>> from cssoftmax.data import load_dataset
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


def select(split: Split, mask: Tensor) -> Split:
    """The samples where ``mask`` (N,) is true."""
    groups = split.groups
    chosen = None if groups is None else tuple(groups[index] for index in mask.nonzero().flatten().tolist())
    rows = None if split.rows is None else split.rows[mask]
    return Split(_chosen(split.inputs, mask), split.target[mask], chosen, rows)


def _chosen(inputs: Tensor | Streamed, index: Tensor) -> Tensor | Streamed:
    return inputs[index] if isinstance(inputs, Tensor) else inputs.select(index)


def digest(*parts: str | bytes) -> str:
    """A hash of all parts, hexadecimal."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()
