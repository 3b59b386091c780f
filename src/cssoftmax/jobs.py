"""Train and evaluate as functions: what the commands call. A run is a folder of plain files."""

import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cssoftmax import files, losses, metrics, processor, recipes, training
from cssoftmax.data import Dataset, Split, channel_statistics, load_dataset, validation_split
from cssoftmax.data.augment import ImageAugment, SoundAugment
from cssoftmax.networks import NETWORKS, Standardize
from cssoftmax.recipes import Recipe
from cssoftmax.training import Classifier, Progress

Amp = Literal["no", "bf16", "fp16"]

# k-NN compares with at most this many training samples.
NEIGHBOURS = 10_000


class JobError(ValueError):
    """A mistake in what was asked for; one line that names it and the remedy."""


@dataclass(frozen=True)
class Source:
    """What :func:`cssoftmax.data.load_dataset` takes, and the share of the training split to validate on."""

    name: str
    data_root: Path | None = None
    cache_dir: Path | None = None
    image_size: int | None = None
    test_group: str | None = None
    validation: float = 0.0

    def load(self, seed: int) -> Dataset:
        dataset = load_dataset(
            self.name,
            data_root=self.data_root,
            cache_dir=self.cache_dir,
            image_size=self.image_size,
            test_group=self.test_group,
        )
        return validation_split(dataset, self.validation, seed) if self.validation else dataset


@dataclass(frozen=True)
class Watcher:
    """What a person sees of a training: called with what is about to run, each step and each epoch."""

    on_start: Callable[[Dataset, Recipe, Classifier, int], None] = lambda dataset, recipe, model, epoch: None
    on_step: Callable[[Progress], None] = lambda progress: None
    on_epoch: Callable[[dict[str, float]], None] = lambda metrics: None


def train(
    source: Source,
    output: Path,
    *,
    loss: str = "cs-softmax",
    loss_settings: Mapping[str, Any] | None = None,
    recipe_changes: Mapping[str, Any] | None = None,
    seed: int = 0,
    amp: Amp = "no",
    cpu: bool = False,
    watcher: Watcher | None = None,
) -> Path:
    """Trains a network and a loss on ``source`` and writes the run's folder ``output``.

    Into it go ``config.json`` (all that is needed to repeat the run), ``metrics.jsonl`` (a line an epoch),
    ``checkpoint.safetensors`` (until the run is done), ``weights.safetensors`` (network and class weights),
    ``summary.json`` and ``evaluation.safetensors`` (the measures, embeddings and logits of the test split, or of the
    validation split where ``source`` holds one out). The weights are those after the last epoch.

    Raises:
        JobError: the folder holds a run already, or a setting does not fit.
        cssoftmax.data.DataError, cssoftmax.recipes.RecipeError, cssoftmax.training.TrainingError,
        cssoftmax.training.Interrupted: as they say.
    """
    if (output / "config.json").exists():
        raise JobError(f"{output}: there is a run in this folder; go on with it by --resume {output}, or name another")
    dataset = source.load(seed)
    recipe = recipes.choose(dataset.name, dataset.kind, **(recipe_changes or {}))
    settings = {"label_smoothing": recipe.label_smoothing, **(loss_settings or {})}
    probe = losses.build(loss, recipe.embedding_size, len(dataset.classes), **settings)
    config = {
        "source": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(source).items()},
        "dataset": dataset.name,
        "kind": dataset.kind,
        "fingerprint": dataset.fingerprint,
        "classes": list(dataset.classes),
        "input_channels": dataset.train.inputs.shape[1],
        "input_shape": list(dataset.train.inputs.shape[1:]),
        "loss": {"name": loss, **losses.settings_of(probe), **settings},
        "recipe": asdict(recipe),
        "seed": seed,
        "amp": amp,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    output.mkdir(parents=True, exist_ok=True)
    files.write_json(output / "config.json", config)
    return _run(output, config, dataset, watcher or Watcher())


