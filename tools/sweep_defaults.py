"""How the defaults of CS-Softmax and the class weights' rate were found: sweeps on validation splits.

    python tools/sweep_defaults.py mnist cifar10 cifar100 --data-root DATA --output results/defaults
    python tools/sweep_defaults.py cifar10 cifar100 --part rates --data-root DATA    # one part alone
    python tools/sweep_defaults.py cifar10-2 cifar100-20 --part classes --data-root DATA    # the first 2, the first 20
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
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from cssoftmax import losses, metrics, processor, recipes, training
from cssoftmax.classifier import Classifier, embed
from cssoftmax.data import channel_statistics, hold_out_classes, load_dataset, validation_split
from cssoftmax.networks import NETWORKS, Standardize
from cssoftmax.similarity import default_scale

SMALL = {
    "mnist": {"epochs": 8, "width": 8},
    "cifar10": {"epochs": 8, "width": 8, "embedding_size": 64},
    "cifar100": {"epochs": 8, "width": 8, "embedding_size": 64},
    "cifar10-2": {"epochs": 16, "width": 8, "embedding_size": 64},
    "cifar100-20": {"epochs": 16, "width": 8, "embedding_size": 64},
}
FACTORS = ("loss", "margin", "weight_update", "probability", "class_lr_scale")
MIDDLE = ((0.0, 0.0), (0.1, 0.25))
RATES = (0.003, 0.01, 0.03, 0.1)


Row = dict[str, Any]
PLAIN: Row = {"loss": "softmax"}


def settings() -> dict[str, list[Row]]:
    """Margin x update factor at p = 0.999, the scale around the middle, the class weights' rate, and the scale where
    classes are few; each with softmax.
    """

    def cs(margin: float, factor: float, probability: float = 0.999) -> Row:
        return {"loss": "cs-softmax", "margin": margin, "weight_update": factor, "probability": probability}

    both = (PLAIN, cs(*MIDDLE[1]))
    return {
        "margins": [PLAIN, *(cs(m, u) for u in (0.0, 0.25, 0.5, 1.0) for m in (0.0, 0.1, 0.2, 0.4))],
        "scales": [PLAIN, *(cs(m, u, p) for m, u in MIDDLE for p in (0.9, 0.99, 0.999, 0.9999, 0.99999))],
        "rates": [*both, *(one | {"class_lr_scale": rate} for rate in RATES for one in both)],
        "classes": [PLAIN, *(cs(*MIDDLE[1], p) for p in (0.65, 0.9, 0.99, 0.999))],
    }


def one(job: tuple[str, Row, int, argparse.Namespace]) -> Row:
    name, setting, seed, arguments = job
    torch.set_num_threads(1)
    whole, _, few = name.partition("-")
    dataset = load_dataset(whole, data_root=arguments.data_root)
    if few:
        dataset, _ = hold_out_classes(dataset, dataset.classes[int(few) :])
    dataset = validation_split(dataset, 0.2, seed=0)
    train = dataset.train
    rows = torch.randperm(len(train.target), generator=torch.Generator().manual_seed(seed))[: arguments.samples]
    train = replace(train, inputs=train.inputs[rows], target=train.target[rows], groups=None)
    recipe = recipes.choose(whole, dataset.kind, **SMALL[name])
    recipe = replace(recipe, class_lr_scale=setting["class_lr_scale"])
    options = {key: setting[key] for key in ("margin", "weight_update") if key in setting}
    loss = losses.build(str(setting["loss"]), recipe.embedding_size, len(dataset.classes), **options)
    if "probability" in setting:
        loss.scale = default_scale(loss.similarity, len(dataset.classes), setting["probability"])
    torch.manual_seed(seed)
    network = NETWORKS[recipe.network](train.inputs.shape[1], recipe.embedding_size, recipe.width)
    loss.reset_parameters()
    model = Classifier(torch.nn.Sequential(Standardize(*channel_statistics(train)), network), loss)
    amp = "bf16" if processor.bfloat16_slowdown() < 1 else "no"
    accelerator = Accelerator(cpu=True, mixed_precision=amp)
    start = time.perf_counter()
    checkpoint = arguments.output / f".{name}-{multiprocessing.current_process().pid}.safetensors"
    model = training.fit(model, train, recipe, seed=seed, accelerator=accelerator, checkpoint=checkpoint)
    checkpoint.unlink()
    embeddings, logits = embed(model, dataset.test, accelerator=accelerator)
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


def read(path: Path) -> list[Row]:
    """The trainings in a file, each with the class weights' rate that it had."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row | {"class_lr_scale": row["recipe"]["class_lr_scale"]} for row in rows]


