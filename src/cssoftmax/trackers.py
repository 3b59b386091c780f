"""What a training tells TensorBoard, Weights & Biases, MLflow and others, through accelerate."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor

from cssoftmax.data import Split

PROJECT = "cssoftmax"
PROJECTED = 2_000
"""Embeddings shown in TensorBoard's projector, at most."""
SPRITE = 8192
"""Pixels of the side of the one picture that holds all thumbnails, at most; TensorBoard's own limit."""


class TrackError(ValueError):
    """No such tracker, or it is not installed."""


def check(names: Sequence[str]) -> None:
    """TrackError if one is unknown or not installed."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise TrackError(f"track: {name!r} is not one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}")
        if name not in [str(tracker) for tracker in get_available_trackers()]:
            package = name.replace("_", "-")
            raise TrackError(f"track: {name} is not installed; `pip install {package}`")


def start(accelerator: Accelerator, run: Path, settings: Mapping[str, Any]) -> None:
    """Begins to track a run, under the name of its folder; what keeps files keeps them in the run's folder."""
    flat = {
        name: value if isinstance(value, int | float | str) else str(value)
        for name, value in settings.items()
        if value is not None
    }
    name = run.resolve().name
    accelerator.init_trackers(
        PROJECT, config=flat, init_kwargs={"wandb": {"name": name, "dir": str(run)}, "mlflow": {"run_name": name}}
    )


def project(accelerator: Accelerator, split: Split, embeddings: Tensor, classes: Sequence[str]) -> None:
    """Shows the first embeddings of a split in TensorBoard's projector, with their classes, and images themselves.

    Args:
        accelerator: tracks with TensorBoard, or this does nothing.
        split: of N samples.
        embeddings: (N, D).
        classes: names.
    """
    writer = next((t.writer for t in accelerator.trackers if t.name == "tensorboard"), None)
    if writer is None:
        return
    inputs, target = split.inputs[:PROJECTED], split.target[:PROJECTED]
    images = None
    if inputs.dtype == torch.uint8:
        most = (SPRITE // max(inputs.shape[2:])) ** 2
        inputs, target = inputs[:most], target[:most]
        images = inputs.float().expand(-1, 3, -1, -1) / 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own use of NumPy
        writer.add_embedding(
            embeddings[: len(target)], [classes[label] for label in target.tolist()], images, tag="embeddings"
        )
