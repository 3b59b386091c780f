"""`cssoftmax bench head`: every head at every shape, into files that a later run adds to."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from cssoftmax import files
from cssoftmax.bench.heads import Shape, heads
from cssoftmax.bench.measure import Measurement, describe, measure, memory
from cssoftmax.bench.show import markdown, plot


def head(
    shapes: Sequence[Shape],
    output: Path,
    *,
    names: Sequence[str] = (),
    repeats: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    command: str = "",
    watch: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> list[Measurement]:
    """Measures the heads at each shape; writes head.json, head.md and head.png into a folder after every shape.

    What an earlier run on the same processor with the same versions found at other shapes stays in the files.

    Args:
        names: which heads, of :func:`heads`; all of them by default.
        repeats: turns at each shape; None takes as many as go into 10 seconds, at least 3.
        command: said in the files.
        watch: told steps done, steps in all, and what is being done.
    """
    available = heads(device)
    for name in names:
        if name not in available:
            raise ValueError(f"head: {name!r} is not one of {', '.join(available)}")
    names = names or list(available)
    setting = describe(device, command)
    found: list[Measurement] = []
    setting, earlier = _earlier(output / "head.json", setting, shapes)
    total = len(shapes) * (len(names) + 1)
    for number, shape in enumerate(shapes):
        done = number * (len(names) + 1)
        timed = measure(shape, names, device, dtype, repeats, lambda text, done=done: watch(done, total, text))  # type: ignore[misc]
        for place, measurement in enumerate(timed):
            watch(done + 1 + place, total, f"{shape}: memory of {measurement.head}")
            beyond, process = memory(measurement.head, shape, device, dtype) or (None, None)
            found.append(replace(measurement, memory=beyond, process=process))
        everything = sorted([*earlier, *found], key=lambda m: (m.shape.classes, m.shape.rows))
        files.write_json(output / "head.json", setting | {"measurements": [asdict(m) for m in everything]})
        files.write_bytes(output / "head.md", markdown(everything, setting).encode())
        files.write_bytes(output / "head.png", plot(everything, setting["processor"]))
    watch(total, total, "")
    return found


def read(path: Path) -> tuple[dict[str, Any], list[Measurement]]:
    """The setting and the measurements of a head.json."""
    setting = json.loads(path.read_text())
    rows = setting.pop("measurements")
    return setting, [Measurement(**row | {"shape": Shape(**row["shape"])}) for row in rows]


def _earlier(path: Path, setting: dict[str, Any], shapes: Sequence[Shape]) -> tuple[dict[str, Any], list[Measurement]]:
    """The setting with the commands of earlier runs that it can stand beside, and what these found at other shapes."""
    if not path.exists():
        return setting, []
    try:
        before, found = read(path)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the file of a measurement ({error}); take another --output") from None
    if any(before.get(key) != setting[key] for key in setting if key != "commands"):
        return setting, []
    commands = list(dict.fromkeys([*before["commands"], *setting["commands"]]))
    return setting | {"commands": commands}, [m for m in found if m.shape not in shapes]
