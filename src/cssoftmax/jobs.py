"""Train and evaluate as functions: what the commands call. A run is a folder of plain files."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import Accelerator
from torch import Tensor, distributed

from cssoftmax import evaluation, files, losses, metrics, networks, recipes, trackers, training
from cssoftmax.checkpoint import epochs_done
from cssoftmax.classifier import Classifier, as_input, embed
from cssoftmax.data import Dataset, Split, channel_statistics
from cssoftmax.data.augment import smaller
from cssoftmax.data.split import at_most, some
from cssoftmax.networks import Standardize, Whitening
from cssoftmax.processes import fully_sharded, whole
from cssoftmax.runs import (
    Amp,
    JobError,
    Source,
    accelerator_of,
    check_named,
    classifier_of,
    dataset_of,
    load_model,
    proxy_of,
    read_config,
    recipe_of,
    versions,
)
from cssoftmax.training import Interrupted
from cssoftmax.watcher import Watcher

# Samples of a streamed data set that its statistics are found with.
LOOKED_AT = 5_000


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
    shard_classes: bool = False,
    sample_rate: float = 1.0,
    track: Sequence[str] = (),
    watcher: Watcher | None = None,
) -> Path:
    """Trains a network and a loss on ``source`` and writes the run's folder ``output``.

    Under ``accelerate launch`` or ``torchrun`` every process calls this; each has its share of every batch, and with
    ``shard_classes`` its share of the classes, too (:func:`cssoftmax.sharded.shard_loss`); launched with FSDP, it has
    its share of the network. The main process writes. With a ``sample_rate`` below 1 each step sees the classes of its
    batch and this share of the others (Partial FC).

    Into it go ``config.json`` (all that is needed to repeat the run), ``metrics.jsonl`` (a line an epoch),
    ``checkpoint.safetensors`` (until the run is done), ``weights.safetensors`` (network and class weights),
    ``summary.json`` and ``evaluation.safetensors`` (the measures, embeddings and logits of the test split, or of the
    validation split where ``source`` holds one out), ``samples.safetensors`` (a few hundred small pictures or
    recordings of that split, to be looked at in a report), and ``README.md`` (the model card). The weights are those
    after the last epoch. Nothing is written before everything that was asked for is known to fit together.

    ``track`` names trackers (``tensorboard``, ``wandb``, ``mlflow``, ...) that are told every epoch's measures and the
    final ones; TensorBoard, in the run's folder, also shows the embeddings in its projector.

    Raises:
        JobError: the folder holds a run already, or a setting does not fit.
        cssoftmax.data.DataError, cssoftmax.recipes.RecipeError, cssoftmax.checkpoint.TrainingError,
        cssoftmax.training.Interrupted: as they say.
    """
    _check_free(output)
    if not 0 < sample_rate <= 1:
        raise JobError(f"sample_rate: {sample_rate} is outside (0, 1]")
    if amp not in get_args(Amp):
        raise JobError(f"amp: {amp!r} is not one of {', '.join(get_args(Amp))}")
    trackers.check(track)
    # The number of classes and the kind of data are not known yet, but most mistakes show before data are fetched.
    networks.find(recipes.choose(source.name, "image", **(recipe_changes or {})).network)
    per_class = [len(value) for value in (loss_settings or {}).values() if isinstance(value, list)]
    losses.build(loss, 1, max(per_class, default=2), **(loss_settings or {}))

    dataset = source.load(seed)
    recipe = recipes.choose(dataset.name, dataset.kind, **(recipe_changes or {}))
    settings = {"label_smoothing": recipe.label_smoothing, **(loss_settings or {})}
    built = losses.build(loss, recipe.embedding_size, len(dataset.classes), **settings)
    config = {
        "source": {key: str(value) if isinstance(value, Path) else value for key, value in asdict(source).items()},
        "dataset": dataset.name,
        "kind": dataset.kind,
        "fingerprint": dataset.fingerprint,
        "classes": list(dataset.classes),
        "input_shape": list(dataset.train.inputs.shape[1:]),
        "preprocessing": asdict(dataset.preprocessing),
        "loss": {"name": loss, **losses.settings_of(built)},
        "recipe": asdict(recipe),
        "margin_warmup_steps": training.margin_warmup_steps(dataset.train, recipe),
        "seed": seed,
        "amp": amp,
        "cpu": cpu,
        "shard_classes": shard_classes,
        "sample_rate": sample_rate,
        "track": list(track),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    model, accelerator = prepare(config, dataset, output)
    if shard_classes and accelerator.num_processes == 1:
        raise JobError(
            "shard_classes: there is one process, with all classes; start several: `torchrun --nproc_per_node 2 "
            "-m cssoftmax train ... --shard-classes`"
        )
    _check_launch(config, accelerator)
    with _only_one(output, accelerator):
        _check_free(output)
        if accelerator.is_main_process:
            files.write_json(output / "config.json", config)
        return _run(output, config, dataset, model, accelerator, watcher or Watcher())


def resume(
    run: Path, *, data_root: Path | None = None, network: str | None = None, watcher: Watcher | None = None
) -> Path:
    """Goes on with a run that was interrupted, from its last checkpoint; the result is as if it had never stopped.

    ``data_root`` replaces the run's own, for data that have moved. A run whose network is an import path needs it
    again as ``network``: nothing is imported because a file says so.
    """
    config = _moved(read_config(run), data_root)
    check_named(run, config, network)
    if (run / "summary.json").exists():
        raise JobError(f"{run}: this run is complete; `cssoftmax evaluate {run}` measures it anew")
    dataset = dataset_of(config)
    model, accelerator = prepare(config, dataset, run)
    _check_launch(config, accelerator)
    with _only_one(run, accelerator):
        return _run(run, config, dataset, model, accelerator, watcher or Watcher())


def evaluate(
    run: Path, *, data_root: Path | None = None, network: str | None = None, watcher: Watcher | None = None
) -> dict[str, float]:
    """Measures a trained run again on its test split and rewrites ``summary.json``, ``evaluation.safetensors``
    and ``samples.safetensors``; ``data_root`` and ``network`` as in :func:`resume`."""
    config = _moved(read_config(run), data_root)
    model = load_model(run, config, network=network)
    dataset = dataset_of(config)
    return evaluation.evaluate(run, config, dataset, model, accelerator_of(config), watcher or Watcher())


def _only_one(run: Path, accelerator: Accelerator) -> AbstractContextManager[None]:
    """Keeps other trainings out of the folder; of this one's processes the main one writes."""
    return files.only_one(run) if accelerator.is_main_process else nullcontext()


