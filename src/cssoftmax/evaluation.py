"""What a run's folder says of the trained model: its measures, embeddings, samples to look at, and model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from cssoftmax import files, losses, metrics, processor, training
from cssoftmax.card import model_card
from cssoftmax.classifier import Classifier, averaged_logits, embed
from cssoftmax.data import Dataset, Split, blends, pictures, recordings
from cssoftmax.data.preview import shortened
from cssoftmax.data.split import at_most, some
from cssoftmax.runs import JobError, proxy_of, recipe_of, source_of, versions
from cssoftmax.watcher import Watcher

# k-NN compares with at most this many training samples.
NEIGHBOURS = 10_000
# Samples that a run keeps to be looked at or listened to: at random, and of each kind of interesting ones.
SHOWN = {"image": 600, "sound": 300}
REMARKABLE = 12
TYPICAL = 200

# What the threshold of "unknown" is found with.
BLENDS = 5_000


def evaluate(
    run: Path,
    config: Mapping[str, Any],
    dataset: Dataset,
    model: Classifier,
    accelerator: Accelerator,
    watcher: Watcher,
) -> dict[str, float]:
    """Measures a trained model on the test split; writes ``summary.json``, ``evaluation.safetensors``,
    ``samples.safetensors`` and the model card into the run's folder and returns the measures."""
    seconds = _seconds(run / "metrics.jsonl")
    watcher.on_phase("evaluating")
    embeddings, logits = embed(model, dataset.test, accelerator=accelerator)
    sample = some(dataset.train, NEIGHBOURS, config["seed"])
    neighbours, _ = embed(model, sample, accelerator=accelerator)
    tested = dataset.test if isinstance(dataset.test.inputs, Tensor) else some(dataset.test, BLENDS, config["seed"])
    blended = Split(blends(tested, at_most(tested, BLENDS), config["seed"]), tested.target[:0], None)
    strangers = embed(model, blended, accelerator=accelerator)[0] if len(blended.inputs) else embeddings[:0]
    watcher.on_phase("measuring")
    measures = metrics.measure(
        embeddings,
        dataset.test.target,
        logits,
        reference=(neighbours, sample.target),
        seed=config["seed"],
        watch=lambda done, total: watcher.on_work(done, total, "pairs compared"),
    )
    recipe = recipe_of(config)
    if recipe.average_views:
        averaged = averaged_logits(model, dataset.test, recipe, accelerator=accelerator)
        measures["accuracy_tta"] = metrics.top_k_accuracy(averaged, dataset.test.target, 1)
    files.write_tensors(
        run / "evaluation.safetensors",
        {
            "embeddings": embeddings,
            "logits": logits,
            "target": dataset.test.target,
            "class_weights": _class_weights(model.loss, embeddings, dataset.test.target),
            "blends": strangers,
        },
    )
    _write_samples(run / "samples.safetensors", config, dataset, embeddings, logits)
    summary = {
        "dataset": dataset.name,
        "split": "validation" if config["source"]["validation"] else "test",
        "loss": config["loss"]["name"],
        "seed": config["seed"],
        "measures": measures,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": training.flops(model, dataset.train, recipe, proxy_of(config, model)),
        "seconds": seconds,
        "device": processor.describe(str(accelerator.device)),
        "versions": versions(),
    }
    files.write_json(run / "summary.json", summary)
    files.write_bytes(run / "README.md", model_card(config, summary).encode())
    return measures


def _write_samples(path: Path, config: Mapping[str, Any], dataset: Dataset, embeddings: Tensor, logits: Tensor) -> None:
    """Pictures or recordings of some test samples: ``rows`` (M,), ``ends`` (M,) of their files in ``bytes``."""
    rows = torch.tensor(_remarkable(embeddings, logits, dataset.test.target, SHOWN[dataset.kind]))
    inputs = dataset.test.inputs
    if dataset.kind == "image":
        encoded = pictures(inputs[rows])
    elif not isinstance(inputs, Tensor):
        own = inputs.rows[rows]
        encoded = shortened(inputs.encoded(own), [inputs.source.describe(row) for row in own.tolist()])
    else:
        assert dataset.test.rows is not None
        source = source_of(config)
        encoded = recordings(source.name, source.data_root, dataset.test.rows[rows].tolist(), source.on_error)
    files.write_tensors(
        path,
        {
            "rows": rows,
            "ends": torch.tensor([len(file) for file in encoded]).cumsum(0),
            "bytes": torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8),
        },
        {"type": "image/webp" if dataset.kind == "image" else "audio/mpeg"},
    )


def _remarkable(embeddings: Tensor, logits: Tensor, target: Tensor, count: int) -> list[int]:
    """Rows to show: ``count`` at random, then the hardest pairs, the surest errors, and the typical samples of classes.

    Of many classes those come first that samples were taken for with the most certainty.
    """
    rows = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))[:count].tolist()
    for same in (True, False):
        rows += metrics.hardest_pairs(embeddings, target, REMARKABLE, same=same)[0].flatten().tolist()
    errors = metrics.surest_errors(logits, target, TYPICAL)
    rows += errors[:REMARKABLE].tolist()
    typical = metrics.typical_samples(embeddings, target)
    first = dict.fromkeys([*logits[errors].argmax(1).tolist(), *typical])
    rows += [typical[number] for number in first if number in typical][:TYPICAL]
    return list(dict.fromkeys(rows))


def _seconds(log: Path) -> float:
    """What all epochs of a run took."""
    try:
        return sum(float(json.loads(line)["seconds"]) for line in log.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise JobError(f"{log}: cannot be read ({error}); restore it, or train anew") from error


def _class_weights(loss: losses.SimilarityLoss, embeddings: Tensor, target: Tensor) -> Tensor:
    """(C, D): of several sub-centers of a class, the one that most embeddings are nearest to."""
    if isinstance(loss, losses.SubCenterArcFaceLoss):
        return loss.dominant_centers(embeddings.to(loss.weight.device), target.to(loss.weight.device))
    return loss.weight.detach()
