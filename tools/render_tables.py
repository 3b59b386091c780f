"""Writes the tables of README and docs from results/, so that no number is typed by hand.

    python tools/render_tables.py           # or make results-table
    python tools/render_tables.py --check   # exit code 1 if a table is not what results/ says

A table stands between `<!-- table NAME -->` and `<!-- /table -->`; NAME is a key of TABLES.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sweep_defaults import tables as defaults_table
from sweep_margins import table as margins_table

from cssoftmax import bench
from cssoftmax.metrics import format_difference
from cssoftmax.report import conclusion, summary_table
from cssoftmax.report.comparison import BY_KEY as MEASURES
from cssoftmax.report.comparison import MARKS
from cssoftmax.report.markdown import escape, markdown

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMPARISONS = ROOT / "results" / "comparisons"
# What the short table shows of each protocol, and what the long one shows beside the protocol's headline measures.
SHORT = {
    "closed": ("accuracy", "eer", "inter_class_degrees_min"),
    "verification": ("eer", "recall_at_1"),
    "open": ("accuracy", "unknown_auroc_cosine", "unknown_auroc_probability"),
}
FAMILY = "-family"
"""How the names of comparisons of all losses end: too many for columns, they are on the long page alone, as rows."""
DETAILS = ("nll", "ece", "intra_class_degrees_mean", "tar_at_far_1e_3", "map_at_r")
MARKER = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def comparisons(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """The name and the result of each comparison there."""
    return [(path.parent.name, json.loads(path.read_text())) for path in sorted(folder.glob("*/comparison.json"))]


def results_table() -> str:
    """The headline measures of every comparison, a column a loss."""
    found = [(name, result) for name, result in comparisons(COMPARISONS) if not name.endswith(FAMILY)]
    if not found:
        return "No comparison has been run yet."
    losses = list(dict.fromkeys(loss for _, result in found for loss in result["losses"]))
    table = [["data", "measure", *losses]]
    for _, result in found:
        (_, *names), *rows = summary_table(result)
        what = f"{result['dataset']}, {result['protocol']}"
        for key, row in zip(result["measures"], rows, strict=True):
            if key in SHORT[result["protocol"]]:
                cells = dict(zip(names, row[1:], strict=True))
                table.append([what, row[0], *(cells.get(loss, "-") for loss in losses)])
                what = ""
    return markdown(table)


def gains_table() -> str:
    """CS-Softmax less plain softmax in the headline measures of every comparison of the closed protocol."""
    found = [
        result
        for name, result in comparisons(COMPARISONS)
        if result["protocol"] == "closed" and not name.endswith(FAMILY)
    ]
    if not found:
        return "No comparison has been run yet."
    measures = [MEASURES[key] for key in found[0]["headlines"]]
    table = [["data", "seeds", *(measure.title for measure in measures)]]
    for result in found:
        own = [result["differences"][measure.key]["cs-softmax"] for measure in measures]
        cells = [
            format_difference(measure, difference["mean"]) + MARKS.get(difference["verdict"], "")
            for measure, difference in zip(measures, own, strict=True)
        ]
        table.append([result["dataset"], str(len(result["seeds"])), *cells])
    return markdown(table)


def comparisons_table() -> str:
    """Every comparison of results/comparisons: what was compared, its command, what is real, measures and picture."""
    parts = []
    for name, result in comparisons(COMPARISONS):
        header, *rows = summary_table(result)
        headlines = [key for key in result["headlines"] if key in result["measures"]]
        measured = zip(result["measures"], rows, strict=True)
        table = [header, *(row for key, row in measured if key in (*headlines, *DETAILS))]
        whole = name.endswith(FAMILY)
        title = f"{result['dataset']}, {result['protocol']}" + (", all losses" if whole else "")
        parts += [
            f"### {title}",
            f"{result['recipe']['network']} of width {result['recipe']['width']}, {result['epochs']} epochs, "
            f"{len(result['seeds'])} seeds, {result['tune']} trials a loss"
            + (f", {len(result['groups'])} rotations" if len(result["groups"]) > 1 else "")
            + f"; {' and '.join(result['devices'])}. Everything: `results/comparisons/{name}/comparison.md`.",
            f"    {result['command']}",
            "\n".join(f"- {escape(conclusion(result, key))}" for key in headlines),
            markdown(_turned(table) if whole else table),
            f"![Seeds of every loss, {title}](images/comparison-{name}.png)",
        ]
    return "\n\n".join(parts) or "No comparison has been run yet."


def copied_pictures(check: bool) -> list[Path]:
    """The comparisons' pictures among those of the pages; which were not there, or others."""
    stale = []
    for name, _ in comparisons(COMPARISONS):
        picture, copy = COMPARISONS / name / "comparison.png", ROOT / "docs" / "images" / f"comparison-{name}.png"
        if not copy.exists() or copy.read_bytes() != picture.read_bytes():
            stale.append(copy)
            if not check:
                copy.write_bytes(picture.read_bytes())
    return stale


