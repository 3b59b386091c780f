"""Trains the best recipes and writes results/summary.json, from which `make results-table` makes the tables.

    python tools/run_recipes.py                            # all of them, the short ones first
    python tools/run_recipes.py mnist fsdd --seeds 5       # some; more seeds than before are added
    python tools/run_recipes.py --jobs 2 --amp no          # two trainings at a time, in float32
    python tools/run_recipes.py --gpu                      # five seeds of everything, and larger networks

Each is one `cssoftmax compare` with CS-Softmax and plain softmax into results/recipes/NAME, interrupted by Ctrl-C and
gone on with by the same command: what is in settings.json and runs.jsonl there is not trained again, wherever it was
trained. Rows appear as comparisons end or are interrupted.
"""

import argparse
import json
import shlex
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cssoftmax.runs import versions

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "recipes"
SUMMARY = ROOT / "results" / "summary.json"

# Arguments of `cssoftmax compare`, and seeds: three where a training takes less than half an hour on two cores.
COMPARISONS = {
    "fsdd": ("fsdd", 3),
    "fsdd-speakers": ("fsdd --by-group", 1),
    "esc10": ("esc10", 3),
    "mnist": ("mnist", 3),
    "mnist-plain5": ("mnist --network plain5 --width 24", 1),
    "mnist-plain7": ("mnist --network plain7 --width 36", 1),
    "cifar10": ("cifar10", 1),
    "cifar100": ("cifar100", 1),
}
# Networks that tell a digit's class together, the first where no two agree.
VOTE, VOTERS = "mnist-vote", ("mnist", "mnist-plain5", "mnist-plain7")
# Where a GPU trains: networks that no CPU should be asked to.
ON_GPU = {
    "cifar10-wide": ("cifar10 --network wideresnet --width 160", 3),
    "cifar100-wide": ("cifar100 --network wideresnet --width 160", 3),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = COMPARISONS | ON_GPU
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--seeds", type=int, help="instead of each comparison's own number")
    parser.add_argument("--amp", default="bf16", choices=("no", "bf16", "fp16"))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--gpu", action="store_true", help="everything: five seeds, four trainings at a time, and more")
    parser.add_argument("--data-root", help="folder that holds the data sets")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the comparison, too, which saves what it has
    if arguments.gpu:
        arguments.seeds, arguments.jobs = arguments.seeds or 5, max(arguments.jobs, 4)
    for name in arguments.names or (known if arguments.gpu else COMPARISONS):
        words, seeds = known[name]
        plain = ["compare", *shlex.split(words), "--recipe", "best", "--losses", "cs-softmax,softmax"]
        plain += ["--seeds", str(arguments.seeds or seeds), "--amp", arguments.amp]
        command = [sys.executable, "-m", "cssoftmax", *plain, "--jobs", str(arguments.jobs)]
        command += ["--output", str(RESULTS / name)]
        if arguments.data_root:
            command += ["--data-root", arguments.data_root]
        print(f"== {name}", file=sys.stderr, flush=True)
        code = subprocess.run(command, cwd=ROOT).returncode
        if (RESULTS / name / "runs.jsonl").exists():
            if name in VOTERS:
                keep_predictions(name)
            write_rows(name, rows_of(name, shlex.join(["cssoftmax", *plain])))
            write_rows(VOTE, rows_of_vote())
        if code:
            return code
    return 0


def write_rows(name: str, new: list[dict[str, Any]]) -> None:
    """Puts the comparison's rows, one a loss, in the place of those it had.

    One with nothing newly trained stays: its versions and commit are those of the training.
    """
    rows = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else []
    trained = {(row["loss"], *row["seeds"], *row["accuracy"]): row for row in rows if row["name"] == name}
    new = [trained.get((row["loss"], *row["seeds"], *row["accuracy"]), row) for row in new]
    rows = [row for row in rows if row["name"] != name] + new
    order = [*COMPARISONS, VOTE, *ON_GPU]
    rows.sort(key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))
    SUMMARY.write_text(json.dumps(rows, indent=1) + "\n")