def resume(run: Path, *, data_root: Path | None = None, watcher: Watcher | None = None) -> Path:
    """Goes on with a run that was interrupted, from its last checkpoint; the result is as if it had never stopped.

    ``data_root`` replaces the run's own, for data that have moved.
    """
    config = read_config(run)
    if (run / "summary.json").exists():
        raise JobError(f"{run}: this run is complete; `cssoftmax evaluate {run}` measures it anew")
    dataset = _dataset(config, data_root)
    return _run(run, config, dataset, watcher or Watcher())


def evaluate(run: Path, *, data_root: Path | None = None) -> dict[str, float]:
    """Measures a trained run again on its test split and rewrites ``summary.json`` and ``evaluation.safetensors``."""
    config = read_config(run)
    dataset = _dataset(config, data_root)
    model = load_model(run, config)
    accelerator = Accelerator(cpu=config["cpu"], mixed_precision=config["amp"])
    return _evaluate(run, config, dataset, model, accelerator)


def read_config(run: Path) -> dict[str, Any]:
    """The ``config.json`` of a run; JobError if there is none, or it is damaged."""
    path = run / "config.json"
    try:
        config = json.loads(path.read_text())
        missing = {"source", "loss", "recipe", "seed", "classes", "kind", "input_shape"} - config.keys()
    except FileNotFoundError:
        raise JobError(f"{run}: no run here, config.json is missing; `cssoftmax train` makes one") from None
    except (OSError, ValueError, AttributeError) as error:
        raise JobError(f"{path}: cannot be read ({error}); restore it, or train anew") from error
    if missing:
        raise JobError(f"{path}: {', '.join(sorted(missing))} missing; restore it, or train anew")
    return dict(config)


def load_model(run: Path, config: Mapping[str, Any] | None = None) -> Classifier:
    """The trained network and loss of a run, from ``weights.safetensors``, on the CPU."""
    config = read_config(run) if config is None else config
    path = run / "weights.safetensors"
    if not path.exists():
        raise JobError(
            f"{run}: weights.safetensors is missing, the training did not end; --resume {run} goes on with it"
        )
    model = _build(config, None)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise JobError(
            f"{path}: these weights do not fit ({str(error).splitlines()[0]}); restore it, or train anew"
        ) from error
    return model


def logit_curve(run: Path, points: int = 401) -> dict[str, Tensor | str | float]:
    """P(c) and N(c) of a run's loss over cosines from -1 to 1, as :class:`cssoftmax.report.LogitCurve` takes them."""
    config = read_config(run)
    loss = load_model(run, config).loss.eval()
    cosines = torch.linspace(-1, 1, points, dtype=torch.float64)
    rows = loss.similarity.rows(cosines, torch.ones_like(cosines), torch.zeros(points, dtype=torch.int64))
    return {
        "name": config["loss"]["name"],
        "scale": float(loss.scale),
        "cosines": cosines,
        "positive": loss.similarity.positive(cosines, rows),
        "negative": loss.similarity.negative(cosines, rows),
    }


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    names = ("cssoftmax", "torch", "numpy", "accelerate", "kornia", "librosa", "datasets")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def _run(run: Path, config: Mapping[str, Any], dataset: Dataset, watcher: Watcher) -> Path:
    recipe = _recipe(config)
    accelerator = Accelerator(cpu=config["cpu"], mixed_precision=config["amp"])
    torch.manual_seed(config["seed"])
    model = _build(config, channel_statistics(dataset.train))
    log, checkpoint = run / "metrics.jsonl", run / "checkpoint.safetensors"
    _keep_lines(log, training.epochs_done(checkpoint))
    watcher.on_start(dataset, recipe, model, training.epochs_done(checkpoint))

    def on_epoch(evaluated: Classifier, measured: dict[str, float]) -> None:
        _, logits = training.embed(evaluated, dataset.test, accelerator=accelerator)
        line = measured | {
            "eval_loss": metrics.negative_log_likelihood(logits, dataset.test.target),
            "eval_accuracy": metrics.top_k_accuracy(logits, dataset.test.target, 1),
        }
        if accelerator.is_main_process:
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
        watcher.on_epoch(line)

    model = training.fit(
        model,
        dataset.train,
        recipe,
        seed=config["seed"],
        accelerator=accelerator,
        checkpoint=checkpoint,
        resume=True,
        on_step=watcher.on_step,
        on_epoch=on_epoch,
    )
    if accelerator.is_main_process:
        files.write_tensors(run / "weights.safetensors", model.state_dict())
        _evaluate(run, config, dataset, model, accelerator)
        checkpoint.unlink()
    return run


