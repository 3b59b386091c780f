"""A run is a folder of plain files: its ``config.json`` read, and the data and the model that it describes."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from cssoftmax import __version__, files, losses, networks
from cssoftmax.classifier import Classifier
from cssoftmax.data import (
    Dataset,
    Pixels,
    Preprocessing,
    hold_out_classes,
    load_dataset,
    preprocessing_of,
    validation_split,
)
from cssoftmax.data.augment import ImageAugment, SoundAugment
from cssoftmax.data.sound import NAMED as NAMED_SOUNDS
from cssoftmax.data.split import some
from cssoftmax.data.table import OnError
from cssoftmax.networks import Standardize, Whitening
from cssoftmax.recipes import Recipe

Amp = Literal["no", "bf16", "fp16"]

SHUFFLE_BUFFER = 10_000
"""Of a streamed data set, samples that each batch is drawn from, where nothing else is asked for."""

# Of a streamed test split, logits that are measured: of many classes, fewer samples.
MOST_LOGITS = 2**27


class JobError(ValueError):
    """A mistake in what was asked for; one line that names it and the remedy."""


@dataclass(frozen=True)
class Source:
    """What :func:`cssoftmax.data.load_dataset` takes, classes to leave out, and a share to validate on."""

    name: str
    data_root: Path | None = None
    cache_dir: Path | None = None
    image_size: int | None = None
    test_group: str | None = None
    validation: float = 0.0
    held_out_classes: tuple[str, ...] = ()
    on_error: OnError = "fail"
    shuffle_buffer: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise JobError(f"validation: {self.validation} is outside [0, 1)")

    def load(self, seed: int) -> Dataset:
        dataset = load_dataset(
            self.name,
            data_root=self.data_root,
            cache_dir=self.cache_dir,
            image_size=self.image_size,
            test_group=self.test_group,
            on_error=self.on_error,
            shuffle_buffer=self.shuffle_buffer,
        )
        if self.held_out_classes:
            dataset, _ = hold_out_classes(dataset, self.held_out_classes)
        if self.validation:
            dataset = validation_split(dataset, self.validation, seed)
        if self.shuffle_buffer is None:
            return dataset
        return replace(dataset, test=some(dataset.test, max(MOST_LOGITS // len(dataset.classes), 1), seed))


def read_config(run: Path) -> dict[str, Any]:
    """The ``config.json`` of a run; JobError if there is none, or it does not describe one."""
    path = run / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        needed = {"source", "dataset", "kind", "fingerprint", "classes", "input_shape", "loss", "recipe", "seed"}
        missing = (needed | {"amp", "cpu"}) - config.keys()
        if missing:
            raise ValueError(f"no {', '.join(sorted(missing))} in it")
        source_of(config), recipe_of(config), _loss(config)
    except (FileNotFoundError, NotADirectoryError):
        raise JobError(f"{run}: no run here, config.json is missing; `cssoftmax train` makes one") from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise JobError(f"{path}: does not describe a run ({error}); restore it, or train anew") from error
    return dict(config)


def load_model(run: Path, config: Mapping[str, Any] | None = None, *, network: str | None = None) -> Classifier:
    """The trained network and loss of a run, from ``weights.safetensors``, on the CPU; ``network`` as in `resume`."""
    config = read_config(run) if config is None else config
    return restore(run / "weights.safetensors", config, read_weights(run), network=network)


def restore(
    path: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], *, network: str | None = None
) -> Classifier:
    """The network and loss that ``config`` describes, with weights that were read from ``path``."""
    check_named(path, config, network)
    model = classifier_of(config, None)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise _unfit(path, error) from error
    return model


def read_weights(run: Path) -> dict[str, Tensor]:
    """``weights.safetensors`` of a run."""
    path = run / "weights.safetensors"
    if not path.exists():
        raise JobError(
            f"{run}: weights.safetensors is missing, the training did not end; --resume {run} goes on with it"
        )
    try:
        _, weights = files.read_tensors(path)
    except ValueError as error:
        raise _unfit(path, error) from error
    return weights


def _unfit(path: Path, error: Exception) -> JobError:
    reason = str(error).splitlines()[0].removeprefix(f"{path}: ").rstrip(":")
    return JobError(f"{path}: these weights cannot be loaded ({reason}); restore it, or train anew")


def check_named(where: Path, config: Mapping[str, Any], network: str | None) -> None:
    """Code that a file names runs only if the user names it too."""
    recorded = config["recipe"]["network"]
    if network not in (None, recorded):
        raise JobError(f"network: {where} was made with {recorded}, not {network}")
    if networks.is_import_path(recorded) and network is None:
        raise JobError(
            f"{where}: its network is code, {recorded}, and code is not run because a file names it; if you trust it, "
            f"add --network {recorded}"
        )


def preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """How the run of this config makes an image or a sound into an input."""
    if "preprocessing" in config:
        return preprocessing_of(config["preprocessing"])
    # Runs of before it was written down.
    if config["kind"] == "image":
        return Pixels(*config["input_shape"])
    if config["dataset"] in NAMED_SOUNDS:
        return NAMED_SOUNDS[config["dataset"]]
    raise JobError("config.json: does not say how sounds became spectrograms; train anew")


def source_of(config: Mapping[str, Any]) -> Source:
    saved = dict(config["source"])
    for name in ("data_root", "cache_dir"):
        saved[name] = None if saved[name] is None else Path(saved[name])
    saved["held_out_classes"] = tuple(saved.get("held_out_classes", ()))
    return Source(**saved)


def dataset_of(config: Mapping[str, Any]) -> Dataset:
    source = source_of(config)
    dataset = source.load(config["seed"])
    if dataset.fingerprint != config["fingerprint"]:
        raise JobError(f"{source.name}: the data are not those this run was made with; train anew")
    return dataset


def classifier_of(config: Mapping[str, Any], statistics: tuple[Tensor, Tensor] | None) -> Classifier:
    recipe = recipe_of(config)
    channels = config["input_shape"][0]
    mean, std = statistics or (torch.zeros(channels), torch.ones(channels))
    network = networks.build(recipe.network, channels, recipe.embedding_size, recipe.width)
    return Classifier(torch.nn.Sequential(Standardize(mean, std), network), _loss(config))


def proxy_of(config: Mapping[str, Any], model: Classifier) -> Classifier | None:
    """The narrow twin of a run's model that chooses what it is trained on, before its first step, or None."""
    width = recipe_of(config).proxy_width
    if not width:
        return None
    torch.manual_seed(config["seed"])
    proxy = classifier_of({**config, "recipe": {**config["recipe"], "width": width}}, None)
    of_data = [
        [layer for layer in one.network.modules() if isinstance(layer, Standardize | Whitening)]
        for one in (proxy, model)
    ]
    for own, its in zip(*of_data, strict=True):
        for name, buffer in own.named_buffers():
            buffer.copy_(its.get_buffer(name))
    return proxy


