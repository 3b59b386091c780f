"""Millions of loss steps at random settings, and whether a NaN came out of finite input.

    python tools/soak_loss.py --steps 10000000 --output results/faults/soak.json
    python tools/soak_loss.py --steps 10000000 --output results/faults/soak.json --resume
    python tools/soak_loss.py --again 4711

A step is one forward and one backward call of a loss module on a batch of its own, as a training step makes it; there
is no network, and most batches have a handful of rows. A hundred steps at a time share their settings: loss, margin,
scale, weight update factor, engine, precision, reduction, sizes, and class weights. All of them, and every batch, are
drawn from a seed, the number of the hundred: what went wrong is told by that number, and `--again` makes it anew.

Embeddings and class weights are of any finite length that float32 can square, and among them are zeros, copies and
opposites of class weights, and rows that are all alike. Wrong is a NaN anywhere, and an infinity in a loss or in a
float32 gradient; that a gradient has no room in float16, which loss scaling is for, is counted apart.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import cssoftmax
from cssoftmax import CenterLoss, files, processor, runs
from cssoftmax.losses import LOSSES, SimilarityLoss

STEPS = 100
"""That share their settings."""
HALF = (None, torch.bfloat16, torch.float16)
ENGINES = ("auto", "eager", "fused", "compiled", "chunked")
KINDS = ("as drawn", "zero", "own class", "opposite", "all alike", "tiny", "huge", "one axis")
UNNORMALIZED = ("softmax", "sphereface", "center")
"""Losses whose logits grow with the embeddings' lengths: theirs stay below 1e3, others' below 1e18."""


def code() -> str:
    """A digest of the code that the steps go through."""
    package = Path(cssoftmax.__file__).parent
    names = ("losses", "similarity.py", "functional.py", "schedule.py", "engine")
    found = [path for name in names for path in sorted([package / name, *(package / name).rglob("*.[pc]*")])]
    return hashlib.sha256(b"".join(path.read_bytes() for path in found if path.suffix in (".py", ".c"))).hexdigest()[
        :12
    ]


class Draw:
    """Numbers from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def below(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self.generator))

    def chance(self, share: float) -> bool:
        return self.number(0, 1) < share

    def number(self, least: float, most: float) -> float:
        return least + (most - least) * float(torch.rand((), generator=self.generator))

    def log_number(self, least: float, most: float) -> float:
        return math.exp(self.number(math.log(least), math.log(most)))

    def one_of(self, *values: Any) -> Any:
        return values[self.below(len(values))]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator)

    def labels(self, classes: int, *shape: int) -> Tensor:
        return torch.randint(classes, shape, generator=self.generator)


@dataclass
class Setting:
    """What a hundred steps share, and their batches: embeddings (STEPS, N, D), labels (STEPS, N)."""

    name: str
    loss: nn.Module
    half: torch.dtype | None
    settings: dict[str, Any]
    embeddings: Tensor
    target: Tensor


def margin_of(draw: Draw, most: float, classes: int, least: float = 0.0) -> float | Tensor:
    """One a class, or one for all, of a few: each of those is a setting that a similarity is translated to C for."""
    if draw.chance(0.5):
        return least + (most - least) * draw.uniform(classes)
    return least + (most - least) * float(draw.one_of(0.0, 0.1, 0.5, 1.0))


