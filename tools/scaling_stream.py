"""Trains on data larger than the memory that it takes, and writes results/scaling/stream.json.

    python tools/scaling_stream.py [--images 40000] [--output results/scaling]

Streams parquet files of a tenth of the images, and of all: the most memory that the process ever had must be about the
same, libraries and all. Then of all once more, interrupted within the epoch and gone on with, to the same bits.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from cssoftmax import files, processor

SIDE, CLASSES, ROW_GROUP, BUFFER, BATCH = 192, 20, 100, 500, 100

JOB = """
import re, signal, sys
from pathlib import Path
import torch
from cssoftmax import jobs
from cssoftmax.training import Interrupted
from cssoftmax.watcher import Watcher
torch.set_num_threads(1)
source, run, how, at, batch, buffer = sys.argv[1:]
def on_step(progress):
    if how == "interrupted" and progress.step == int(at):
        signal.raise_signal(signal.SIGINT)
changes = {"network": "lenet", "width": 4, "embedding_size": 16, "epochs": 1, "batch_size": int(batch), "lr": 0.05}
watcher = Watcher(on_step=on_step)
source = runs.Source(source, image_size=32, shuffle_buffer=int(buffer))
try:
    if how == "resumed":
        jobs.resume(Path(run), watcher=watcher)
    else:
        jobs.train(source, Path(run), recipe_changes=changes, cpu=True, watcher=watcher)
except Interrupted:
    pass
# Of this program alone: what getrusage tells begins with the one that started it.
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def make(folder: Path, images: int) -> None:
    """Noise about a colour of the class, as bitmaps, whose files are as large as what they decode to."""
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 180, (CLASSES, 3))
    for part in range(11):
        name = "test" if part == 10 else "train"
        number = images // 50 if part == 10 else images // 10
        rows = []
        for _ in range(number):
            label = int(generator.integers(CLASSES))
            pixels = colours[label] + generator.integers(-40, 40, (SIDE, SIDE, 3))
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, "bmp")
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": f"colour {label}"})
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(
            table,
            folder / f"{name}-{part:02}.parquet",
            row_group_size=ROW_GROUP,
            compression="none",
            use_dictionary=False,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--output", type=Path, default=Path("results/scaling"))
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        for images, run, how in (
            (options.images // 10, "small", "streamed"),
            (options.images, "large", "streamed"),
            (options.images, "again", "interrupted"),
            (options.images, "again", "resumed"),
        ):
            data = Path(scratch, str(images))
            if not data.is_dir():
                data.mkdir()
                make(data, images)
            began = time.perf_counter()
            at = images // BATCH * 2 // 3
            command = [sys.executable, "-c", JOB, data, Path(scratch, run), how, at, BATCH, BUFFER]
            process = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
            found = {
                "how": how,
                "images": images,
                "data_bytes": images * 3 * SIDE**2,
                "peak_bytes": int(process.stdout) * 1024,
                "seconds": time.perf_counter() - began,
            }
            print(found, flush=True)
            runs.append(found)
        weights = [Path(scratch, run, "weights.safetensors").read_bytes() for run in ("large", "again")]
        summary = json.loads(Path(scratch, "large", "summary.json").read_text())
    found = {
        "processor": processor.describe("cpu"),
        "command": "python tools/scaling_stream.py",
        "shuffle_buffer": BUFFER,
        "row_group": ROW_GROUP,
        "side": SIDE,
        "trained_side": 32,
        "batch": BATCH,
        "accuracy": summary["measures"]["accuracy"],
        "same_bits": weights[0] == weights[1],
        "runs": runs,
    }
    print(found["same_bits"])
    files.write_json(options.output / "stream.json", found)


if __name__ == "__main__":
    main()
