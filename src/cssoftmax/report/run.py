"""A finished run, read back from its folder: JSON and safetensors only."""

import base64
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cssoftmax.files import read_tensors


class RunError(ValueError):
    """A run's folder cannot be read; one line that names the file, what is wrong and the remedy."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a training left in its folder. N samples of the evaluated split, D embedding size, C classes.

    Attributes:
        path: the folder.
        config: ``config.json``, all that is needed to repeat the run.
        history: ``metrics.jsonl``, one dict an epoch: losses in nats, accuracies as fractions, seconds.
        summary: ``summary.json``, with the measures under "measures".
        embeddings: (N, D) float32.
        target: (N,) int64.
        logits: (N, C) float32, without margin.
        class_weights: (C, D) float32.
        samples: of some rows, the picture or recording as a data URI; empty where the run kept none.
    """

    path: Path
    config: dict[str, Any]
    history: list[dict[str, float]]
    summary: dict[str, Any]
    embeddings: Tensor
    target: Tensor
    logits: Tensor
    class_weights: Tensor
    samples: dict[int, str] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """The C class names."""
        return [str(name) for name in self.config["classes"]]


def load_run(folder: Path) -> Run:
    """Reads a run's folder.

    Args:
        folder: one that ``cssoftmax train`` wrote: config.json, metrics.jsonl, summary.json, evaluation.safetensors,
            and samples.safetensors, which may be missing.

    Raises:
        RunError: a file is missing or damaged, or the files do not fit together.

    Example:
        >>> run = load_run(Path("runs/digits-cs-softmax-0"))  # doctest: +SKIP
        >>> run.summary["measures"]["accuracy"]  # doctest: +SKIP
        0.9889
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; name one that `cssoftmax train` wrote")
    unfinished = f"`cssoftmax train --resume {folder}` goes on with a training that did not end"
    again = f"`cssoftmax evaluate {folder}` writes it anew"
    config = _object(
        folder / "config.json", {"source": (str, dict), "loss": dict, "recipe": dict, "classes": list}, "train anew"
    )
    history = _history(folder / "metrics.jsonl", "restore it, or train anew")
    summary_missing = again if (folder / "weights.safetensors").exists() else unfinished
    summary = _object(folder / "summary.json", {"measures": dict}, summary_missing)
    tensors = _tensors(folder / "evaluation.safetensors", len(config["classes"]), again)
    samples = _samples(folder / "samples.safetensors", len(tensors["target"]), again)
    return Run(folder, config, history, summary, **tensors, samples=samples)


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: its folder's name, with as many parents before it as tell the runs apart.

    Runs of the same folder, given twice, are numbered.
    """
    parts = [run.path.resolve().parts[-8:] for run in runs]
    for length in range(1, 9):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]


def _text(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path}: missing; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({_line(error)}); {remedy}") from error


def _json(text: str, where: str, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RunError(f"{where}: damaged, not JSON ({_line(error)}); {remedy}") from error
    if not isinstance(value, dict):
        raise RunError(f"{where}: damaged, not a JSON object; {remedy}")
    return value


def _object(path: Path, needed: dict[str, type | tuple[type, ...]], remedy: str) -> dict[str, Any]:
    value = _json(_text(path, remedy), str(path), remedy)
    for key, kind in needed.items():
        if not isinstance(value.get(key), kind):
            raise RunError(f"{path}: {key} is missing or not what it should be; {remedy}")
    return value


def _history(path: Path, remedy: str) -> list[dict[str, float]]:
    lines = [(number, line) for number, line in enumerate(_text(path, remedy).splitlines(), 1) if line.strip()]
    history = [_json(line, f"{path}, line {number}", remedy) for number, line in lines]
    if not history:
        raise RunError(f"{path}: no epoch in it; {remedy}")
    for (number, _), epoch in zip(lines, history, strict=True):
        if "epoch" not in epoch or any(not isinstance(value, int | float | None) for value in epoch.values()):
            raise RunError(f"{path}, line {number}: damaged, not an epoch's numbers; {remedy}")
    return history


def _tensors(path: Path, classes: int, remedy: str) -> dict[str, Tensor]:
    if not path.exists():
        raise RunError(f"{path}: missing; {remedy}")
    try:
        _, tensors = read_tensors(path)
    except ValueError as error:
        raise RunError(f"{error}; {remedy}") from error
    dimensions = {"embeddings": 2, "target": 1, "logits": 2, "class_weights": 2}
    for name, count in dimensions.items():
        if name not in tensors or tensors[name].dim() != count:
            raise RunError(f"{path}: {name} is missing or not {count}-dimensional; {remedy}")
    embeddings, target, logits, weights = (tensors[name] for name in dimensions)
    samples, size = embeddings.shape
    if not samples or not size:
        raise RunError(f"{path}: no embeddings in it; {remedy}")
    if target.shape != (samples,) or logits.shape != (samples, classes) or weights.shape != (classes, size):
        shapes = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in dimensions)
        raise RunError(f"{path}: the shapes do not fit the {classes} classes of config.json ({shapes}); {remedy}")
    if target.is_floating_point() or not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise RunError(f"{path}: target is not in 0..{classes - 1}; {remedy}")
    for name in ("embeddings", "logits", "class_weights"):
        if not torch.isfinite(tensors[name]).all():
            raise RunError(f"{path}: {name} holds numbers that are not finite; train anew with a lower --lr")
    return {
        "embeddings": embeddings.float(),
        "target": target.long(),
        "logits": logits.float(),
        "class_weights": weights.float(),
    }


def _samples(path: Path, count: int, remedy: str) -> dict[int, str]:
    if not path.exists():
        return {}
    try:
        metadata, tensors = read_tensors(path)
        kind, (rows, ends, content) = metadata["type"], (tensors[name] for name in ("rows", "ends", "bytes"))
    except KeyError as error:
        raise RunError(f"{path}: damaged, no {error.args[0]} in it; {remedy}") from error
    except ValueError as error:
        raise RunError(f"{error}; {remedy}") from error
    bounds = [0, *ends.tolist()]
    sound = bounds == sorted(bounds) and bounds[-1] == len(content) and len(rows) == len(ends)
    if kind not in ("image/webp", "audio/mpeg") or not sound or not all(0 <= row < count for row in rows.tolist()):
        raise RunError(f"{path}: damaged, its parts do not fit together; {remedy}")
    encoded = content.numpy().tobytes()
    files = (encoded[start:end] for start, end in itertools.pairwise(bounds))
    return {
        row: f"data:{kind};base64,{base64.b64encode(file).decode()}"
        for row, file in zip(rows.tolist(), files, strict=True)
    }


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
