"""Run folders with what a training would leave in them: clusters on a sphere around the class weights."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from cssoftmax import files
from cssoftmax.data import pictures


@pytest.fixture
def write_samples():
    def write(folder, rows, encoded, kind):
        tensors = {
            "rows": torch.tensor(list(rows)),
            "ends": torch.tensor([len(file) for file in encoded]).cumsum(0),
            "bytes": torch.frombuffer(bytearray(b"".join(encoded)), dtype=torch.uint8),
        }
        files.write_tensors(folder / "samples.safetensors", tensors, {"type": kind})

    return write


@pytest.fixture
def make_run(tmp_path, write_samples):
    def make(
        name="run", classes=4, size=8, samples=120, noise=0.1, names=None, loss=None, measures=None, seed=0, shown=0
    ):
        folder = tmp_path / name
        folder.mkdir()
        generator = torch.Generator().manual_seed(seed)
        if size == 2:
            angles = torch.arange(classes) * 2 * math.pi / classes
            weights = torch.stack([angles.cos(), angles.sin()], 1)
        else:
            weights = normalize(torch.randn(classes, size, generator=generator), dim=1)
        target = torch.arange(samples) % classes
        embeddings = 5 * normalize(weights[target] + noise * torch.randn(samples, size, generator=generator), dim=1)
        logits = 30 * normalize(embeddings, dim=1) @ weights.T
        names = names or [f"class {index}" for index in range(classes)]
        config = {
            "source": {"name": "digits", "data_root": None, "validation": 0.0},
            "classes": names,
            "kind": "image",
            "loss": loss or {"name": "cs-softmax", "margin": 0.2, "scale": 30.0, "weight_update": 0.5},
            "recipe": {"network": "small", "epochs": 3, "batch_size": 64, "lr": 0.1, "augment": {"shift": 2}},
            "seed": seed,
            "versions": {"torch": "2.13.0"},
        }
        epochs = [
            {"epoch": e, "train_loss": 9.0 / e, "train_accuracy": 1 - 0.1 / e, "eval_loss": 1.0 / e}
            | {"eval_accuracy": 1 - 0.2 / e, "lr": 0.1, "seconds": 2.0}
            for e in (1, 2, 3)
        ]
        summary = {
            "dataset": "digits",
            "split": "test",
            "loss": config["loss"]["name"],
            "measures": {"accuracy": 0.9, "nll": 0.25, "eer": 0.05} if measures is None else measures,
            "parameters": 12345,
            "seconds": 6.0,
            "device": "cpu",
            "versions": {"torch": "2.13.0"},
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "weights.safetensors").write_bytes(b"")
        save_file(
            {"embeddings": embeddings, "target": target, "logits": logits, "class_weights": 2 * weights},
            folder / "evaluation.safetensors",
        )
        if shown:
            images = torch.randint(256, (shown, 3, 8, 8), generator=generator, dtype=torch.uint8)
            write_samples(folder, range(shown), pictures(images), "image/webp")
        return folder

    return make