def settings_of(draw: Draw, name: str, classes: int) -> dict[str, Any]:
    """The loss's own factors."""
    angle = math.nextafter(math.pi / 2, 0) - 1e-7
    scale = draw.one_of(None, draw.log_number(1e-3, 1e4), draw.one_of(64.0, 256.0, 1e4))
    match name:
        case "cs-softmax":
            u = draw.one_of(0.0, 1e-3, 0.25, 0.5, 0.9, 1.0)
            own = {"margin": margin_of(draw, 0.999, classes), "weight_update": u, "detach_update": draw.chance(0.5)}
        case "circle":
            own = {"relaxation": draw.one_of(1e-3, 0.25, 0.5)}
        case "so-softmax":
            own = {"margin": margin_of(draw, 0.999, classes)}
        case "cosface":
            own = {"margin": margin_of(draw, 1.999, classes)}
            scale = scale or 64.0  # from margin 1 on there is no default
        case "arcface":
            own = {
                "margin": margin_of(draw, angle, classes),
                "past_pi": draw.one_of("linear", "easy_margin", "none"),
            }
        case "subcenter-arcface":
            own = {"margin": margin_of(draw, angle, classes), "sub_centers": 1 + draw.below(3)}
        case "sphereface":
            own = {"margin": margin_of(draw, 6.0, classes, 1.0), "annealing": draw.one_of(0.0, 5.0, 1000.0)}
        case "curricularface":
            own = {"margin": margin_of(draw, angle, classes), "momentum": draw.one_of(0.0, 0.01, 1.0)}
        case "magface":
            lower = draw.one_of(1e-3, 10.0)
            own = {
                "margin": margin_of(draw, angle, classes),
                "upper_margin": margin_of(draw, angle, classes),
                "lower_norm": lower,
                "upper_norm": lower * draw.one_of(1.01, 11.0),
                "norm_weight": draw.one_of(0.0, 35.0),
            }
        case "adaface":
            scale = scale or 64.0
            own = {
                "margin": margin_of(draw, angle, classes),
                "concentration": draw.one_of(0.0, 0.333, 10.0),
                "momentum": draw.one_of(0.0, 0.01, 1.0),
            }
        case "elasticface":
            scale = scale or 64.0
            own = {
                "kind": (kind := draw.one_of("arc", "cos")),
                "margin": margin_of(draw, angle if kind == "arc" else 1.999, classes),
                "std": draw.one_of(0.0, 0.0125, 1.0),
                "generator": draw.generator,
            }
        case "adacos":
            own = {"dynamic": draw.chance(0.7)}
        case "center":
            return {"alpha": draw.number(0, 1)}
        case _:
            own = {}
    return own if name in ("softmax", "adacos") or scale is None else own | {"scale": scale}


def vectors(draw: Draw, shape: tuple[int, ...], like: Tensor | None, most: float) -> Tensor:
    """(..., D), each row of one of the kinds; ``like`` (..., D) has a class weight for each."""
    found = draw.normal(*shape)
    kinds = draw.labels(len(KINDS), *shape[:-1])[..., None]
    length = 10 ** (draw.uniform(*shape[:-1], 1) * 2 * math.log10(most) - math.log10(most))
    found = torch.where(kinds == KINDS.index("zero"), 0.0, found)
    if like is not None:
        found = torch.where(kinds == KINDS.index("own class"), like, found)
        found = torch.where(kinds == KINDS.index("opposite"), -like, found)
    found = torch.where(kinds == KINDS.index("all alike"), 1.0, found)
    found = torch.where(kinds == KINDS.index("tiny"), found * 1e-8, found)
    found = torch.where(kinds == KINDS.index("huge"), found * length.clamp(min=1), found)
    axis = torch.zeros(shape[-1])
    axis[0] = 1
    return torch.where(kinds == KINDS.index("one axis"), axis * length, found)


