"""Records of a data set, still encoded, and how they are put in order: splits, classes, names."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Kind = Literal["image", "sound"]
OnError = Literal["fail", "skip"]
"""What to do about a sample that cannot be used: say so and stop, or leave it out and list it."""

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
class Record:
    data: bytes | Path
    name: str
    label: str
    split: str
    group: str | None


def table_of(
    kind: Kind, root: str, records: Sequence[Record], order: Sequence[str], skipped: Sequence[str] = ()
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


def split_word(name: str) -> str:
    return next((SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS), "")


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
