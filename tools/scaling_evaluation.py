"""Times the measures of many embeddings on this machine and writes results/scaling/evaluation.json.

    python tools/scaling_evaluation.py                # 54,000 samples of 10 classes: a minute
    python tools/scaling_evaluation.py --samples 1000000 --classes 100000       # more than an hour

The samples are normal around their class's direction. Each measure runs in a process of its own, with one thread; what
was measured of other samples stays in the file.
"""

import argparse
import json
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cssoftmax import files, metrics, processor

MEASURES = {
    "leave_one_out": metrics.leave_one_out,
    "knn_accuracy": lambda x, y: metrics.knn_accuracy(x[:10_000], y[:10_000], x, y),
    "verify_all_pairs": metrics.verify_all_pairs,
    "approximate_leave_one_out": metrics.approximate_leave_one_out,
}


def samples(number: int, classes: int, size: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (number,), generator=g)
    centres = torch.randn(classes, size, generator=g)
    return centres[y] + 1.5 * torch.randn(number, size, generator=g), y


def timed(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    x, y = samples(*shape)
    start, used = time.perf_counter(), time.process_time()
    value = MEASURES[name](x, y)
    found = {"what": name, "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["value"] = value._asdict() if hasattr(value, "_asdict") else value
    found |= {"processor": processor.describe("cpu"), "torch": torch.__version__}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=54_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--measures", nargs="+", default=list(MEASURES), choices=MEASURES, metavar="MEASURE")
    parser.add_argument("--output", type=Path, default=Path("results/scaling/evaluation.json"))
    options = parser.parse_args()
    shape = (options.samples, options.classes, options.size)
    about = dict(zip(("samples", "classes", "embedding_size"), shape, strict=True))
    words = [
        f"--{name} {value}"
        for name, value in vars(options).items()
        if name in ("samples", "classes", "size") and value != parser.get_default(name)
    ]
    about["command"] = " ".join(["python tools/scaling_evaluation.py", *words])
    for name in options.measures:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as process:
            run = process.submit(timed, name, shape).result()
        print(run, flush=True)
        cases = json.loads(options.output.read_text()) if options.output.exists() else []
        case = next((case for case in cases if about.items() <= case.items()), None)
        if case is None:
            case = about | {"runs": []}
            cases.append(case)
        case["runs"] = [old for old in case["runs"] if old["what"] != name] + [run]
        case["runs"].sort(key=lambda run: list(MEASURES).index(run["what"]))
        files.write_json(options.output, cases)


if __name__ == "__main__":
    main()
