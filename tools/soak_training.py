"""One training of thousands of epochs: memory, open files and threads after each, and whether they grow.

    python tools/soak_training.py --minutes 30 --output results/faults/soak_training.json

A small network on a folder of pictures, so that many epochs pass: each trains, evaluates, logs, and writes and verifies
a checkpoint, as the epochs of a long training do. Half of the time the pictures are in memory, half they are streamed
from disk. Growth is that of the medians from the second quarter of the epochs to the last, the first being for what is
made once.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import torch
from kill_jobs import SMALL, pictures

from cssoftmax import files, jobs, processor, runs
from cssoftmax.training import Interrupted
from cssoftmax.watcher import Watcher


def used() -> dict[str, float]:
    """Resident memory in MB, open files and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "MB": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "open files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": threading.active_count(),
    }


def soak(source: runs.Source, run: Path, seconds: float) -> dict[str, Any]:
    """Trains that long; what was used, and by how much it grew."""
    seen = {what: array("d") for what in used()}  # not in objects, which would grow by megabytes themselves
    steps, end = 0, time.monotonic() + seconds

    def on_step(progress: object) -> None:
        nonlocal steps
        steps += 1

    def on_epoch(line: dict[str, float]) -> None:
        for what, value in used().items():
            seen[what].append(value)
        epochs = len(seen["MB"])
        if epochs % 100 == 0:
            left = max(end - time.monotonic(), 0) / 60
            text = f"\r{run.name}: {epochs:,} epochs, {seen['MB'][-1]:.1f} MB, {left:.1f} minutes left "
            print(text, end="", file=sys.stderr, flush=True)
        if time.monotonic() > end:
            raise Interrupted

    try:
        watcher = Watcher(on_step=on_step, on_epoch=on_epoch)
        jobs.train(source, run, recipe_changes={**SMALL, "epochs": 100_000, "lr": 0.01}, cpu=True, watcher=watcher)
    except Interrupted:
        print(file=sys.stderr)
    epochs = len(seen["MB"])
    quarter = epochs // 4
    found: dict[str, Any] = {"epochs": epochs, "steps": steps, "seconds": round(seconds)}
    for what, values in seen.items():
        second, last = (statistics.median(part) for part in (values[quarter : 2 * quarter], values[-quarter:]))
        most = max(values)
        found[what] = {"second quarter": round(second, 1), "last quarter": round(last, 1), "most": round(most, 1)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--output", type=Path, help="JSON file for what was found")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"device": processor.describe("cpu"), "versions": runs.versions()}
    with tempfile.TemporaryDirectory() as name:
        photos = str(pictures(Path(name) / "photos"))
        for kind, buffer in (("in memory", None), ("streamed", 40)):
            source = runs.Source(photos, cache_dir=Path(name) / "cache", shuffle_buffer=buffer)
            result[kind] = soak(source, Path(name) / kind, 30 * arguments.minutes)
    print(json.dumps(result, indent=1))
    if arguments.output:
        files.write_json(arguments.output, result)
    grew = [
        part[what]["last quarter"] > 1.02 * part[what]["second quarter"]
        for part in (result["in memory"], result["streamed"])
        for what in ("MB", "open files", "threads")
    ]
    return int(any(grew))


if __name__ == "__main__":
    sys.exit(main())