def recipes_table() -> str:
    """Every row of results/summary.json; accuracy in percent, mean and deviation over the seeds."""
    path = ROOT / "results" / "summary.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    if not rows:
        return "No recipe has been run yet."
    table = [["Data", "Loss", "Seeds", "Accuracy", "averaged over views", "Parameters", "PFLOP", "Minutes", "Device"]]
    for row in rows:
        table.append(
            [
                row["dataset"] + ("" if row["split"] == "test" else f" ({row['split']})") + f": {row['recipe']}",
                row["loss"],
                str(len(row["seeds"])),
                *(spread(row[key]) if row[key] else "" for key in ("accuracy", "accuracy_tta")),
                f"{row['parameters']:,}",
                f"{row['flops'] / 1e15:.2f}",
                f"{row['seconds'] / 60:.0f}",
                row["device"],
            ]
        )
    commands = "\n".join(f"- `{command}`" for command in dict.fromkeys(row["command"] for row in rows))
    return f"{markdown(table)}\n\n{commands}"


def spread(values: list[float]) -> str:
    """Mean and deviation.

    >>> spread([99.5, 99.7]), spread([95.46])
    ('99.60 ± 0.14', '95.46')
    """
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def bench_tables() -> str:
    """Time and memory of the heads, a column a shape, from results/bench/head.json; how they were measured."""
    path = ROOT / "results" / "bench" / "head.json"
    if not path.exists():
        return "Not measured yet."
    setting, found = bench.read(path)
    shapes = list(dict.fromkeys(m.shape for m in found))
    heads = list(dict.fromkeys(m.head for m in found))
    at = {(m.head, m.shape): m for m in found}
    base = {m.shape: m.seconds for m in found if m.head == bench.BASELINE}
    products = {m.shape: m.limit * m.seconds for m in found}

    def cell(head: str, shape: bench.Shape, memory: bool) -> str:
        m = at.get((head, shape))
        if m is None or (memory and (m.memory is None or m.process is None)):
            return "-"
        if memory:
            return f"{(m.memory or 0) / 2**20:,.0f} ({(m.process or 0) / 2**20:,.0f})"
        milliseconds = f"{1000 * m.seconds:,.{2 if m.seconds < 0.01 else 0}f}"
        return f"{milliseconds} ({m.seconds / base[shape]:.2f})" if shape in base else milliseconds

    times, memories = (
        [[f"{s.rows}, {s.features}, {s.classes:,}", *(cell(head, s, memory) for head in heads)] for s in shapes]
        for memory in (False, True)
    )
    floor = [f"{1000 * products[s]:,.{2 if products[s] < 0.01 else 0}f} ({products[s] / base[s]:.2f})" for s in shapes]
    times = [[*row, least] for row, least in zip(times, floor, strict=True)]
    versions = ", ".join(f"{name} {value}" for name, value in setting["versions"].items())
    return "\n\n".join(
        [
            f"{setting['processor']}; {versions}; float32 products by {setting['matmul']}. Milliseconds of a step, and "
            "in brackets how many times Linear + CE that is:",
            markdown(_turned([["N, D, C", *heads, "the three products alone"], *times])),
            "MiB beyond inputs, class weights and their gradients, and in brackets of the whole process:",
            markdown(_turned([["N, D, C", *heads], *memories])),
            "\n".join(f"- `{command}`" for command in setting["commands"]),
        ]
    )


def growth_table() -> str:
    """Time per class over the number of classes, from results/bench/growth/head.json."""
    path = ROOT / "results" / "bench" / "growth" / "head.json"
    if not path.exists():
        return "Not measured yet."
    setting, found = bench.read(path)
    rows = [
        [m.head, f"{m.shape.rows}, {m.shape.features}, {m.shape.classes:,}", f"{1e6 * m.seconds / m.shape.classes:.2f}"]
        for m in sorted(found, key=lambda m: m.head)
    ]
    return "\n\n".join([f"`{setting['commands'][0]}`", markdown([["head", "N, D, C", "microseconds a class"], *rows])])


