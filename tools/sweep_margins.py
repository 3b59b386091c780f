"""What CS-Softmax's margin and weight update factor buy in the trainings of `cssoftmax compare`, on validation data.

    python tools/sweep_margins.py cifar10 cifar100 --data-root DATA    # more lines into results/defaults/margins
    python tools/sweep_margins.py --table                              # the table of docs/choosing.md, from there

Networks, epochs, learning rates and validation data are those of the trials of tools/run_comparisons.sh: a fifth of
the training split, of ESC-10 the fold after the one that is tested on. The test splits are never measured. A line a
training is written into OUTPUT/DATASET.jsonl; what is there is not trained again.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from cssoftmax import metrics, processor, runs
from cssoftmax.classifier import embed
from cssoftmax.comparison import tuning
from cssoftmax.comparison.protocol import design_of, validation_part
from cssoftmax.comparison.trainings import train_on

EPOCHS = {"mnist": 4, "fsdd": 10, "cifar10": 6, "cifar100": 6, "esc10": 30}
SETTINGS: list[tuple[str, dict[str, float]]] = [
    ("softmax", {}),
    *(("cs-softmax", {"margin": m, "weight_update": u}) for m in (0.1, 0.15, 0.2) for u in (0.0, 0.1, 0.125, 0.25)),
]
SHOWN = ("accuracy", "eer", "inter_class_degrees_mean", "inter_class_degrees_min")

Row = dict[str, Any]
Job = tuple[str, str, dict[str, float], str | None, int, argparse.Namespace]


def one(job: Job) -> Row:
    name, loss, factors, group, seed, arguments = job
    torch.set_num_threads(1)
    source = runs.Source(name, data_root=arguments.data_root)
    dataset = validation_part(source, design_of(source.load(0), "closed", 0), group, 0).known
    amp: runs.Amp = "bf16" if processor.bfloat16_slowdown() < 1 else "no"
    checkpoint = arguments.output / f".{name}-{multiprocessing.current_process().pid}.safetensors"
    checkpoint.unlink(missing_ok=True)  # of a sweep that was killed, perhaps of other settings
    start = time.perf_counter()
    model, accelerator, config = train_on(
        dataset,
        loss,
        tuning.defaults(loss) | factors,
        recipe_changes={"epochs": EPOCHS[name]},
        seed=seed,
        amp=amp,
        cpu=True,
        checkpoint=checkpoint,
    )
    checkpoint.unlink()
    embeddings, logits = embed(model, dataset.test, accelerator=accelerator)
    measures = metrics.measure(embeddings, dataset.test.target, logits)
    return {
        "loss": loss,
        "factors": factors,
        "group": group,
        "seed": seed,
        "settings": {key: value for key, value in config["loss"].items() if key not in ("name", "label_smoothing")},
        **{key: measures[key] for key in SHOWN},
        "seconds": time.perf_counter() - start,
        "recipe": config["recipe"],
        "amp": amp,
        "device": processor.describe("cpu"),
    }


def asked(factors: dict[str, float], arguments: argparse.Namespace) -> bool:
    """Whether a setting is among the margins and factors given; plain softmax has none."""
    only = {"margin": arguments.margins, "weight_update": arguments.factors}
    return all(not only[name] or factors.get(name) in only[name] for name in only)


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(folder: Path) -> str:
    """Means over seeds and folds, as Markdown."""
    parts = []
    for path in sorted(folder.glob("*.jsonl")):
        rows = read(path)
        parts += [
            f"### {path.stem}; {' and '.join(sorted({row['device'] for row in rows}))}",
            "",
            "| | seeds | accuracy, % | equal error rate, % | mean angle | smallest angle |",
            "| :-- | --: | --: | --: | --: | --: |",
        ]
        for loss, factors in SETTINGS:
            own = [row for row in rows if (row["loss"], row["factors"]) == (loss, factors)]
            if own:
                name = f"margin {factors['margin']:g}, u = {factors['weight_update']:g}" if factors else "plain softmax"
                seeds = ", ".join(map(str, sorted({row["seed"] for row in own})))
                accuracy, eer, mean, smallest = (fmean(row[key] for row in own) for key in SHOWN)
                cells = f"{100 * accuracy:.2f} | {100 * eer:.2f} | {mean:.1f}° | {smallest:.1f}°"
                parts.append(f"| {name} | {seeds} | {cells} |")
        parts.append("")
    return "\n".join(parts).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", choices=[[], *EPOCHS])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--margins", nargs="+", type=float, help="these alone")
    parser.add_argument("--factors", nargs="+", type=float, help="these alone")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--output", type=Path, default=Path("results/defaults/margins"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.output))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seeds):
        for name in arguments.datasets:
            path = arguments.output / f"{name}.jsonl"
            done = [(row["loss"], row["factors"], row["group"], row["seed"]) for row in read(path)]
            groups = design_of(runs.Source(name, data_root=arguments.data_root).load(0), "closed", 0).groups
            todo = [
                (name, loss, factors, group, seed, arguments)
                for loss, factors in SETTINGS
                if asked(factors, arguments)
                for group in groups
                if (loss, factors, group, seed) not in done
            ]
            with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool, path.open("a") as file:
                for row in pool.imap_unordered(one, todo):
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    told = " ".join(f"{key} {row[key]:.4f}" for key in SHOWN)
                    print(name, seed, row["group"] or "", row["loss"], row["factors"], told, flush=True)


if __name__ == "__main__":
    main()