def rows_of(name: str, command: str) -> list[dict[str, Any]]:
    """A row for each loss that has a seed with all its trainings done."""
    settings = json.loads((RESULTS / name / "settings.json").read_text())
    runs = [json.loads(line) for line in (RESULTS / name / "runs.jsonl").read_text().splitlines()]
    groups, recipe, rows = settings["groups"], settings["recipe"], []
    for loss in settings["losses"]:
        by_seed: dict[int, list[dict[str, Any]]] = {}
        for run in runs:
            if run["loss"] == loss:
                by_seed.setdefault(run["seed"], []).append(run)
        done = {seed: own for seed, own in sorted(by_seed.items()) if len(own) == len(groups)}
        if not done:
            continue
        own = [run for seed in done for run in done[seed]]
        rows.append(
            {
                "name": name,
                "dataset": settings["dataset"],
                "split": f"every one of {len(groups)} in turn" if len(groups) > 1 else "test",
                "recipe": f"{recipe['network']}, {recipe['epochs']} epochs",
                "loss": loss,
                "seeds": list(done),
                **{key: [percent(done[seed], key) for seed in done] for key in ("accuracy", "accuracy_tta")},
                "parameters": own[0]["parameters"],
                "flops": statistics.fmean(run["flops"] for run in own),
                "seconds": statistics.fmean(run["seconds"] for run in own),
                "device": ", ".join(sorted({run["device"] for run in own})),
                "versions": versions(),
                "command": command,
                "commit": commit(),
            }
        )
    return rows


def percent(runs: list[dict[str, Any]], measure: str) -> float:
    return round(100 * statistics.fmean(run["measures"][measure] for run in runs), 4)


def keep_predictions(name: str) -> None:
    """The class that each run told of each test sample, beside the comparison: runs themselves are not kept."""
    path = RESULTS / name / "predictions.safetensors"
    kept = load_file(path) if path.exists() else {}
    for run in sorted((RESULTS / name / "runs").glob("*/evaluation.safetensors")):
        evaluated = load_file(run)
        kept[run.parent.name] = evaluated["logits"].argmax(1).to(torch.uint8)
        kept["target"] = evaluated["target"].to(torch.uint8)
    save_file(kept, path)


def rows_of_vote() -> list[dict[str, Any]]:
    """Of the three MNIST networks: the class that two of them tell, or else the first's."""
    paths = [RESULTS / name / "predictions.safetensors" for name in VOTERS]
    if not all(path.exists() for path in paths):
        return []
    told = [load_file(path) for path in paths]
    rows = []
    parts = [row for row in json.loads(SUMMARY.read_text()) if row["name"] in VOTERS]
    for loss in dict.fromkeys(row["loss"] for row in parts):
        own = [row for row in parts if row["loss"] == loss]
        seeds = [seed for seed in range(1000) if all(f"{loss}-{seed}" in one for one in told)]
        if not seeds:
            continue
        accuracy = []
        for seed in seeds:
            first, second, third = (one[f"{loss}-{seed}"] for one in told)
            voted = torch.where(second == third, second, first)
            accuracy.append(round(100 * float((voted == told[0]["target"]).double().mean()), 4))
        rows.append(
            own[0]
            | {
                "name": VOTE,
                "recipe": f"vote of {' + '.join(row['recipe'].split(',')[0] for row in own)}",
                "seeds": seeds,
                "accuracy": accuracy,
                "accuracy_tta": [],
                **{key: sum(row[key] for row in own) for key in ("parameters", "flops", "seconds")},
                "command": f"python tools/run_recipes.py {' '.join(VOTERS)}",
            }
        )
    return rows


def commit() -> str:
    head = ["git", "rev-parse", "HEAD"]
    return subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
