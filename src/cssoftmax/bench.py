"""What a head costs: time and memory of a loss's forward and backward pass, beside plain softmax and other libraries.

Heads take turns in random order, so that what else the machine does meets all of them; times are medians. Memory is
measured in a process of its own: the highest resident size, less that before the step, less the gradients.
"""

import importlib.util
import json
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cssoftmax import __version__, files, processor
from cssoftmax.engine import ENGINES, products, triton
from cssoftmax.losses import CosFaceLoss, CSSoftmaxLoss, SimilarityLoss, SoftmaxLoss
from cssoftmax.networks import NETWORKS

BASELINE = "Linear + CE"
# Seconds of turns at one shape, at least three of them.
SECONDS = 10.0

Head = Callable[[Tensor, nn.Parameter, Tensor], Callable[[], Tensor]]


@dataclass(frozen=True)
class Shape:
    """N rows of D features, C classes."""

    rows: int
    features: int
    classes: int

    def __str__(self) -> str:
        return f"N = {self.rows}, D = {self.features}, C = {self.classes:,}"


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


def heads(device: str) -> dict[str, Head]:
    """Ours and all that is installed beside; each builds its loss from embeddings, class weights and labels."""
    found: dict[str, Head] = {BASELINE: _linear}
    if hasattr(F, "linear_cross_entropy"):
        found["F.linear_cross_entropy"] = _linear_cross_entropy
    found["torch.compile(Linear + CE)"] = _compiled
    if importlib.util.find_spec("pytorch_metric_learning"):
        found["pytorch-metric-learning CosFace"] = _metric_learning("CosFaceLoss")
        found["pytorch-metric-learning ArcFace"] = _metric_learning("ArcFaceLoss")
    if device.startswith("cuda"):
        if importlib.util.find_spec("liger_kernel"):
            found["liger-kernel"] = _liger
        if importlib.util.find_spec("cut_cross_entropy"):
            found["cut-cross-entropy"] = _cut_cross_entropy
    for engine in ENGINES:
        if engine != "triton" or (triton.INSTALLED and device.startswith("cuda")):
            found[f"CS-Softmax, {engine}"] = _ours(CSSoftmaxLoss, implementation=engine)
    found["CS-Softmax"] = _ours(CSSoftmaxLoss)
    found["CS-Softmax, bf16 products"] = _ours(CSSoftmaxLoss, precision="bf16")
    found["torch.compile(CS-Softmax)"] = _compiled_ours
    found["CosFace"] = _ours(CosFaceLoss)
    found["Softmax"] = _ours(SoftmaxLoss)
    return found


