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

from cssoftmax.metrics import MEASURES
from cssoftmax.report import summary_table
from cssoftmax.report.markdown import markdown

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEADLINES = ("accuracy", "intra_class_degrees_mean", "inter_class_degrees_min", "eer", "tar_at_far_1e_3", "map_at_r")
MARKER = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def comparisons(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/comparison.json"))]


def results_table() -> str:
    """Every comparison of results/: what was measured, the headline measures, and the command."""
    titles = {measure.title for measure in MEASURES if measure.key in HEADLINES}
    parts = []
    for result in comparisons(ROOT / "results"):
        header, *rows = summary_table(result)
        seeds = f"{len(result['seeds'])} seeds" if len(result["seeds"]) > 1 else "one seed"
        parts += [
            f"**{result['dataset']}**, {result['recipe']['network']}, {result['epochs']} epochs, {seeds}; "
            f"{', '.join(result['devices'])}. `{result['command']}`",
            markdown([header, *(row for row in rows if row[0] in titles)]),
        ]
    return "\n\n".join(parts)


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
                *(spread(row[key]) for key in ("accuracy", "accuracy_tta")),
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


TABLES = {
    "recipes": recipes_table,
    "results": results_table,
    "defaults": lambda: defaults_table(ROOT / "results" / "defaults"),
}


def render(text: str) -> str:
    return MARKER.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; tell by the exit code")
    check = parser.parse_args().check
    stale = []
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
