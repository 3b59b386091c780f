"""How the defaults of CS-Softmax were found: a sweep over margin, update factor and scale on validation splits.

    python tools/sweep_defaults.py mnist cifar10 cifar100 --data-root DATA --output results/defaults
    python tools/sweep_defaults.py --table    # the tables of docs/choosing.md, from results/defaults

The test split is never loaded into a decision: a fifth of the training split is held out, a small network is trained on
``--samples`` of the rest, and accuracy and verification error of the held-out part after the last epoch are written, a
line a training, into OUTPUT/DATASET.jsonl. Trainings that are in the file already are not run again.

The scale is swept as the probability p that it gives a perfect embedding: s = log((C - 1) p / (1 - p)) / (P(1) - N(0)).
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from cssoftmax import losses, metrics, processor, recipes, training
from cssoftmax.data import channel_statistics, load_dataset, validation_split
from cssoftmax.networks import NETWORKS, Standardize
from cssoftmax.similarity import default_scale

SMALL = {
    "mnist": {"epochs": 8, "width": 8},
    "cifar10": {"epochs": 8, "width": 8, "embedding_size": 64},
    "cifar100": {"epochs": 8, "width": 8, "embedding_size": 64},
}
FACTORS = ("loss", "margin", "weight_update", "probability", "class_lr_scale")
MIDDLE = ((0.0, 0.0), (0.1, 0.25))


def settings() -> list[dict[str, object]]:
    """The plain softmax, margin x update factor at p = 0.999, the scale around the middle, the class weights' rate."""
    grid = [(m, u, 0.999) for u in (0.0, 0.25, 0.5, 1.0) for m in (0.0, 0.1, 0.2, 0.4)]
    scales = [(m, u, p) for m, u in MIDDLE for p in (0.9, 0.99, 0.9999, 0.99999)]
    cs = [{"loss": "cs-softmax", "margin": m, "weight_update": u, "probability": p} for m, u, p in grid + scales]
    rates = [
        {"loss": "cs-softmax", "margin": m, "weight_update": u, "probability": 0.999, "class_lr_scale": rate}
        for m, u in MIDDLE
        for rate in (0.1, 0.3, 3.0)
    ]
    return [{"loss": "softmax"}, *cs, *rates]


def one(job: tuple[str, dict[str, object], int, argparse.Namespace]) -> dict[str, object]:
    name, setting, seed, arguments = job
    torch.set_num_threads(1)
    dataset = validation_split(load_dataset(name, data_root=arguments.data_root), 0.2, seed=0)
    train = dataset.train
    rows = torch.randperm(len(train.target), generator=torch.Generator().manual_seed(seed))[: arguments.samples]
    train = replace(train, inputs=train.inputs[rows], target=train.target[rows], groups=None)
    recipe = recipes.choose(name, dataset.kind, **SMALL[name])
    recipe = replace(recipe, class_lr_scale=setting.get("class_lr_scale", recipe.class_lr_scale))
    options = {key: setting[key] for key in ("margin", "weight_update") if key in setting}
    loss = losses.build(str(setting["loss"]), recipe.embedding_size, len(dataset.classes), **options)
    if "probability" in setting:
        loss.scale = default_scale(loss.similarity, len(dataset.classes), setting["probability"])
    torch.manual_seed(seed)
    network = NETWORKS[recipe.network](train.inputs.shape[1], recipe.embedding_size, recipe.width)
    loss.reset_parameters()
    model = training.Classifier(torch.nn.Sequential(Standardize(*channel_statistics(train)), network), loss)
    amp = "bf16" if processor.bfloat16_slowdown() < 1 else "no"
    accelerator = Accelerator(cpu=True, mixed_precision=amp)
    start = time.perf_counter()
    checkpoint = arguments.output / f".{name}-{multiprocessing.current_process().pid}.safetensors"
    model = training.fit(model, train, recipe, seed=seed, accelerator=accelerator, checkpoint=checkpoint)
    checkpoint.unlink()
    embeddings, logits = training.embed(model, dataset.test, accelerator=accelerator)
    scores, same = metrics.pair_scores(embeddings, dataset.test.target, seed=0)
    return {
        **setting,
        "seed": seed,
        "scale": loss.scale,
        "accuracy": metrics.top_k_accuracy(logits, dataset.test.target, 1),
        "nll": metrics.negative_log_likelihood(logits, dataset.test.target),
        "eer": metrics.equal_error_rate(scores, same),
        "seconds": time.perf_counter() - start,
        "samples": arguments.samples,
        "recipe": asdict(recipe),
        "amp": amp,
        "device": processor.describe("cpu"),
    }


def tables(folder: Path) -> str:
    """Accuracy / equal error rate in percent, means over seeds, as Markdown."""
    parts = []
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        seeds = sorted({row["seed"] for row in rows})

        def mean(found: list[dict[str, object]]) -> str:
            if not found:
                return "-"
            accuracy, eer = (100 * sum(row[key] for row in found) / len(found) for key in ("accuracy", "eer"))
            return f"{accuracy:.1f} / {eer:.1f}"

        def cell(m: float, u: float, p: float = 0.999, rate: float = 1.0, rows: list[dict[str, object]] = rows) -> str:
            wanted = ("cs-softmax", m, u, p, None if rate == 1 else rate)
            return mean([row for row in rows if tuple(row.get(key) for key in FACTORS) == wanted])

        plain = [row for row in rows if row["loss"] == "softmax"]
        cs = [row for row in rows if row["loss"] == "cs-softmax"]
        margins, factors = (sorted({row[key] for row in cs}) for key in ("margin", "weight_update"))
        probabilities = sorted({row["probability"] for row in cs})
        rates = sorted({row.get("class_lr_scale") or 1.0 for row in cs})
        parts += [
            f"### {path.stem}: seeds {', '.join(map(str, seeds))}; plain softmax {mean(plain)}",
            _markdown(
                ["margin", *(f"u = {u:g}" for u in factors)],
                [[f"{m:g}", *(cell(m, u) for u in factors)] for m in margins],
            ),
            _markdown(
                ["margin, u", *(f"p = {p:g}" for p in probabilities)],
                [[f"{m:g}, {u:g}", *(cell(m, u, p) for p in probabilities)] for m, u in MIDDLE],
            ),
        ]
        if len(rates) > 1:
            parts.append(
                _markdown(
                    ["margin, u", *(f"class weights' rate x {rate:g}" for rate in rates)],
                    [[f"{m:g}, {u:g}", *(cell(m, u, 0.999, rate) for rate in rates)] for m, u in MIDDLE],
                )
            )
    return "\n\n".join(parts)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", choices=[[], *SMALL])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--output", type=Path, default=Path("results/defaults"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.table:
        print(tables(arguments.output))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        for name in arguments.datasets:
            path = arguments.output / f"{name}.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            done = [{key: json.loads(line).get(key) for key in (*FACTORS, "seed")} for line in lines]
            todo = [
                (name, setting, seed, arguments)
                for setting in settings()
                if {**dict.fromkeys(FACTORS), **setting, "seed": seed} not in done
            ]
            with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool, path.open("a") as file:
                for result in pool.imap_unordered(one, todo):
                    file.write(json.dumps(result) + "\n")
                    file.flush()
                    shown = {key: result[key] for key in FACTORS if key in result}
                    print(name, shown, f"accuracy {result['accuracy']:.4f} eer {result['eer']:.4f}", flush=True)


if __name__ == "__main__":
    main()
