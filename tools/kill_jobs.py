"""Kills jobs at random moments and goes on with them, until one is done; counts what was not as if never killed.

    python tools/kill_jobs.py --kills 200 --output results/faults/kills.json

Each process decodes a folder of pictures into an empty cache, trains, and writes its run; or compares two losses with
trials (a third as many kills); or embeds the pictures in parts of sixteen (another third). SIGKILL strikes at a moment
drawn from the time that takes uninterrupted. After each kill every file there is must be whole. The final weights, or
embeddings, must be, bit for bit, those of the job that was never killed.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from cssoftmax import comparison, files, jobs, processor, runs, vectors
from cssoftmax.data import open_stream
from cssoftmax.data.cache import read_cache
from cssoftmax.embedder import Embedder

SMALL = {"network": "lenet", "width": 2, "embedding_size": 8, "epochs": 4, "batch_size": 16}


def pictures(folder: Path, classes: int = 4, each: int = 40, size: int = 16) -> Path:
    generator = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class {label}").mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 120, (size, size, 3)) + 30 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class {label}" / f"{number}.png")
    return folder


def train(folder: Path, source: runs.Source) -> None:
    run = folder / "run"
    if (run / "summary.json").exists():
        return
    if (run / "config.json").exists():
        jobs.resume(run)
    else:
        jobs.train(source, run, recipe_changes=SMALL, cpu=True)


def compare(folder: Path, source: runs.Source) -> None:
    losses = ("softmax", "cs-softmax")
    comparison.compare(source, folder / "compared", losses=losses, seeds=1, tune=1, recipe_changes=SMALL, cpu=True)


def embed(folder: Path, source: runs.Source) -> None:
    vectors.PART = 16
    embedder = Embedder.load(folder.parent / "train whole" / "run")
    vectors.write_vectors(embedder, open_stream(source.name), folder / "embeddings.parquet")


def child(work: Callable[[Path, runs.Source], None], folder: Path, source: runs.Source) -> None:
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    torch.set_num_threads(1)
    work(folder, source)


def outcome(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in folder.glob("*.parquet"):
        digest.update(path.read_bytes())
    for path in sorted(folder.rglob("weights.safetensors")):
        for name, tensor in sorted(files.read_tensors(path)[1].items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def broken(folder: Path) -> list[str]:
    """Files that are not whole; those written aside, with names of their own, do not count."""
    found = []
    for path in folder.rglob("*"):
        try:
            if path.suffix == ".safetensors" and path.parent.name == "cache":
                if read_cache(path) is None:
                    raise ValueError
            elif path.suffix == ".safetensors":
                files.read_tensors(path)
            elif path.suffix == ".parquet":
                pyarrow.parquet.read_table(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except (ValueError, pyarrow.ArrowException):
            found.append(path.name)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    torch.set_num_threads(1)  # a forked child may not use the threads of its parent
    context = multiprocessing.get_context("fork")
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        photos = pictures(root / "photos")
        for work, share in ((train, 1), (compare, 1 / 3), (embed, 1 / 3)):
            whole = root / f"{work.__name__} whole"
            began = time.monotonic()
            source = runs.Source(str(photos), cache_dir=whole / "cache")
            process = context.Process(target=child, args=(work, whole, source))
            process.start()
            process.join()
            seconds, expected = time.monotonic() - began, outcome(whole)
            if process.exitcode:
                raise SystemExit(f"{work.__name__}: failed without being killed, exit code {process.exitcode}")
            kills, goal, number = 0, round(arguments.kills * share), 0
            while kills < goal:
                folder = root / f"{work.__name__} {number}"
                source = runs.Source(str(photos), cache_dir=folder / "cache")
                process = context.Process(target=child, args=(work, folder, source))
                process.start()
                process.join(random.uniform(0, seconds) if kills < goal else None)
                if process.exitcode is None:
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
                    kills += 1
                    counts[f"{work.__name__}: killed"] += 1
                    counts[f"{work.__name__}: half-written files"] += len(broken(folder)) if folder.exists() else 0
                elif process.exitcode:
                    counts[f"{work.__name__}: did not go on"] += 1
                    number += 1
                else:
                    counts[f"{work.__name__}: done"] += 1
                    counts[f"{work.__name__}: another outcome"] += outcome(folder) != expected
                    shutil.rmtree(folder)
                    number += 1
                print(f"\r{work.__name__}: {kills} of {goal} kills", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
    result = {"seed": arguments.seed, "device": processor.describe("cpu"), "versions": runs.versions(), **counts}
    print(json.dumps(result, indent=1))
    if arguments.output:
        files.write_json(arguments.output, result)
    wrong = ("half-written files", "did not go on", "another outcome")
    return int(any(count for key, count in counts.items() if key.endswith(wrong)))


if __name__ == "__main__":
    sys.exit(main())