def _turned(rows: list[list[str]]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]


def step_table() -> str:
    """A whole training step, from results/bench/step.json."""
    path = ROOT / "results" / "bench" / "step.json"
    if not path.exists():
        return "Not measured yet."
    result = json.loads(path.read_text())
    rows = [list(row) for row in bench.step_table([bench.Step(**step) for step in result["steps"]])]
    return f"{result['title']}; {result['processor']}; `{result['commands'][0]}`\n\n{markdown(rows)}"


def kills_table() -> str:
    result = json.loads((ROOT / "results" / "faults" / "kills.json").read_text())
    rows = [["", "training", "comparison", "embedding"]]
    for what in ("killed", "done", "half-written files", "did not go on", "another outcome"):
        rows.append([what, *(f"{result.get(f'{work}: {what}', 0):,}" for work in ("train", "compare", "embed"))])
    return markdown(rows)


def fuzz_table() -> str:
    result = json.loads((ROOT / "results" / "faults" / "fuzz.json").read_text())
    rows = [["", "used", "refused in one line", "went wrong"]]
    for kind in ("image", "sound", "parquet"):
        counts = {key.partition(": ")[2]: count for key, count in result["counts"].items() if key.startswith(kind)}
        used, refused = counts.pop("used", 0), counts.pop("refused", 0)
        rows.append([kind, f"{used:,}", f"{refused:,}", f"{sum(counts.values()):,}"])
    return markdown(rows)


def soak_training_table() -> str:
    result = json.loads((ROOT / "results" / "faults" / "soak_training.json").read_text())
    rows = [["data", "epochs", "steps", "memory, second quarter", "last quarter", "open files", "threads"]]
    for kind in ("in memory", "streamed"):
        part = result[kind]
        memory, opened, threads = (part[what] for what in ("MB", "open files", "threads"))
        rows.append(
            [
                kind,
                *(f"{part[what]:,}" for what in ("epochs", "steps")),
                *(f"{memory[quarter]:,.1f} MB" for quarter in ("second quarter", "last quarter")),
                *(f"{used['second quarter']:g}, {used['last quarter']:g}" for used in (opened, threads)),
            ]
        )
    return markdown(rows)


def soak_loss_table() -> str:
    result = json.loads((ROOT / "results" / "faults" / "soak.json").read_text())
    counts = result["counts"]
    rows = [["steps", "float32", "bfloat16", "float16", "NaN, or infinite, from finite input"]]
    wrong = sum(count for what, count in counts.items() if what.startswith("wrong"))
    rows.append([f"{number:,}" for number in (result["steps"], *(counts.get(k, 0) for k in HALVES), wrong)])
    by_code = ", ".join(f"{steps:,} of version {code}" for code, steps in result["steps by code"].items())
    return f"{markdown(rows)}\n\nSteps by the digest of the code they went through: {by_code}."


def environments_table() -> str:
    results = json.loads((ROOT / "results" / "faults" / "environments.json").read_text())
    rows = [["environment", "Python", "torch", "numpy", "outcome"]]
    for name, result in results.items():
        versions = {key.lower(): version for key, version in result.get("versions", {}).items()}
        outcome = result["tests"] if result["installed"] else "cannot be installed"
        rows.append([name, result.get("python", ""), *(versions.get(key, "") for key in ("torch", "numpy")), outcome])
    return markdown(rows)


HALVES = ("float32", "bfloat16", "float16")
TABLES = {
    "bench": bench_tables,
    "step": step_table,
    "growth": growth_table,
    "kills": kills_table,
    "fuzz": fuzz_table,
    "soak-training": soak_training_table,
    "soak-loss": soak_loss_table,
    "environments": environments_table,
    "recipes": recipes_table,
    "results": results_table,
    "comparisons": comparisons_table,
    "gains": gains_table,
    "defaults": lambda: defaults_table(ROOT / "results" / "defaults"),
    "margins": lambda: margins_table(ROOT / "results" / "defaults" / "margins"),
}


def render(text: str) -> str:
    return MARKER.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; tell by the exit code")
    check = parser.parse_args().check
    stale = copied_pictures(check)
    for page in PAGES:
        text = page.read_text()
        if (fresh := render(text)) != text:
            stale.append(page)
            if not check:
                page.write_text(fresh)
    verdict = "is not what results/ says; run make results-table" if check else "written"
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {verdict}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
