"""Writes the tables of docs/scaling.md: those measured from results/scaling, those on paper from scaling_model.py.

    python tools/render_scaling.py [--check]

With --check nothing is written; exit code 1 if a table is not what these say.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import scaling_model

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scaling.md"


def tables() -> dict[str, str]:
    head = json.loads((ROOT / "results/scaling/head.json").read_text())
    sampling = json.loads((ROOT / "results/scaling/sampling.json").read_text())
    shape = head["runs"][0]
    lines = [
        "| processes | sample rate | memory a process | computing a process and step | step by the clock "
        "| of it in exchanges | these alone |",
        "|--:|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {run['processes']} | {run['sample_rate']:g} | {run['bytes_a_process'] / 1e9:.2f} GB "
            f"| {run['cpu_seconds_a_process']:.2f} s | {run['step_seconds']:.2f} s "
            f"| {run['exchange_seconds'] * 1e3:.0f} ms | {run['exchange_seconds_alone'] * 1e3:.1f} ms |"
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
        "`results/scaling/head.json`. The machine has 2 cores, which 4 processes share and one other program used to a "
        "tenth. In exchanges a process also waits for the others; alone, with all at the same place, they take less."
    )
    cases = json.loads((ROOT / "results/scaling/evaluation.json").read_text())
    measures = [
        "| samples | classes | measure | computing | a pair | most memory | |",
        "|--:|--:|---|--:|--:|--:|---|",
        *(
            f"| {case['samples']:,} | {case['classes']:,} | `{run['what']}` | {run['cpu_seconds']:,.0f} s "
            f"| {a_pair(case['samples'], run)} | {run['peak_bytes'] / 1e9:.1f} GB "
            f"| {found(run['value'])} |"
            for case in cases
            for run in case["runs"]
        ),
        "",
        f"D = {cases[0]['embedding_size']}; {cases[0]['runs'][0]['processor']}, shared with other programs; "
        + ", ".join(f"`{case['command']}`" for case in cases)
        + ".",
    ]
    stream = json.loads((ROOT / "results/scaling/stream.json").read_text())
    streamed = [
        f"Bitmaps of {stream['side']} x {stream['side']} pixels in parquet files, row groups of {stream['row_group']}, "
        f"brought to {stream['trained_side']} x {stream['trained_side']}; a buffer of {stream['shuffle_buffer']:,}; "
        f"{stream['processor']}; `{stream['command']}`, `results/scaling/stream.json`. A resumed run ended with "
        + ("the very bytes" if stream["same_bits"] else "OTHER bytes than those")
        + " of the uninterrupted one.",
        "",
        "| one epoch | images | data | most memory, the libraries' 0.45 GB in it |",
        "|---|--:|--:|--:|",
        *(
            f"| {run['how']} | {run['images']:,} | {run['data_bytes'] / 1e9:.2f} GB "
            f"| {run['peak_bytes'] / 1e9:.2f} GB |"
            for run in stream["runs"]
        ),
    ]
    return {
        "stream": "\n".join(streamed),
        "evaluation": "\n".join(measures),
        "machine": machine,
        "head": "\n".join(lines),
        "sampling": "\n".join(drawn),
        "model": scaling_model.text(),
    }


def a_pair(samples: int, run: dict[str, Any]) -> str:
    """Time of computing for each pair that an exact search or a verification looks at."""
    pairs = {"leave_one_out": samples * samples, "verify_all_pairs": samples * (samples - 1) / 2}.get(run["what"])
    return f"{run['cpu_seconds'] / pairs * 1e9:.1f} ns" if pairs else ""


def found(value: Any) -> str:
    """What a measure came to, and how well FAISS searched."""
    if isinstance(value, float):
        return f"accuracy {value:.1%}"
    if isinstance(value, list):
        return f"Recall@1 {value[0]:.1%}, MAP@R {value[1]:.1%}"
    if "search_recall" in value:
        rates = f"Recall@1 {value['recall_at_1']:.1%}, MAP@R {value['map_at_r']:.1%}"
        return f"{rates}; search recall {value['search_recall']:.1%}"
    return f"EER {value['equal_error_rate']:.2%} of {value['same_pairs'] + value['different_pairs']:,} pairs"


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
