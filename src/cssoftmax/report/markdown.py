"""Tables of runs as text: for the terminal, for Markdown, and how a run was made."""

import html
import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from cssoftmax.metrics import MEASURES, OPTIONAL_MEASURES, Measure, format_value
from cssoftmax.report.run import Run, labels

Table = list[list[str]]

# What of a run's config.json `cssoftmax train` takes as an option.
SOURCE_OPTIONS = ("data_root", "image_size", "test_group", "validation")
LOSS_OPTIONS = ("margin", "scale", "weight_update", "relaxation")
RECIPE_OPTIONS = (
    "network",
    "width",
    "embedding_size",
    "epochs",
    "batch_size",
    "lr",
    "class_lr_scale",
    "weight_decay",
    "schedule",
    "warmup",
    "muon_lr",
    "label_smoothing",
    "clip_norm",
    "ema",
    "mixup",
    "low_resolution",
)


def measures_table(runs: Sequence[Run]) -> Table:
    """All measures side by side, as text: a header ["measure", run, ...], then a row a measure; "-" where missing."""
    rows = [[measure.title, *(_text(run, measure) for run in runs)] for measure in measures_of(runs)]
    return [["measure", *labels(runs)], *rows]


def measures_of(runs: Sequence[Run]) -> list[Measure]:
    """What a table of these runs has rows for: every measure, and the optional ones that some run has."""
    return [*MEASURES, *(measure for measure in OPTIONAL_MEASURES if any(measured(run, measure.key) for run in runs))]


def measured(run: Run, key: str) -> float | None:
    """What a run measured, by the key of a measure; None where it is missing or not a number."""
    value = run.summary["measures"].get(key)
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else None


def _text(run: Run, measure: Measure) -> str:
    value = measured(run, measure.key)
    return "-" if value is None else format_value(measure, value)


def value_of(run: Run, key: str) -> str:
    """What a run's summary says of ``key``, or else its config; "-" where neither does."""
    return str(run.summary.get(key, run.config.get(key, "-")))


def command(run: Run) -> str:
    """The command that makes this run, as far as it has options for it."""
    source, loss, recipe = (run.config[key] for key in ("source", "loss", "recipe"))
    place = source if isinstance(source, dict) else {"name": source}
    words = ["cssoftmax", "train", str(place.get("name", "")), "--loss", str(loss.get("name", ""))]
    for settings, options in ((loss, LOSS_OPTIONS), (recipe, RECIPE_OPTIONS), (place, SOURCE_OPTIONS)):
        for option in options:
            value = settings.get(option)
            if isinstance(value, str | int | float) and (settings is not place or value):
                words += ["--" + option.replace("_", "-"), str(value)]
    for name, value in loss.items():
        if name not in ("name", "label_smoothing") and (name not in LOSS_OPTIONS or isinstance(value, dict | list)):
            words += ["--factor", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    words += ["--seed", str(run.config.get("seed", 0))]
    if run.config.get("amp", "no") != "no":
        words += ["--amp", str(run.config["amp"])]
    if run.config.get("cpu"):
        words.append("--cpu")
    return " ".join(shlex.quote(" ".join(word.split())) for word in words)


def settings_table(runs: Sequence[Run]) -> Table:
    """How the runs were made, as text: a header ["setting", run, ...], then a row a setting."""
    columns = [dict(_facts(run)) for run in runs]
    keys = dict.fromkeys(key for column in columns for key in column)
    return [["setting", *labels(runs)], *([key, *(column.get(key, "-") for column in columns)] for key in keys)]


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    for part in ("loss", "recipe"):
        for key, value in run.config[part].items():
            yield f"{part}: {key}".replace("_", " "), _plain(value)
    yield "seed", _plain(run.config.get("seed"))
    yield "epochs done", str(len(run.history))
    yield "parameters", f"{run.summary['parameters']:,}" if isinstance(run.summary.get("parameters"), int) else "-"
    yield "training time, s", _plain(run.summary.get("seconds"))
    yield "device", _plain(run.summary.get("device"))
    versions = run.summary.get("versions", run.config.get("versions", {}))
    for key, value in versions.items() if isinstance(versions, dict) else ():
        yield f"version: {key}", _plain(value)


def _plain(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case dict():
            return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
        case list() if len(value) > 8:
            return f"{len(value)} values"
        case str() | int():
            return str(value)
        case _:
            return json.dumps(value)


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, in a table's cell too.

    >>> escape("<b>|x")
    '&lt;b&gt;\\\\|x'
    """
    return re.sub(r"([\\`*_\[\]|$~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def markdown(table: Table, *, text_columns: Sequence[int] = (0,), escaped: bool = False) -> str:
    """A table in Markdown, its first row the header; columns are flush right but for ``text_columns``."""
    header, *rows = table if escaped else [[escape(cell) for cell in row] for row in table]
    rule = [":--" if column in text_columns else "--:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))