def at_usual_rate(rows: list[Row]) -> tuple[float, list[Row]]:
    """The class weights' rate that most trainings had, and these."""
    rate = Counter(row["class_lr_scale"] for row in rows).most_common(1)[0][0]
    return rate, [row for row in rows if row["class_lr_scale"] == rate]


def tables(folder: Path) -> str:
    """Accuracy / equal error rate in percent, means over seeds, as Markdown."""
    parts = []
    for path in sorted(folder.glob("*.jsonl")):
        everything = read(path)
        rate, rows = at_usual_rate(everything)
        cs = [row for row in rows if row["loss"] == "cs-softmax"]
        margins, factors, probabilities = (
            sorted({row[key] for row in cs}) for key in ("margin", "weight_update", "probability")
        )
        rates = _rates(everything)
        # Only seeds that every cell has: the means of one table are over the same ones.
        seeds = set.intersection(*_seeds_of(rows).values())
        rows, cs = ([row for row in some if row["seed"] in seeds] for some in (rows, cs))
        plain = _mean(rows, loss="softmax")
        parts += [
            f"### {path.stem}: {_in_words(seeds)}; class weights' rate {rate:g} times the network's; "
            f"plain softmax {plain}",
        ]
        if len(margins) > 1:
            parts.append(
                _markdown(
                    ["margin", *(f"u = {u:g}" for u in factors)],
                    [
                        [f"{m:g}", *(_mean(cs, margin=m, weight_update=u, probability=0.999) for u in factors)]
                        for m in margins
                    ],
                )
            )
        parts.append(
            _markdown(
                ["margin, u", *(f"p = {p:g}" for p in probabilities)],
                [
                    [f"{m:g}, {u:g}", *(_mean(cs, margin=m, weight_update=u, probability=p) for p in probabilities)]
                    for m, u in MIDDLE
                    if m in margins
                ],
            )
        )
        seeds = set.intersection(*_seeds_of(rates).values())
        rates = [row for row in rates if row["seed"] in seeds]
        shares = sorted({row["class_lr_scale"] for row in rates})
        if len(shares) > 1:
            parts.append(
                _markdown(
                    [f"class weights' rate, {_in_words(seeds)}", *(f"{share:g}" for share in shares)],
                    [
                        [loss, *(_mean(rates, loss=loss, class_lr_scale=share) for share in shares)]
                        for loss in ("softmax", "cs-softmax")
                    ],
                )
            )
    return "\n\n".join(parts)


def _rates(rows: list[Row]) -> list[Row]:
    """Those of the plain softmax and of CS-Softmax's defaults, at any rate of the class weights."""
    usual = dict(zip(("margin", "weight_update", "probability"), (*MIDDLE[1], 0.999), strict=True))
    return [row for row in rows if row["loss"] == "softmax" or usual.items() <= row.items()]


def _seeds_of(rows: list[Row]) -> dict[tuple[object, ...], set[int]]:
    found: dict[tuple[object, ...], set[int]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key) for key in FACTORS), set()).add(row["seed"])
    return found


def _in_words(seeds: set[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"


def _mean(rows: list[Row], **wanted: object) -> str:
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    if not found:
        return "-"
    accuracy, eer = (100 * sum(row[key] for row in found) / len(found) for key in ("accuracy", "eer"))
    return f"{accuracy:.1f} / {eer:.1f}"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", choices=[[], *SMALL])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--part", nargs="+", choices=list(settings()), default=["margins", "scales", "rates"])
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
            done = [{key: row.get(key) for key in (*FACTORS, "seed")} for row in read(path)]
            usual = dict.fromkeys(FACTORS) | {
                "class_lr_scale": recipes.NAMED[name.partition("-")[0]].class_lr_scale,
                "seed": seed,
            }
            wanted = [usual | setting for part in arguments.part for setting in settings()[part]]
            todo = [
                (name, {key: value for key, value in setting.items() if value is not None}, seed, arguments)
                for place, setting in enumerate(wanted)
                if setting not in done and setting not in wanted[:place]
            ]
            with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool, path.open("a") as file:
                for result in pool.imap_unordered(one, todo):
                    file.write(json.dumps(result) + "\n")
                    file.flush()
                    shown = {key: result[key] for key in FACTORS if key in result}
                    print(name, shown, f"accuracy {result['accuracy']:.4f} eer {result['eer']:.4f}", flush=True)


if __name__ == "__main__":
    main()