def _check_free(output: Path) -> None:
    """A folder is taken if it holds something that a new run would destroy."""
    if not (output / "config.json").exists():
        return
    read_config(output)
    if any((output / name).exists() for name in ("checkpoint.safetensors", "weights.safetensors", "summary.json")):
        raise JobError(f"{output}: there is a run in this folder; go on with it by --resume {output}, or name another")


def prepare(config: Mapping[str, Any], dataset: Dataset, run: Path | None = None) -> tuple[Classifier, Accelerator]:
    """The model before its first step, once it is known that it takes the data.

    The network's weights follow from the seed and the recipe alone, whatever the loss: it draws its own after them.
    """
    accelerator = accelerator_of(config, run)
    torch.manual_seed(config["seed"])
    known = _looked_at(dataset.train, config["seed"])
    model = classifier_of(config, channel_statistics(known))
    recipe, inputs, remedy = recipe_of(config), as_input(known.inputs[:1]), "a larger --image-size"
    _fit_whitening(model.network, known)
    try:
        with torch.no_grad():
            embeddings = model.eval()(training.augmentation(recipe)(inputs))
            if recipe.low_resolution:
                inputs, remedy = smaller(inputs), "--low-resolution 0"
                model(inputs)
    except (RuntimeError, TypeError, ValueError) as error:
        size = " x ".join(map(str, inputs.shape[1:]))
        raise JobError(
            f"network: {recipe.network} with this augmentation does not take inputs of {size} "
            f"({(str(error).splitlines() or [type(error).__name__])[0]}); choose another, or {remedy}"
        ) from error
    if not isinstance(embeddings, Tensor) or embeddings.shape != (1, recipe.embedding_size):
        made = f"(N, {embeddings.shape[-1]})" if isinstance(embeddings, Tensor) and embeddings.ndim == 2 else None
        remedy = f"give --embedding-size {embeddings.shape[-1]}" if made else "return a tensor (N, embedding_size)"
        raise JobError(
            f"network: {recipe.network} returns {made or _told(embeddings)}, not embeddings "
            f"(N, {recipe.embedding_size}); {remedy}"
        )
    return model, accelerator


def _looked_at(split: Split, seed: int) -> Split:
    """The split in memory; of a streamed one some samples, decoded."""
    if isinstance(split.inputs, Tensor):
        return split
    known = some(split, at_most(split, LOOKED_AT), seed)
    return replace(known, inputs=known.inputs[:])


def _fit_whitening(network: torch.nn.Module, split: Split, count: int = 5000) -> None:
    """Sets the filters of whitening layers from the first training samples; no random number is drawn."""
    if not any(isinstance(layer, Whitening) for layer in network.modules()):
        return
    images = as_input(split.inputs[:count])
    for layer in network.modules():
        if isinstance(layer, Standardize):
            images = layer(images)
        elif isinstance(layer, Whitening):
            layer.fit(images)