def _evaluate(
    run: Path, config: Mapping[str, Any], dataset: Dataset, model: Classifier, accelerator: Accelerator
) -> dict[str, float]:
    embeddings, logits = training.embed(model, dataset.test, accelerator=accelerator)
    sample = _some(dataset.train, NEIGHBOURS, config["seed"])
    neighbours, _ = training.embed(model, sample, accelerator=accelerator)
    measures = metrics.measure(
        embeddings, dataset.test.target, logits, reference=(neighbours, sample.target), seed=config["seed"]
    )
    log = run / "metrics.jsonl"
    seconds = sum(json.loads(line)["seconds"] for line in log.read_text().splitlines()) if log.exists() else 0.0
    files.write_tensors(
        run / "evaluation.safetensors",
        {
            "embeddings": embeddings,
            "logits": logits,
            "target": dataset.test.target,
            "class_weights": _class_weights(model.loss, embeddings, dataset.test.target),
        },
    )
    files.write_json(
        run / "summary.json",
        {
            "dataset": dataset.name,
            "split": "validation" if config["source"]["validation"] else "test",
            "loss": config["loss"]["name"],
            "seed": config["seed"],
            "measures": measures,
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": seconds,
            "device": processor.describe(str(accelerator.device)),
            "versions": versions(),
        },
    )
    return measures


def _dataset(config: Mapping[str, Any], data_root: Path | None) -> Dataset:
    saved = config["source"]
    source = Source(
        saved["name"],
        data_root=data_root or (Path(saved["data_root"]) if saved["data_root"] else None),
        cache_dir=Path(saved["cache_dir"]) if saved["cache_dir"] else None,
        image_size=saved["image_size"],
        test_group=saved["test_group"],
        validation=saved["validation"],
    )
    dataset = source.load(config["seed"])
    if dataset.fingerprint != config["fingerprint"]:
        raise JobError(f"{saved['name']}: the data are not those this run was made with; train anew")
    return dataset


def _build(config: Mapping[str, Any], statistics: tuple[Tensor, Tensor] | None) -> Classifier:
    recipe = _recipe(config)
    channels = config["input_shape"][0]
    mean, std = statistics or (torch.zeros(channels), torch.ones(channels))
    if recipe.network not in NETWORKS:
        raise JobError(f"network: {recipe.network!r} is not one of {', '.join(NETWORKS)}")
    network = NETWORKS[recipe.network](channels, recipe.embedding_size, recipe.width)
    return Classifier(torch.nn.Sequential(Standardize(mean, std), network), _loss(config))


def _loss(config: Mapping[str, Any]) -> losses.SimilarityLoss:
    settings = {key: value for key, value in config["loss"].items() if key != "name"}
    return losses.build(config["loss"]["name"], config["recipe"]["embedding_size"], len(config["classes"]), **settings)


def _class_weights(loss: losses.SimilarityLoss, embeddings: Tensor, target: Tensor) -> Tensor:
    """(C, D): of several sub-centers of a class, the one that most embeddings are nearest to."""
    if isinstance(loss, losses.SubCenterArcFaceLoss):
        return loss.dominant_centers(embeddings.to(loss.weight.device), target.to(loss.weight.device))
    return loss.weight.detach()


def _recipe(config: Mapping[str, Any]) -> Recipe:
    saved = dict(config["recipe"])
    if saved["augment"] is not None:
        saved["augment"] = (ImageAugment if config["kind"] == "image" else SoundAugment)(**saved["augment"])
    return Recipe(**saved)


def _some(split: Split, count: int, seed: int) -> Split:
    if len(split.target) <= count:
        return split
    rows = torch.randperm(len(split.target), generator=torch.Generator().manual_seed(seed))[:count]
    return replace(split, inputs=split.inputs[rows], target=split.target[rows], groups=None)


def _keep_lines(path: Path, count: int) -> None:
    """Drops what was logged after the checkpoint that a run goes on from."""
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)[:count]
        files.write_bytes(path, b"".join(lines))
