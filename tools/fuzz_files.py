"""Feeds mutated files to the loaders and counts what they do: use them, refuse them in one line, or go wrong.

    python tools/fuzz_files.py --files 100000 --output results/faults/fuzz.json

Images, sounds and parquet files are made in every format that is read; bytes are flipped, cut out, repeated, put
together from two files. Each is loaded in a process that may take 4 GiB and 20 seconds; a crash, a hang, more memory
or an error that is not one of ours goes wrong, and its seed is told, from which `mutated` makes the file again.
"""

import argparse
import io
import json
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import datasets
import numpy as np
import soundfile
from PIL import Image

from cssoftmax import files, processor, runs
from cssoftmax.data import DataError
from cssoftmax.data.image import open_image
from cssoftmax.data.sound import read_channels
from cssoftmax.data.sources import find_source

EXTREMES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
MEMORY = 4 << 30
SECONDS = 20
IMAGES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SOUNDS = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III", "AIFF": "PCM_16"}


def originals() -> list[tuple[str, bytes]]:
    random = np.random.default_rng(0)
    made = []
    for kind in IMAGES:
        for mode, size in (("RGB", (32, 32)), ("L", (28, 28)), ("RGB", (200, 150))):
            pixels = Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)
            content = io.BytesIO()
            pixels.save(content, kind)
            made.append(("image", content.getvalue()))
    for kind, subtype in SOUNDS.items():
        for channels in (1, 2):
            content = io.BytesIO()
            soundfile.write(content, random.normal(size=(8000, channels)) / 8, 8000, format=kind, subtype=subtype)
            made.append(("sound", content.getvalue()))
    rows = [{"image": {"bytes": made[i % 3][1], "path": None}, "label": i % 2} for i in range(12)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
        made += 4 * [("parquet", path.read_bytes())]
    return made


def mutated(made: list[tuple[str, bytes]], seed: int) -> tuple[str, bytes]:
    random = np.random.default_rng(seed)
    kind, content = made[random.integers(len(made))]
    changed = bytearray(content)
    for _ in range(random.integers(1, 5)):
        # Headers are where sizes stand.
        reach = len(changed) if random.random() < 0.5 else min(len(changed), 64)
        place = int(random.integers(max(reach, 1)))
        match random.integers(6):
            case 0:
                changed[place : place + 1] = bytes([random.integers(256)])
            case 1:
                changed[place : place + 4] = EXTREMES[random.integers(len(EXTREMES))]
            case 2:
                del changed[place : place + int(random.integers(1, 64))]
            case 3:
                changed[place:place] = changed[place : place + int(random.integers(1, 64))]
            case 4:
                del changed[int(random.integers(len(changed) + 1)) :]
            case 5:
                other = made[random.integers(len(made))][1]
                changed[place:] = other[place:]
    return kind, bytes(changed)


def load(kind: str, content: bytes, folder: Path) -> str:
    try:
        if kind == "image":
            open_image(content, "file")
        elif kind == "sound":
            read_channels(content, "file")
        else:
            path = folder / "rows.parquet"
            path.write_bytes(content)
            find_source(str(path), None).read()
    except DataError as error:
        return "refused" if "\n" not in str(error) else "a message of several lines"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]
    return "used"


def work(made: list[tuple[str, bytes]], seeds: range, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            pipe.send((seed, "begun"))
            kind, content = mutated(made, seed)
            pipe.send((seed, f"{kind}: {load(kind, content, Path(folder))}"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    arguments = parser.parse_args()
    made, counts, wrong = originals(), Counter(), {}
    context = multiprocessing.get_context("fork")
    next_seed, end, began = arguments.first, arguments.first + arguments.files, time.monotonic()
    while next_seed < end:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(made, range(next_seed, end), theirs))
        process.start()
        theirs.close()
        while True:
            fault = None
            try:
                if not ours.poll(SECONDS):
                    fault = "took too long"
                else:
                    seed, message = ours.recv()
                    next_seed = seed if message == "begun" else seed + 1
            except EOFError:
                process.join()
                if next_seed < end:
                    code = process.exitcode or 0
                    fault = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
                elif not process.exitcode:
                    break
            if fault is None and message == "begun":
                continue
            if fault is not None:
                process.kill()
                message = f"{mutated(made, next_seed)[0]}: {fault}"
                next_seed += 1
            counts[message] += 1
            if not message.endswith((": used", ": refused")):
                wrong[next_seed - 1] = message
            if next_seed % 500 == 0:
                left = (time.monotonic() - began) / (next_seed - arguments.first) * (end - next_seed)
                print(
                    f"\r{next_seed - arguments.first} of {arguments.files}, {left:.0f} s left ", end="", file=sys.stderr
                )
            if fault is not None:
                break
        process.join()
    print(file=sys.stderr)
    result = {
        "files": arguments.files,
        "first seed": arguments.first,
        "counts": dict(sorted(counts.items())),
        "went wrong": {str(seed): message for seed, message in wrong.items()},
        "seconds": round(time.monotonic() - began),
        "device": processor.describe("cpu"),
        "versions": runs.versions(),
    }
    print(json.dumps(result, indent=1))
    if arguments.output:
        files.write_json(arguments.output, result)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
