"""What a comparison trains on, tests on, and validates on: the same for every loss."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch

from cssoftmax import runs
from cssoftmax.data import DataError, Dataset, Split, hold_out_classes, validation_group, validation_split

Protocol = Literal["closed", "open", "verification"]

# The share of the training split that trials are scored on, where no fold or speaker is held out for them.
VALIDATION = 0.2
# Data in more folds or speakers than this are not rotated over them.
MOST_ROTATIONS = 10

HEADLINES: dict[Protocol, tuple[str, ...]] = {
    "closed": ("accuracy", "eer", "inter_class_degrees_mean", "inter_class_degrees_min"),
    "open": ("unknown_auroc_cosine", "unknown_auroc_probability", "accuracy"),
    "verification": ("eer", "tar_at_far_1e_2", "recall_at_1", "map_at_r"),
}
"""What each protocol is about; trials are scored by the first (open: by the higher of the first two)."""


@dataclass(frozen=True)
class Design:
    """What a protocol means for a data set.

    Attributes:
        groups: folds or speakers to test on in turn; (None,) for the data set's own split.
        held_out_classes: taken out of training; what "open" and "verification" are about where there are any.
    """

    groups: tuple[str | None, ...]
    held_out_classes: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """What one network is trained and tested on.

    Attributes:
        known: the classes trained on, with their test samples.
        unknown: test samples of the held-out classes, where there are any.
    """

    known: Dataset
    unknown: Split | None


def design_of(dataset: Dataset, protocol: Protocol, seed: int, *, by_group: bool = False) -> Design:
    """What a protocol means for a data set; see :func:`cssoftmax.comparison.compare`.

    Raises:
        DataError: too few classes to hold some out; ``by_group`` without groups to take in turn.

    >>> from cssoftmax.data import load_dataset
    >>> design_of(load_dataset("digits"), "verification", seed=0).groups
    (None,)
    """
    trained, tested = set(dataset.train.groups or ()), set(dataset.test.groups or ())
    groups, in_both = sorted(trained | tested), bool(trained & tested)
    in_turn = by_group or (protocol == "closed" and not in_both) or (protocol == "verification" and in_both)
    if by_group and not 1 < len(groups) <= MOST_ROTATIONS:
        raise DataError(f"{dataset.name}: --by-group needs 2 to {MOST_ROTATIONS} folds or speakers, not {len(groups)}")
    if in_turn and 1 < len(groups) <= MOST_ROTATIONS:
        return Design(tuple(groups), ())
    return Design((None,), () if protocol == "closed" else _fifth(dataset, seed))


def test_part(source: runs.Source, design: Design, group: str | None, seed: int) -> Part:
    """What the runs of a rotation are trained and tested on."""
    dataset = _loaded(replace(source, test_group=group), seed)
    if not design.held_out_classes:
        return Part(dataset, None)
    return Part(*hold_out_classes(dataset, design.held_out_classes))


def validation_part(source: runs.Source, design: Design, group: str | None, seed: int) -> Part:
    """What its trials are trained and scored on: the protocol once more, within the training part of the rotation."""
    known = test_part(source, design, group, seed).known
    if group is not None:
        groups = [name for name in design.groups if name is not None]
        return Part(validation_group(known, groups[(groups.index(group) + 1) % len(groups)]), None)
    known = validation_split(known, VALIDATION, seed)
    return Part(*hold_out_classes(known, _fifth(known, seed))) if design.held_out_classes else Part(known, None)


def _fifth(dataset: Dataset, seed: int) -> tuple[str, ...]:
    """A fifth of the classes, at least two: of cifar100 every fifth in order, else drawn."""
    count = len(dataset.classes)
    if count < 4:
        raise DataError(f"{dataset.name}: {count} classes are too few to hold two of them out; four are needed")
    if dataset.name == "cifar100" and count == 100:
        return dataset.classes[4::5]
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: max(2, round(count / 5))]
    return tuple(dataset.classes[index] for index in sorted(drawn.tolist()))


@lru_cache(maxsize=1)
def _loaded(source: runs.Source, seed: int) -> Dataset:
    return source.load(seed)
