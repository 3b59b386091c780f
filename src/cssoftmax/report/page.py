"""The report: one HTML page that needs no network and no other file, the same bytes for the same runs."""

import base64
import gzip
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cssoftmax import __version__, files, losses
from cssoftmax.metrics import format_difference, format_value
from cssoftmax.report import facts
from cssoftmax.report.markdown import command, measured, measures_of, settings_table, value_of
from cssoftmax.report.run import Run, labels, load_run

Facts = dict[str, Any]

# Okabe and Ito's colours, told apart under every common colour vision deficiency, on white and on black.
RUN_COLORS = ("#8a929b", "#1a86c8", "#d9702b", "#0a9e78", "#b65fb0", "#c9a400", "#5b6bd0", "#a65a3a")
WORST = 20
# What the scripts draw of a run; the template shows the rest.
DRAWN = (
    "label",
    "color",
    "kind",
    "classes",
    "learning",
    "histograms",
    "map",
    "class_facts",
    "verification",
    "confusion",
)


def write_report(runs: Sequence[Path], output: Path) -> Path:
    """Writes the report of some runs, side by side, and returns its path.

    The page is made whole before anything is written, and takes the place of an older one at once.

    Args:
        runs: folders that ``cssoftmax train`` wrote.
        output: the page, if its name ends in .html; else the folder in which it is ``report.html``. Made if missing; it
            may be one of the runs.

    Raises:
        RunError: a run's folder cannot be read.
        ValueError: no run is given.

    Example:
        >>> write_report([Path("runs/softmax"), Path("runs/cs-softmax")], Path("runs/report"))  # doctest: +SKIP
        PosixPath('runs/report/report.html')
    """
    if not runs:
        raise ValueError("runs: none given; name at least one folder that `cssoftmax train` wrote")
    path = output if output.suffix == ".html" else output / "report.html"
    files.write_bytes(path, render([load_run(run) for run in runs]).encode())
    return path


def render(runs: Sequence[Run]) -> str:
    """The page. Whatever comes from the data, names of classes and paths above all, is escaped."""
    names = labels(runs)
    alike = len({(value_of(run, "dataset"), value_of(run, "split"), *run.classes) for run in runs}) == 1
    media: dict[str, int] = {}
    # The first of several is what the others are compared with: grey.
    colors = [RUN_COLORS[place % len(RUN_COLORS)] for place in range(len(runs))] if len(runs) > 1 else RUN_COLORS[1:2]
    shown = [_shown(run, name, color, media) for run, name, color in zip(runs, names, colors, strict=True)]
    compared = alike and len(runs) > 1
    page = _environment().get_template("report.html")
    return page.render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs side by side",
        version=__version__,
        css=_part("report.css"),
        similarity_js=_part("similarity.js"),
        report_js=_part("report.js"),
        plotly=_plotly(),
        split=value_of(runs[0], "split"),
        alike=alike,
        compared=compared,
        measures=list(_measures(runs, compared=compared)),
        runs=shown,
        commands="\n".join(command(run) for run in runs),
        settings=settings_table(runs),
        data={
            "media": list(media),
            "explorer": _explorer(runs),
            "runs": [{key: run[key] for key in DRAWN} for run in shown],
        },
    )


def _shown(run: Run, name: str, color: str, media: dict[str, int]) -> Facts:
    """All that the page says and draws of one run; ``media`` collects the samples that are shown, each once."""

    def sample(row: int | None) -> int | None:
        uri = None if row is None else run.samples.get(row)
        return None if uri is None else media.setdefault(uri, len(media))

    def classed(number: int) -> str:
        return run.classes[number]

    embedding_map = facts.embedding_map(run)
    embedding_map["media"] = [sample(row) for row in embedding_map.pop("rows")]
    class_facts = facts.classes(run)
    class_rows = facts.worst(class_facts, WORST)
    pairs = facts.hardest_pairs(run)
    histograms = facts.cosine_histograms(run)
    return {
        "label": name,
        "color": color,
        "kind": {"data:image": "image", "data:audio": "sound"}.get(
            next(iter(run.samples.values()), "").partition("/")[0]
        ),
        "sentence": _sentence(run),
        "classes": run.classes,
        "learning": facts.learning(run),
        "histograms": histograms,
        "histogram_words": _histogram_words(histograms),
        "map": embedding_map,
        "points": _points(len(embedding_map["target"]), len(run.target)),
        "class_facts": [{key: row[key] for key in ("name", "spread", "angle", "margin")} for row in class_facts],
        "class_rows": [_class_row(row, class_facts, sample) for row in class_rows],
        "class_words": f"the {WORST} least accurate of {len(class_facts)} classes"
        if len(class_facts) > WORST
        else f"all {len(class_facts)} classes",
        "verification": facts.verification(run),
        "confusion": facts.confusion(run),
        "pairs": [
            (heading, [_pair(pair, classed, sample) for pair in pairs[key]])
            for key, heading in (
                ("same", "Pairs of one class that are furthest apart"),
                ("different", "Pairs of two classes that are closest"),
            )
        ],
        "errors": [
            error
            | {"words": f"{classed(error['class'])}, taken for {classed(error['taken'])}"}
            | {"media": sample(error["row"]), "typical_media": sample(error["typical"])}
            for error in facts.errors(run)
        ],
    }