def _linear(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    bias = nn.Parameter(w.new_zeros(len(w)))
    return lambda: F.cross_entropy(F.linear(x, w, bias), y)


def _linear_cross_entropy(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    bias = nn.Parameter(w.new_zeros(len(w)))
    function: Any = F.linear_cross_entropy
    return lambda: function(x, w, y, linear_bias=bias)


def _compiled(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    bias = nn.Parameter(w.new_zeros(len(w)))
    function = torch.compile(lambda x, w, bias, y: F.cross_entropy(F.linear(x, w, bias), y), dynamic=False)
    return lambda: function(x, w, bias, y)


def _compiled_ours(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    step = torch.compile(_ours(CSSoftmaxLoss)(x, w, y), dynamic=False)
    return lambda: step()


def _metric_learning(name: str) -> Head:
    def build(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
        from pytorch_metric_learning import losses

        loss = getattr(losses, name)(len(w), w.shape[1]).to(x.device)
        loss.W = nn.Parameter(w.detach().T.contiguous())

        def step() -> Tensor:
            loss.W.grad = None
            value: Tensor = loss(x, y)
            return value

        return step

    return build


def _liger(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda: loss(w, x, y)


def _cut_cross_entropy(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    from cut_cross_entropy import linear_cross_entropy

    return lambda: linear_cross_entropy(x, w, y)


def _ours(family: type[SimilarityLoss], **options: Any) -> Head:
    def build(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
        linear = nn.Linear(w.shape[1], len(w), device="meta")
        linear.weight, linear.bias = w, nn.Parameter(w.new_zeros(len(w)))
        loss = family.from_linear(linear, **options)
        return lambda: loss(x, y)

    return build


def problem(shape: Shape, device: str, dtype: torch.dtype) -> tuple[Tensor, nn.Parameter, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": device}
    x = torch.randn(shape.rows, shape.features, dtype=dtype, **options).requires_grad_()
    w = nn.Parameter(torch.randn(shape.classes, shape.features, dtype=dtype, **options) * shape.features**-0.5)
    return x, w, torch.randint(shape.classes, (shape.rows,), **options)


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
        # Each leaves the caches as it does: nobody always comes after the same one.
        for name in random.Random(turns).sample(list(steps), len(steps)):
            seconds[name].append(_time(steps[name], x, w))
    work = 6 * shape.rows * shape.features * shape.classes
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [Measurement(name, shape, value, turns, work / value / rate) for name, value in medians.items()]


def _time(step: Callable[[], Tensor], x: Tensor, w: nn.Parameter) -> float:
    x.grad = w.grad = None
    _wait(x)
    start = time.perf_counter()
    step().backward()  # type: ignore[no-untyped-call]
    _wait(x)
    return time.perf_counter() - start


def _wait(x: Tensor) -> None:
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
                _wait(x)
                start = time.perf_counter()
                torch.mm(x, w.T, out=g)
                torch.mm(g, w, out=grad_x)
                torch.mm(g.T, x, out=grad_w)
                _wait(x)
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
        [sys.executable, "-m", "cssoftmax.bench", name, *sizes, device, str(dtype).removeprefix("torch.")],
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


@dataclass(frozen=True)
class Step:
    """A whole training step of a network with one loss; ``ratio`` is the median, over turns, to softmax's."""

    loss: str
    seconds: float
    ratio: float
    turns: int


def step(
    network: str,
    classes: int,
    batch_size: int,
    output: Path,
    *,
    image_size: int = 32,
    turns: int = 20,
    device: str = "cpu",
    command: str = "",
    watch: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> list[Step]:
    """Times a training step (forward, loss, backward, SGD) of a network on images with softmax and with CS-Softmax.

    Both take turns, each first in every other one. Writes step.json and step.md.
    """
    if network not in NETWORKS:
        raise ValueError(f"network: {network!r} is not one of {', '.join(NETWORKS)}")
    torch.manual_seed(0)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    labels = torch.randint(classes, (batch_size,), device=device)
    size = 512
    runs: dict[str, Callable[[], float]] = {}
    for family in (SoftmaxLoss, CSSoftmaxLoss):
        torch.manual_seed(0)
        backbone, loss = NETWORKS[network](3, size).to(device), family(size, classes).to(device)
        optimizer = torch.optim.SGD([*backbone.parameters(), *loss.parameters()], lr=0.01, momentum=0.9)

        def once(backbone: Any = backbone, loss: Any = loss, optimizer: Any = optimizer) -> float:
            _wait(images)
            start = time.perf_counter()
            optimizer.zero_grad()
            loss(backbone(images), labels).backward()
            optimizer.step()
            _wait(images)
            return time.perf_counter() - start

        runs["softmax" if family is SoftmaxLoss else "cs-softmax"] = once
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, turns):
        watch(turn + 1, turns + 1, f"{network}: turn {turn + 1}" if turn >= 0 else f"{network}: warming up")
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            value = runs[name]()
            if turn >= 0:
                seconds[name].append(value)
    watch(turns + 1, turns + 1, "")
    base = seconds["softmax"]
    found = [
        Step(name, statistics.median(own), statistics.median(a / b for a, b in zip(own, base, strict=True)), turns)
        for name, own in seconds.items()
    ]
    setting = describe(device, command)
    title = f"{network}, {batch_size} images of {image_size} x {image_size}, D = {size}, C = {classes:,}"
    files.write_json(output / "step.json", setting | {"title": title, "steps": [asdict(one) for one in found]})
    lines = [f"{title}; {setting['processor']}; `{command}`", "", *_rows(step_table(found))]
    files.write_bytes(output / "step.md", ("\n".join(lines) + "\n").encode())
    return found


def step_table(found: Sequence[Step]) -> Iterator[tuple[str, ...]]:
    yield ("loss", "ms a step", "x softmax", "turns")
    for one in found:
        yield (one.loss, f"{1000 * one.seconds:.1f}", f"{one.ratio:.3f}", str(one.turns))


def table(measurements: Sequence[Measurement]) -> Iterator[tuple[str, ...]]:
    """A header and a row for each measurement: time, over the baseline's, share of the matmul limit, memory."""
    yield ("N", "D", "C", "head", "ms", "x Linear + CE", "of matmul rate", "extra MiB", "process MiB")
    base = {m.shape: m.seconds for m in measurements if m.head == BASELINE}
    for m in measurements:
        ratio = f"{m.seconds / base[m.shape]:.2f}" if m.shape in base else "-"
        extra, process = ("-" if size is None else f"{size / 2**20:,.0f}" for size in (m.memory, m.process))
        sizes = (f"{m.shape.rows:,}", f"{m.shape.features:,}", f"{m.shape.classes:,}")
        yield (*sizes, m.head, f"{1000 * m.seconds:.2f}", ratio, f"{m.limit:.0%}", extra, process)


def markdown(measurements: Sequence[Measurement], setting: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in setting["versions"].items())
    lines = [
        f"{setting['processor']}; {versions}; float32 products by {setting['matmul']}.",
        *(f"`{command}`" for command in setting["commands"]),
        "",
        *_rows(table(measurements)),
    ]
    return "\n".join(lines) + "\n"


def _rows(table: Iterator[tuple[str, ...]]) -> list[str]:
    """A Markdown table, its first row the header."""
    header, *rows = ("| " + " | ".join(row) + " |" for row in table)
    return [header, "|" + "---|" * (header.count("|") - 1), *rows]


def plot(measurements: Sequence[Measurement], title: str) -> bytes:
    """A PNG picture of time and extra memory against C, a line for each head."""
    from matplotlib.figure import Figure

    from cssoftmax.report.figures import PALETTE, png, styled

    @styled
    def draw() -> Figure:
        figure = Figure(figsize=(11, 5))
        left, right = figure.subplots(1, 2)
        for number, head in enumerate(dict.fromkeys(m.head for m in measurements)):
            own = sorted((m for m in measurements if m.head == head), key=lambda m: m.shape.classes)
            style: dict[str, Any] = {
                "color": PALETTE[number % len(PALETTE)],
                "marker": "osD^v"[number % 5],
                "markersize": 4,
            }
            left.plot([m.shape.classes for m in own], [1000 * m.seconds for m in own], label=head, **style)
            known = [m for m in own if m.memory is not None]
            right.plot([m.shape.classes for m in known], [(m.memory or 0) / 2**20 for m in known], **style)
        for axes, name in ((left, "Forward and backward, ms"), (right, "Memory beyond inputs and gradients, MiB")):
            axes.set(title=name, xlabel="classes C", xscale="log")
        left.set_yscale("log")
        right.set_yscale("symlog", linthresh=1)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        return figure

    return png(draw())


if __name__ == "__main__":
    name, *sizes, device, kind = sys.argv[1:]
    print(*_memory_here(name, Shape(*map(int, sizes)), device, getattr(torch, kind)))
