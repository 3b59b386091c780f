"""Time and memory of heads, and how near they come to what the processor can do.

Heads take turns in random order, so that what else the machine does meets all of them. A turn is two steps, of which
the second is timed, for a training repeats one step; times are medians. Memory is measured in a process of its own: the
highest resident size, less that before the step, less the gradients.
"""

import importlib.util
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cssoftmax import __version__, processor
from cssoftmax.bench.heads import BASELINE, Shape, heads, problem
from cssoftmax.engine import products

# Seconds of turns at one shape, at least three of them.
SECONDS = 10.0


@dataclass(frozen=True)
class Measurement:
    """Of one head at one shape.

    ``limit`` is the share of the fastest rate at which its three products can be made, ``memory`` the bytes beyond
    inputs, class weights and gradients, ``process`` all that the process (or the GPU) held at once.
    """

    head: str
    shape: Shape
    seconds: float
    turns: int
    limit: float
    memory: int | None = None
    process: int | None = None


def measure(
    shape: Shape,
    names: Sequence[str],
    device: str,
    dtype: torch.dtype,
    repeats: int | None,
    watch: Callable[[str], None],
) -> list[Measurement]:
    """Times of the heads at one shape, in turns; a head that needs more memory than there is, or fails, is left out."""
    x, w, y = problem(shape, device, dtype)
    available = heads(device)
    steps = {}
    # Nothing is trained here: the class weights are right not to move.
    warnings.filterwarnings("ignore", message=".*its class weights received gradients")
    for name in names:
        watch(f"{shape}: {name}")
        if _fits(name, shape, device):
            try:
                step = available[name](x, w, y)
                _time(step, x, w)
                steps[name] = step
            except (RuntimeError, ImportError) as error:
                watch(f"{shape}: {name} failed: {str(error).splitlines()[0]}")
    rate = matmul_rate(shape, device, dtype)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    start, turns = time.perf_counter(), 0
    while turns < (repeats or 3) or (repeats is None and time.perf_counter() - start < SECONDS and turns < 300):
        turns += 1
        watch(f"{shape}: turn {turns}")
        for name in random.Random(turns).sample(list(steps), len(steps)):
            # Pages that another head gave back can cost the next one as much again as its own work.
            _time(steps[name], x, w)
            seconds[name].append(_time(steps[name], x, w))
    work = 6 * shape.rows * shape.features * shape.classes
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [Measurement(name, shape, value, turns, work / value / rate) for name, value in medians.items()]


def _time(step: Callable[[], Tensor], x: Tensor, w: nn.Parameter) -> float:
    x.grad = w.grad = None
    wait(x)
    start = time.perf_counter()
    step().backward()  # type: ignore[no-untyped-call]
    wait(x)
    return time.perf_counter() - start


def wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def _fits(name: str, shape: Shape, device: str) -> bool:
    """Whether a head that holds the (N, C) matrix many times has the memory for it."""
    if device != "cpu" or not Path("/proc/meminfo").exists():
        return True
    copies = {"pytorch-metric-learning CosFace": 12, "pytorch-metric-learning ArcFace": 12, "CS-Softmax, eager": 12}
    copies |= {
        "CS-Softmax, fused": 8,
        "CS-Softmax, compiled": 2,
        "torch.compile(CS-Softmax)": 6,
        BASELINE: 4,
        "F.linear_cross_entropy": 4,
        "torch.compile(Linear + CE)": 4,
    }
    needed = 4 * (copies.get(name, 0) * shape.rows + 3 * shape.features) * shape.classes
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return needed < 0.8 * 1024 * int(lines["MemAvailable"].split()[0])


def matmul_rate(shape: Shape, device: str, dtype: torch.dtype) -> float:
    """Operations a second of the three products at these sizes (at most 8192 classes), by the fastest library."""
    classes = min(shape.classes, 8192)
    x, w, _ = problem(replace(shape, classes=classes), device, dtype)
    x, w = x.detach(), w.detach()  # type: ignore[assignment]
    g, grad_x, grad_w = x @ w.T, torch.empty_like(x), torch.empty_like(w)
    best = float("inf")
    turns = max(5, min(50, 2**34 // (shape.rows * shape.features * classes)))
    for library in products.SETTING if device == "cpu" else ("blas",):
        with products.using(library):
            for _ in range(turns):
                wait(x)
                start = time.perf_counter()
                torch.mm(x, w.T, out=g)
                torch.mm(g, w, out=grad_x)
                torch.mm(g.T, x, out=grad_w)
                wait(x)
                best = min(best, time.perf_counter() - start)
    return 6 * shape.rows * shape.features * classes / best


def memory(name: str, shape: Shape, device: str, dtype: torch.dtype) -> tuple[int, int] | None:
    """Bytes at the highest point of a step: beyond inputs, class weights and their gradients, and in all.

    None if the system does not tell, or the head does not fit.
    """
    if not _fits(name, shape, device):
        return None
    if device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return None
    sizes = (str(shape.rows), str(shape.features), str(shape.classes))
    run = subprocess.run(  # noqa: S603 - this program, and numbers
        [sys.executable, "-m", "cssoftmax.bench.measure", name, *sizes, device, str(dtype).removeprefix("torch.")],
        capture_output=True,
        text=True,
    )
    if run.returncode != 0:
        return None
    beyond, process = map(int, run.stdout.split())
    return beyond, process


def _memory_here(name: str, shape: Shape, device: str, dtype: torch.dtype) -> tuple[int, int]:
    small = replace(shape, classes=min(shape.classes, 2))
    x, w, y = problem(small, device, dtype)
    heads(device)[name](x, w, y)().backward()  # type: ignore[no-untyped-call]
    products.fastest()
    x, w, y = problem(shape, device, dtype)
    step = heads(device)[name](x, w, y)
    gradients = sum(value.numel() * value.element_size() for value in (x, w))
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step().backward()  # type: ignore[no-untyped-call]
        highest = torch.cuda.max_memory_allocated()
        return max(0, highest - before - gradients), highest
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest resident size so far
    step().backward()  # type: ignore[no-untyped-call]
    highest = _resident("VmHWM")
    return max(0, highest - before - gradients), highest


def _resident(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def describe(device: str, command: str) -> dict[str, Any]:
    """Where and by what the numbers were made."""
    names = ("pytorch_metric_learning", "liger_kernel", "cut_cross_entropy", "triton")
    peers = [name for name in names if importlib.util.find_spec(name)]
    return {
        "commands": [command],
        "processor": processor.describe(device),
        "matmul": products.LIBRARY or products.fastest(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cssoftmax": __version__,
            **{name: version(name.replace("_", "-")) for name in peers},
        },
    }


if __name__ == "__main__":
    name, *sizes, device, kind = sys.argv[1:]
    print(*_memory_here(name, Shape(*map(int, sizes)), device, getattr(torch, kind)))