def setting(seed: int) -> Setting:
    draw = Draw(seed)
    name = draw.one_of(*LOSSES, "center")
    large = draw.chance(0.02)
    rows, size, classes = (1 + draw.below(most) for most in ((70, 40, 300) if large else (6, 8, 9)))
    half = draw.one_of(*HALF)
    own = settings_of(draw, name, classes)
    common: dict[str, Any] = {"reduction": draw.one_of("mean", "sum", "none")}
    loss: nn.Module
    if name == "center":
        loss = CenterLoss(size, classes, **own, **common)
        like = None
    else:
        common["implementation"] = "auto" if own.get("sub_centers", 1) > 1 else draw.one_of(*ENGINES)
        common["label_smoothing"] = draw.one_of(0.0, 0.0, 0.1, 1.0)
        if draw.chance(0.2):
            common["weight"] = draw.uniform(classes) + 1e-3
        loss = LOSSES[name](size, classes, **own, **common)
        assert isinstance(loss, SimilarityLoss)
        most = 1e3 if name in UNNORMALIZED else 1e18
        loss.weight.data = vectors(draw, tuple(loss.weight.shape), None, 1e3 if name == "softmax" else most)
        like = loss.weight.detach()
    target = draw.labels(classes, STEPS, rows)
    if like is not None:
        like = like[:: len(like) // classes][target]
    largest = 1e3 if name in UNNORMALIZED else 1e18
    if half == torch.float16:
        largest = min(largest, 1e3)
    embeddings = vectors(draw, (STEPS, rows, size), like, largest)
    if half is not None:
        embeddings = embeddings.clamp(-6e4, 6e4).to(half) if half == torch.float16 else embeddings.to(half)
    ignored = draw.uniform(STEPS, rows) < draw.one_of(0.0, 0.3)
    ignored[:, 0] = False  # the mean over no row is NaN, as in PyTorch
    described = {key: value for key, value in (own | common).items() if key != "generator"}
    return Setting(name, loss, half, described, embeddings, target.masked_fill(ignored, -100))


def steps(made: Setting) -> Iterator[tuple[Tensor, ...]]:
    """Each step's loss and gradients."""
    parameters = list(made.loss.parameters())
    for embeddings, target in zip(made.embeddings, made.target, strict=True):
        x = embeddings.requires_grad_()
        if made.half is None:
            value = made.loss(x, target)
        else:
            with torch.autocast("cpu", made.half):
                value = made.loss(x, target)
        value = value.sum() if value.ndim else value
        yield value.detach(), *torch.autograd.grad(value, (x, *parameters), allow_unused=True)


def faults(made: Setting) -> Counter[str]:
    """What is not finite, by what it is; the hundred is gone through once more if anything is."""
    found: Counter[str] = Counter()
    sums: list[Tensor] = []
    for outputs in steps(made):
        sums += [output.sum(dtype=torch.float32) for output in outputs if output is not None]
    if torch.stack(sums).isfinite().all():
        return found
    found["looked at again"] += 1
    return found


def looked_at(seed: int) -> tuple[Counter[str], list[str]]:
    """The same steps once more, number by number."""
    found: Counter[str] = Counter()
    told = []
    made = setting(seed)
    for number, outputs in enumerate(steps(made)):
        for k, output in enumerate(outputs):
            if output is None or output.isfinite().all():
                continue
            what = "loss" if k == 0 else "gradient of embeddings" if k == 1 else "gradient of class weights"
            kind = "NaN" if output.isnan().any() else "infinite"
            if kind == "infinite" and output.dtype == torch.float16:
                found["no room in float16"] += 1
            else:
                found["wrong"] += 1
                told.append(f"step {number}: {what} ({output.dtype}): {kind}")
    return found, told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000_000)
    parser.add_argument("--resume", action="store_true", help="go on from what --output holds")
    parser.add_argument("--again", type=int, metavar="SEED", help="one hundred steps, with all that is wrong in them")
    parser.add_argument("--output", type=Path, help="JSON file for the counts, written every half minute")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.again is not None:
        made = setting(arguments.again)
        print(made.name, made.half, tuple(made.embeddings.shape), made.settings)
        found, told = looked_at(arguments.again)
        print("\n".join(told), dict(found))
        return int(bool(told))
    counts: Counter[str] = Counter()
    by_loss: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    seed, before, made_by = 0, 0.0, Counter[str]()
    if arguments.resume:
        saved = json.loads(arguments.output.read_text())
        seed, before = saved["next seed"], saved["seconds"]
        counts, by_loss, wrong = Counter(saved["counts"]), Counter(saved["steps by loss"]), saved["wrong"]
        made_by = Counter(saved["steps by code"])
    for faulty in list(wrong):  # gone through once more: the program may have been mended since
        found, told = looked_at(int(faulty))
        counts["wrong"] -= len(told)
        if not told:
            counts["mended: hundreds in which something was wrong"] += 1
            del wrong[faulty]
    digest = code()
    began = told_at = time.monotonic()

    def result() -> dict[str, Any]:
        return {
            "steps": seed * STEPS,
            "next seed": seed,
            "counts": dict(sorted(counts.items())),
            "steps by loss": dict(sorted(by_loss.items())),
            "steps by code": dict(made_by),
            "wrong": wrong,
            "seconds": round(before + time.monotonic() - began),
            "device": processor.describe("cpu"),
            "versions": runs.versions(),
        }

    while seed * STEPS < arguments.steps:
        made = setting(seed)
        by_loss[made.name] += STEPS
        made_by[digest] += STEPS
        counts["float32" if made.half is None else str(made.half).removeprefix("torch.")] += STEPS
        if faults(made):
            found, told = looked_at(seed)
            counts.update(found)
            if told:
                wrong[str(seed)] = f"{made.name}, {len(told)} of them, such as {told[0]}"
        seed += 1
        if time.monotonic() - told_at > 30 or seed * STEPS >= arguments.steps:
            told_at = time.monotonic()
            print(f"\r{seed * STEPS:,} steps, {len(wrong)} hundreds with a fault", end="", file=sys.stderr, flush=True)
            if arguments.output:
                files.write_json(arguments.output, result())
    print(file=sys.stderr)
    print(json.dumps(result(), indent=1))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
