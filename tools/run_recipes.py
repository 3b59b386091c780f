"""Trains the best recipes and writes results/summary.json, from which `make results-table` makes the tables.

    python tools/run_recipes.py                            # all of them, the short ones first
    python tools/run_recipes.py mnist fsdd --seeds 5       # some; more seeds than before are added
    python tools/run_recipes.py --jobs 2 --amp no          # two trainings at a time, in float32
    python tools/run_recipes.py --gpu                      # five seeds of everything, and larger networks

Each is one `cssoftmax compare` with CS-Softmax and plain softmax into results/recipes/NAME, interrupted by Ctrl-C and
gone on with by the same command. Rows appear as comparisons end.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "recipes"
SUMMARY = ROOT / "results" / "summary.json"

# Arguments of `cssoftmax compare`, and seeds: three where a training takes less than half an hour on two cores.
COMPARISONS = {
    "fsdd": ("fsdd", 3),
    "fsdd-speakers": ("fsdd --by-group", 1),
    "esc10": ("esc10", 1),
    "mnist": ("mnist", 3),
    "mnist-plain3": ("mnist --network plain3 --width 16", 1),
    "mnist-plain7": ("mnist --network plain7 --width 48", 1),
    "cifar10": ("cifar10", 1),
    "cifar100": ("cifar100", 1),
}
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
    if arguments.gpu:
        arguments.seeds, arguments.jobs = arguments.seeds or 5, max(arguments.jobs, 4)
    for name in arguments.names or (known if arguments.gpu else COMPARISONS):
        words, seeds = known[name]
        command = [sys.executable, "-m", "cssoftmax", "compare", *shlex.split(words), "--recipe", "best"]
        command += ["--losses", "cs-softmax,softmax", "--seeds", str(arguments.seeds or seeds), "--amp", arguments.amp]
        command += ["--jobs", str(arguments.jobs), "--output", str(RESULTS / name)]
        if arguments.data_root:
            command += ["--data-root", arguments.data_root]
        print(f"== {name}", file=sys.stderr, flush=True)
        code = subprocess.run(command, cwd=ROOT).returncode
        if code:
            return code
        write_rows(name)
    return 0


def write_rows(name: str) -> None:
    """Puts the comparison's rows, one a loss, in the place of those it had."""
    rows = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else []
    rows = [row for row in rows if row["name"] != name] + rows_of(name)
    order = [*COMPARISONS, *ON_GPU]
    rows.sort(key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))
    SUMMARY.write_text(json.dumps(rows, indent=1) + "\n")


def rows_of(name: str) -> list[dict[str, Any]]:
    result = json.loads((RESULTS / name / "comparison.json").read_text())
    runs = [json.loads(line) for line in (RESULTS / name / "runs.jsonl").read_text().splitlines()]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    rows = []
    for loss in result["losses"]:
        own = [run for run in runs if run["loss"] == loss]
        accuracy = {key: result["measures"][key][loss]["values"] for key in ("accuracy", "accuracy_tta")}
        rows.append(
            {
                "name": name,
                "dataset": result["dataset"],
                "split": f"every one of {len(result['groups'])} in turn" if len(result["groups"]) > 1 else "test",
                "recipe": f"{result['recipe']['network']}, {result['recipe']['epochs']} epochs",
                "loss": loss,
                "seeds": result["seeds"],
                **{key: [round(100 * value, 4) for value in values] for key, values in accuracy.items()},
                "parameters": own[0]["parameters"],
                "flops": statistics.fmean(run["flops"] for run in own),
                "seconds": statistics.fmean(run["seconds"] for run in own),
                "device": ", ".join(sorted({run["device"] for run in own})),
                "versions": result["versions"],
                "command": result["command"],
                "commit": commit.stdout.strip(),
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
