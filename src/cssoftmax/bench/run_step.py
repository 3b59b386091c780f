"""`cssoftmax bench step`: a whole training step with CS-Softmax beside one with softmax."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cssoftmax import files
from cssoftmax.bench.measure import describe, wait
from cssoftmax.bench.show import markdown_rows
from cssoftmax.losses import CSSoftmaxLoss, SoftmaxLoss
from cssoftmax.networks import NETWORKS


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
            wait(images)
            start = time.perf_counter()
            optimizer.zero_grad()
            loss(backbone(images), labels).backward()
            optimizer.step()
            wait(images)
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
    lines = [f"{title}; {setting['processor']}; `{command}`", "", *markdown_rows(step_table(found))]
    files.write_bytes(output / "step.md", ("\n".join(lines) + "\n").encode())
    return found


def step_table(found: Sequence[Step]) -> Iterator[tuple[str, ...]]:
    yield ("loss", "ms a step", "x softmax", "turns")
    for one in found:
        yield (one.loss, f"{1000 * one.seconds:.1f}", f"{one.ratio:.3f}", str(one.turns))