def _points(drawn: int, samples: int) -> str:
    return f"{samples:,} points" if drawn == samples else f"{drawn:,} points, drawn at random from {samples:,}"


def _pair(pair: Facts, classed: Any, sample: Any) -> Facts:
    first, second = (classed(number) for number in pair["classes"])
    words = first if first == second else f"{first} and {second}"
    return {"media": [sample(row) for row in pair["rows"]], "words": words, "cosine": pair["cosine"]}


def _class_row(row: Facts, every: Sequence[Facts], sample: Any) -> Facts:
    other = None if row["nearest"] is None else every[row["nearest"]]
    return row | {
        "typical": sample(row["typical"]),
        "nearest_name": None if other is None else other["name"],
        "nearest_typical": None if other is None else sample(other["typical"]),
    }


def _sentence(run: Run) -> str:
    samples, size = run.embeddings.shape
    return (
        f"{run.config['loss'].get('name', '-')} on {value_of(run, 'dataset')}, {value_of(run, 'split')} split; "
        f"{samples:,} samples, {len(run.classes)} classes, embeddings of {size} numbers; in {run.path}"
    )


def _histogram_words(histograms: Facts) -> str:
    words = []
    for kind in ("own", "other"):
        found = histograms[kind]
        if found["mean"] is not None:
            drawn = f"{found['drawn']:,} drawn of " if found["drawn"] else ""
            words.append(f"{kind}: mean {found['mean']:.3f}, {drawn}{found['pairs']:,} pairs")
    return "; ".join(words)


def _measures(runs: Sequence[Run], *, compared: bool) -> Any:
    """Rows of the table: each run's value, its difference to the first run's, and whether it is the best."""
    for measure in measures_of(runs):
        values = [measured(run, measure.key) for run in runs]
        texts = ["–" if value is None else format_value(measure, value) for value in values]
        known = [value for value in values if value is not None]
        best = None
        if compared and measure.higher_is_better is not None and len(set(texts) - {"–"}) > 1:
            best = format_value(measure, max(known) if measure.higher_is_better else min(known))
        cells = []
        for place, (value, text) in enumerate(zip(values, texts, strict=True)):
            cell = {"text": text, "best": text == best, "difference": "", "verdict": ""}
            base = values[0]
            if compared and place and value is not None and base is not None and text != texts[0]:
                cell["difference"] = format_difference(measure, value - base)
                if measure.higher_is_better is not None:
                    cell["verdict"] = "better" if (value > base) == measure.higher_is_better else "worse"
            cells.append(cell)
        yield {
            "title": measure.title,
            "sense": {True: "↑", False: "↓", None: ""}[measure.higher_is_better],
            "cells": cells,
        }


def _explorer(runs: Sequence[Run]) -> Facts:
    """Where the explorer starts: at the factors of the first CS-Softmax run that has plain numbers, or the defaults."""
    classes = max(len(runs[0].classes), 2)
    for run in runs:
        loss = run.config["loss"]
        found = [loss.get(key) for key in ("margin", "weight_update", "scale")]
        if loss.get("name") == "cs-softmax" and all(isinstance(value, int | float) for value in found):
            return {"margin": found[0], "weightUpdate": found[1], "scale": found[2], "classes": classes}
    default = losses.settings_of(losses.build("cs-softmax", 1, classes))
    return {
        "margin": default["margin"],
        "weightUpdate": default["weight_update"],
        "scale": round(default["scale"], 2),
        "classes": classes,
    }


@cache
def _environment() -> Environment:
    loader = PackageLoader("cssoftmax.report", "template")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def _part(name: str) -> str:
    return (Path(__file__).parent / "template" / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """The plotly.js that the plotly package ships, gzipped and in base64: 2 MB, where it has 5."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