def _loss(config: Mapping[str, Any]) -> losses.SimilarityLoss:
    settings = {key: value for key, value in config["loss"].items() if key != "name"}
    name, embedding_size, classes = config["loss"]["name"], config["recipe"]["embedding_size"], len(config["classes"])
    settings = losses.warmed_up(name, settings, config.get("margin_warmup_steps", 0))
    return losses.build(name, embedding_size, classes, **settings)


def recipe_of(config: Mapping[str, Any]) -> Recipe:
    saved = dict(config["recipe"])
    if saved["augment"] is not None:
        saved["augment"] = (ImageAugment if config["kind"] == "image" else SoundAugment)(**saved["augment"])
    return Recipe(**saved)


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    names = ("torch", "numpy", "accelerate", "kornia", "librosa", "datasets")
    own = {"python": platform.python_version(), "cssoftmax": __version__}
    return own | {name: importlib.metadata.version(name) for name in names}


def accelerator_of(config: Mapping[str, Any], run: Path | None = None) -> Accelerator:
    """Where a run runs, in which precision, and, given its folder, what tracks it."""
    # accelerate keeps the first precision and device that a process asks for; each run has its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return Accelerator(
            cpu=config["cpu"] or not torch.accelerator.is_available(),  # else it makes no group of processes on CPUs
            mixed_precision=config["amp"],
            log_with=config.get("track") or None if run is not None else None,
            project_dir=run,
        )
    except ValueError as error:
        raise JobError(f"amp: {error} Choose bf16 or no") from error
