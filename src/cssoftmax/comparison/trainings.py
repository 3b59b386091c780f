"""One training of a comparison: a trial, scored on validation data, or a run, which is tested."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator

from cssoftmax import jobs, metrics, recipes, runs, training
from cssoftmax.checkpoint import Progress
from cssoftmax.classifier import Classifier, embed
from cssoftmax.comparison import tuning
from cssoftmax.comparison.protocol import Design, Part, Protocol, test_part, validation_part
from cssoftmax.comparison.tuning import Values
from cssoftmax.data import Dataset
from cssoftmax.watcher import Watcher

Line = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What all trainings of a comparison share."""

    source: runs.Source
    output: Path
    protocol: Protocol
    design: Design
    recipe_changes: Mapping[str, Any]
    seed: int
    amp: runs.Amp
    cpu: bool


@dataclass(frozen=True)
class Task:
    """Trial ``number``, or the run with seed ``number``, of a loss on one rotation.

    ``values`` is a point of the loss's space (:mod:`cssoftmax.comparison.tuning`); empty for the defaults.
    """

    kind: Literal["trial", "run"]
    loss: str
    group: str | None
    number: int
    values: Values = field(hash=False)

    @property
    def name(self) -> str:
        """Of its files."""
        group = "" if self.group is None else "-" + "".join(c if c.isalnum() else "_" for c in self.group)
        return f"{self.loss}{group}-{self.number}"


def perform(setup: Setup, task: Task, on_step: Callable[[Progress], None]) -> Line:
    """Trains, from where an interruption left it; returns what is to be written down.

    Raises:
        cssoftmax.checkpoint.TrainingError: as there; but a trial that diverges has a score of 0.
        cssoftmax.training.Interrupted: asked to stop; what was trained is saved.
    """
    return (_try if task.kind == "trial" else _run)(setup, task, on_step)


def checkpoint(setup: Setup, task: Task) -> Path:
    """Where a trial is saved while it is trained."""
    return setup.output / "trials" / f"{task.name}.safetensors"


def train_on(
    dataset: Dataset,
    loss: str,
    values: Values,
    *,
    recipe_changes: Mapping[str, Any],
    seed: int,
    amp: runs.Amp,
    cpu: bool,
    checkpoint: Path,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Classifier, Accelerator, dict[str, Any]]:
    """A training without a run's folder, resumed from ``checkpoint``; returns its configuration, too.

    Raises:
        cssoftmax.checkpoint.TrainingError: as :func:`cssoftmax.training.fit` does.
    """
    recipe = recipes.choose(dataset.name, dataset.kind, **recipe_changes)
    recipe = replace(recipe, lr=recipe.lr * values.get("lr", 1.0))
    own = tuning.settings(loss, values, recipe.embedding_size, len(dataset.classes))
    config = {
        "kind": dataset.kind,
        "classes": dataset.classes,
        "input_shape": dataset.train.inputs.shape[1:],
        "loss": {"name": loss, "label_smoothing": recipe.label_smoothing, **own},
        "recipe": asdict(recipe),
        "margin_warmup_steps": training.margin_warmup_steps(dataset.train, recipe),
        "seed": seed,
        "amp": amp,
        "cpu": cpu,
    }
    model, accelerator = jobs.prepare(config, dataset)
    model = training.fit(
        model,
        dataset.train,
        recipe,
        seed=seed,
        accelerator=accelerator,
        checkpoint=checkpoint,
        resume=True,
        proxy=runs.proxy_of(config, model),
        on_step=on_step,
    )
    return model, accelerator, config


def _try(setup: Setup, task: Task, on_step: Callable[[Progress], None]) -> Line:
    part = validation_part(setup.source, setup.design, task.group, setup.seed)
    line = {"loss": task.loss, "group": task.group, "number": task.number, "values": task.values}
    try:
        model, accelerator, _ = train_on(
            part.known,
            task.loss,
            task.values,
            recipe_changes=setup.recipe_changes,
            seed=setup.seed,
            amp=setup.amp,
            cpu=setup.cpu,
            checkpoint=checkpoint(setup, task),
            on_step=on_step,
        )
    except training.Diverged as error:
        return line | {"score": 0.0, "failed": str(error)}
    return line | _scores(setup.protocol, model, part, accelerator)


