"""Writes the tables of docs/scaling.md: those measured from results/scaling, those on paper from scaling_model.py.

    python tools/render_scaling.py [--check]

With --check nothing is written; exit code 1 if a table is not what these say.
"""

import json
import re
import sys
from pathlib import Path

import scaling_model

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scaling.md"


def tables() -> dict[str, str]:
    head = json.loads((ROOT / "results/scaling/head.json").read_text())
    sampling = json.loads((ROOT / "results/scaling/sampling.json").read_text())
    shape = head["runs"][0]
    lines = [
        "| processes | sample rate | memory a process | computing a process and step | step by the clock |",
        "|--:|--:|--:|--:|--:|",
        *(
            f"| {run['processes']} | {run['sample_rate']:g} | {run['bytes_a_process'] / 1e9:.2f} GB "
            f"| {run['cpu_seconds_a_process']:.2f} s | {run['step_seconds']:.2f} s |"
            for run in head["runs"]
        ),
    ]
    drawn = [
        "| sample rate | loss of all classes | mean, counting 1 / share | counting once "
        "| error of the mean gradient, 1 / share | once | of a single one, 1 / share | once |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {row['sample_rate']:g} | {row['loss']:.4f} | {row['counted_mean_loss']:.4f} "
            f"| {row['once_mean_loss']:.4f} | {row['counted_mean_gradient_error']:.1%} "
            f"| {row['once_mean_gradient_error']:.1%} | {row['counted_gradient_error']:.1%} "
            f"| {row['once_gradient_error']:.1%} |"
            for row in sampling["rows"]
        ),
    ]
    machine = (
        f"{shape['classes']:,} classes, D = {shape['embedding_size']}, {shape['rows']} rows in all, float32, SGD with "
        f"momentum; {head['processor']} a process; torch {head['torch']}; gloo; `{head['command']}`, "
        "`results/scaling/head.json`. The machine has 2 cores and ran a dozen other programs meanwhile: "
        "the clock tells what each process got of them, the seconds of computing what it took."
    )
    evaluation = json.loads((ROOT / "results/scaling/evaluation.json").read_text())
    measures = [
        f"{evaluation['samples']:,} samples, {evaluation['classes']} classes, D = {evaluation['embedding_size']}; "
        f"{evaluation['processor']}; `{evaluation['command']}`:",
        "",
        "| measure | seconds of computing | most memory |",
        "|---|--:|--:|",
        *(
            f"| `{run['what']}` | {run['cpu_seconds']:.0f} | {run['peak_bytes'] / 1e9:.1f} GB |"
            for run in evaluation["runs"]
        ),
        "",
        f"FAISS found {evaluation['runs'][-1]['value']['search_recall']:.0%} of the nearest here: classes of\n"
        "thousands suit its cells least, and it was slower, too. It is for many small classes.",
    ]
    return {
        "evaluation": "\n".join(measures),
        "machine": machine,
        "head": "\n".join(lines),
        "sampling": "\n".join(drawn),
        "model": scaling_model.text(),
    }


def rendered(page: str) -> str:
    for name, text in tables().items():
        pattern = rf"<!-- {name} -->\n(?:.*?<!-- /{name} -->\n)?"
        page = re.sub(pattern, lambda _, n=name, t=text: f"<!-- {n} -->\n{t}\n<!-- /{n} -->\n", page, flags=re.S)
    return page


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(page != rendered(page))
    PAGE.write_text(rendered(page), encoding="utf-8")


if __name__ == "__main__":
    main()
