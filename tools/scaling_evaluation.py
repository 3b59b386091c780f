"""Times the measures of many embeddings on this machine and writes results/scaling/evaluation.json.

    python tools/scaling_evaluation.py [--samples 54000] [--classes 10] [--size 64]

The samples are normal around their class's direction. By the clock and in seconds of computing, with one thread.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cssoftmax import files, metrics, processor


def timed(name: str, function: Callable[[], Any]) -> dict[str, Any]:
    start, used = time.perf_counter(), time.process_time()
    value = function()
    found = {"what": name, "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["value"] = value._asdict() if hasattr(value, "_asdict") else value
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=54_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("results/scaling/evaluation.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    y = torch.randint(options.classes, (options.samples,), generator=g)
    centres = torch.randn(options.classes, options.size, generator=g)
    x = centres[y] + 1.5 * torch.randn(options.samples, options.size, generator=g)
    runs = [
        timed("leave_one_out", lambda: metrics.leave_one_out(x, y)),
        timed("knn_accuracy", lambda: metrics.knn_accuracy(x[:10_000], y[:10_000], x, y)),
        timed("verify_all_pairs", lambda: metrics.verify_all_pairs(x, y)),
        timed("approximate_leave_one_out", lambda: metrics.approximate_leave_one_out(x, y)),
    ]
    about = {"processor": processor.describe("cpu"), "torch": torch.__version__}
    shape = {"samples": options.samples, "classes": options.classes, "embedding_size": options.size}
    files.write_json(options.output, about | shape | {"command": "python tools/scaling_evaluation.py", "runs": runs})


if __name__ == "__main__":
    main()