def _scores(protocol: Protocol, model: Classifier, part: Part, accelerator: Accelerator) -> dict[str, float]:
    """How good a trial is, higher is better, and what :func:`tuning.best` needs beside it where scores are shares."""
    if protocol == "closed":
        test = part.known.test
        embeddings, logits = embed(model, test, accelerator=accelerator)
        accuracy = metrics.top_k_accuracy(logits, test.target, 1)
        scores = {"score": accuracy, "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(logits))}
        eer = metrics.equal_error_rate(*metrics.pair_scores(embeddings, test.target)) if len(embeddings) > 1 else 1.0
        return scores if math.isnan(eer) else scores | {"tie_break": 1 - eer}
    if protocol == "open":
        return {"score": max(_rejection(model, part, accelerator).values())}
    split = part.unknown or part.known.test
    embeddings, _ = embed(model, split, accelerator=accelerator)
    return {"score": 1 - metrics.equal_error_rate(*metrics.pair_scores(embeddings, split.target))}


def _run(setup: Setup, task: Task, on_step: Callable[[Progress], None]) -> Line:
    part = test_part(setup.source, setup.design, task.group, setup.seed)
    recipe = recipes.choose(part.known.name, part.known.kind, **setup.recipe_changes)
    folder, watcher = setup.output / "runs" / task.name, Watcher(on_step=on_step, measured_epochs=False)
    network = setup.recipe_changes.get("network")
    if not (folder / "config.json").exists():
        jobs.train(
            replace(setup.source, test_group=task.group, held_out_classes=setup.design.held_out_classes),
            folder,
            loss=task.loss,
            loss_settings=tuning.settings(task.loss, task.values, recipe.embedding_size, len(part.known.classes)),
            recipe_changes={**setup.recipe_changes, "lr": recipe.lr * task.values.get("lr", 1.0)},
            seed=task.number,
            amp=setup.amp,
            cpu=setup.cpu,
            watcher=watcher,
        )
    elif not (folder / "summary.json").exists():
        jobs.resume(folder, data_root=setup.source.data_root, network=network, watcher=watcher)
    config, summary = runs.read_config(folder), json.loads((folder / "summary.json").read_text())
    measures = summary["measures"]
    if part.unknown is not None:
        model = runs.load_model(folder, config, network=network)
        accelerator = runs.accelerator_of(config)
        if setup.protocol == "open":
            measures |= _rejection(model, part, accelerator)
        else:
            embeddings, _ = embed(model, part.unknown, accelerator=accelerator)
            measures = metrics.measure(embeddings, part.unknown.target, None, seed=task.number)
    return {
        "loss": task.loss,
        "group": task.group,
        "seed": task.number,
        "measures": measures,
        "settings": {key: value for key, value in config["loss"].items() if key not in ("name", "label_smoothing")},
        "lr": config["recipe"]["lr"],
        "parameters": summary["parameters"],
        "flops": summary["flops"],
        "device": summary["device"],
        "seconds": summary["seconds"],
    }


def _rejection(model: Classifier, part: Part, accelerator: Accelerator) -> dict[str, float]:
    """How well samples of unknown classes are told from those of known ones, by cosine and by probability."""
    assert part.unknown is not None
    known, unknown = (embed(model, split, accelerator=accelerator) for split in (part.known.test, part.unknown))
    weights = model.loss.weight.detach().cpu()
    cosines = (metrics.max_cosine(embeddings, weights) for embeddings, _ in (known, unknown))
    odds = (metrics.max_log_odds(logits) for _, logits in (known, unknown))
    return {
        "unknown_auroc_cosine": metrics.unknown_auroc(*cosines),
        "unknown_auroc_probability": metrics.unknown_auroc(*odds),
    }