def _told(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _run(
    run: Path,
    config: Mapping[str, Any],
    dataset: Dataset,
    model: Classifier,
    accelerator: Accelerator,
    watcher: Watcher,
) -> Path:
    alone = config.get("sample_rate", 1.0) < 1 and not distributed.is_initialized()
    if alone:  # what a sharded loss needs, of one process
        distributed.init_process_group(store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        return _trained(run, config, dataset, model, accelerator, watcher)
    finally:
        if alone and distributed.is_initialized():
            distributed.destroy_process_group()


def _trained(
    run: Path,
    config: Mapping[str, Any],
    dataset: Dataset,
    model: Classifier,
    accelerator: Accelerator,
    watcher: Watcher,
) -> Path:
    recipe = recipe_of(config)
    log, checkpoint = run / "metrics.jsonl", run / "checkpoint.safetensors"
    done = epochs_done(checkpoint)
    if accelerator.is_main_process:
        files.remove_abandoned(run)
        _keep_lines(log, done)
        for name, lines in (("skipped.txt", dataset.skipped), ("repeated.txt", dataset.repeated)):
            if lines:
                files.write_bytes(run / name, "\n".join((*lines, "")).encode())
    _shard(model, config, accelerator)
    watcher.on_start(dataset, recipe, model, done)
    if accelerator.log_with:
        trackers.start(accelerator, run, {**config["loss"], **config["recipe"], "seed": config["seed"]})

    def on_epoch(evaluated: Classifier, line: dict[str, float]) -> None:
        if watcher.measured_epochs:
            watcher.on_phase("evaluating")
            _, logits = embed(evaluated, dataset.test, accelerator=accelerator)
            line |= {
                "eval_loss": metrics.negative_log_likelihood(logits, dataset.test.target),
                "eval_accuracy": metrics.top_k_accuracy(logits, dataset.test.target, 1),
            }
        if accelerator.is_main_process:
            files.append_line(log, json.dumps(line))
        accelerator.log({name: value for name, value in line.items() if name != "epoch"}, step=int(line["epoch"]))
        watcher.on_epoch(line)
        watcher.on_phase("training")

    try:
        watcher.on_phase("training")
        model = training.fit(
            model,
            dataset.train,
            recipe,
            seed=config["seed"],
            accelerator=accelerator,
            checkpoint=checkpoint,
            resume=True,
            proxy=proxy_of(config, model),
            on_step=watcher.on_step,
            on_epoch=on_epoch,
        )
    except Interrupted as stop:
        accelerator.end_training()
        raise Interrupted(f"{stop}; `cssoftmax train --resume {run}` goes on") from None
    weights = {name: whole(value) for name, value in model.state_dict().items()}
    if accelerator.is_main_process:
        files.write_tensors(run / "weights.safetensors", weights)
        measures = evaluation.evaluate(
            run, config, dataset, load_model(run, config, network=recipe.network), accelerator, watcher
        )
        accelerator.log({f"final/{name}": value for name, value in measures.items()}, step=recipe.epochs)
        if accelerator.log_with:
            _, evaluated = files.read_tensors(run / "evaluation.safetensors")
            trackers.project(accelerator, dataset.test, evaluated["embeddings"], dataset.classes)
        checkpoint.unlink()
    accelerator.end_training()
    return run


def _check_launch(config: Mapping[str, Any], accelerator: Accelerator) -> None:
    """JobError where a run does not go with the way in which its processes were launched."""
    fully = fully_sharded(accelerator)
    shared = [name for name, there in (("--shard-classes", config.get("shard_classes")), ("FSDP", fully)) if there]
    if fully and os.environ.get("FSDP_VERSION", "1") != "2":
        raise JobError("fsdp_version: the network is shared out by FSDP 2; launch with --fsdp_version 2")
    if config["recipe"].get("proxy_width") and shared and accelerator.num_processes > 1:
        raise JobError(f"recipe: its proxy is on one process as a whole; leave {' and '.join(shared)} out")
    if config.get("sample_rate", 1.0) < 1:
        shared.append("--sample-rate")
    if config["amp"] == "fp16" and shared:
        raise JobError(f"amp: fp16 does not go with {' and '.join(shared)}; take bf16")


def _shard(model: Classifier, config: Mapping[str, Any], accelerator: Accelerator) -> None:
    """Shares out the classes over the processes, where that was asked for; or each has all, and draws the same some."""
    processes, sample_rate = accelerator.num_processes, config.get("sample_rate", 1.0)
    shared = config.get("shard_classes") and processes > 1
    if not shared and sample_rate == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh

    from cssoftmax.sharded import shard_loss

    shape, names = ((processes,), ("class",)) if shared else ((processes, 1), ("data", "class"))
    mesh = init_device_mesh(accelerator.device.type, shape, mesh_dim_names=names)
    shard_loss(model.loss, mesh, sample_rate=sample_rate)


def _moved(config: dict[str, Any], data_root: Path | None) -> dict[str, Any]:
    """The config of a run whose data are now elsewhere."""
    return config if data_root is None else config | {"source": config["source"] | {"data_root": str(data_root)}}


def _keep_lines(path: Path, count: int) -> None:
    """Drops what was logged after the checkpoint that a run goes on from."""
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)[:count]
        files.write_bytes(path, b"".join(lines))
