"""A training on disk: how far it is, and the modules and optimizers that it goes on with, whole, by name."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cssoftmax.files import read_tensors, write_tensors
from cssoftmax.processes import part_like, whole

Parts = tuple[dict[str, nn.Module], dict[str, torch.optim.Optimizer]]


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands, and what it summed up in the epoch so far.

    Of the ``told`` samples, whose class was looked for, ``correct`` were told right. ``left_out`` counts the steps of
    the whole training that were left out for infinite or NaN numbers in them; ``first_loss`` is that of its first step.
    """

    step: int
    steps: int
    steps_per_epoch: int
    loss_sum: float = 0.0
    correct: float = 0.0
    samples: int = 0
    told: int = 0
    seconds: float = 0.0
    left_out: int = 0
    first_loss: float = 0.0

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch


def save_checkpoint(path: Path, parts: Parts, accelerator: Accelerator, progress: Progress) -> None:
    """All processes call it, for each may have a part; the main one writes the whole, and all wait for it."""
    scaler = accelerator.scaler
    modules, optimizers = parts
    tensors: dict[str, Tensor] = {}
    for part, module in modules.items():
        tensors |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
    for part, one in optimizers.items():
        for index, state in one.state_dict()["state"].items():
            tensors |= {f"{part}.{index}.{name}": value for name, value in state.items() if value is not None}
    metadata = {"progress": json.dumps(asdict(progress))}
    if scaler is not None:
        metadata["scaler"] = json.dumps(scaler.state_dict())
    plain = {}
    for name, value in tensors.items():
        value = whole(value)
        if accelerator.is_main_process:
            plain[name] = value.cpu()
    if accelerator.is_main_process:
        write_tensors(path, plain, metadata)
    accelerator.wait_for_everyone()


def load_checkpoint(path: Path, parts: Parts, scaler: torch.amp.GradScaler | None, fresh: Progress) -> Progress:
    """Sets modules, optimizers and scaler to what the file holds, and returns how far that training was.

    Raises:
        TrainingError: the file is damaged, or of another training than one that stands at ``fresh``.
    """
    metadata, tensors = _read(path)
    progress = _progress(path, metadata)
    if (progress.steps, progress.steps_per_epoch) != (fresh.steps, fresh.steps_per_epoch):
        raise TrainingError(
            f"{path}: it belongs to a training of {progress.steps} steps, this one has {fresh.steps}; delete it to "
            "start this run anew"
        )
    try:
        modules, optimizers = parts
        for part, module in modules.items():
            _load_whole(module, _under(f"{part}.", tensors))
        for part, one in optimizers.items():
            _load_optimizer(one, _under(f"{part}.", tensors))
        if scaler is not None:
            scaler.load_state_dict(json.loads(metadata["scaler"]))
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"{path}: it belongs to another network ({str(error).splitlines()[0]}); delete it to start this run anew"
        ) from error
    return progress


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        like = parameters[int(index)]
        state.setdefault(int(index), {})[key] = part_like(like, value) if value.shape == like.shape else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _load_whole(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = module.state_dict()
    module.load_state_dict({n: part_like(own[n], value) if n in own else value for n, value in tensors.items()})


def epochs_done(checkpoint: Path) -> int:
    """Epochs that a checkpoint has behind it; 0 without one. TrainingError if it is damaged."""
    return _progress(checkpoint, _read(checkpoint)[0]).epoch if checkpoint.exists() else 0


def _progress(path: Path, metadata: dict[str, str]) -> Progress:
    try:
        return Progress(**json.loads(metadata["progress"]))
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: damaged ({error}); delete it to start this run anew") from error


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        return read_tensors(path)
    except ValueError as error:
        raise TrainingError(f"{error}; delete it to start this run anew") from error


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
