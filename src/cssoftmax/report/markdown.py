"""The report: one Markdown file and its pictures, the same bytes for the same runs."""

import html
import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cssoftmax import files
from cssoftmax.metrics import (
    MEASURES,
    Measure,
    class_centres,
    format_value,
    inter_class_angles,
    intra_class_angles,
)
from cssoftmax.report.figures import (
    MAX_NAMED,
    LogitCurve,
    confusion,
    cosine_histogram,
    embedding_map,
    learning_curves,
    logit_curves,
    png,
)
from cssoftmax.report.run import Run, labels, load_run

Table = list[list[str]]

WORST = 20
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
    "label_smoothing",
    "clip_norm",
    "ema",
    "mixup",
)


def write_report(runs: Sequence[Path], output: Path, *, curves: Sequence[LogitCurve] = ()) -> Path:
    """Writes ``report.md`` and its pictures, in ``figures/``, into the folder ``output``; returns the report's path.

    Everything is drawn before anything is written, and the report, last, takes the place of an older one at once.

    Args:
        runs: folders that ``cssoftmax train`` wrote; the report puts them side by side.
        output: made if missing; it may be one of the runs.
        curves: of the runs' losses, in the runs' order (a name that occurs twice gets its run's); or of any others.

    Raises:
        RunError: a run's folder cannot be read.
        ValueError: no run is given.

    Example:
        >>> write_report([Path("runs/softmax"), Path("runs/cs-softmax")], Path("report"))  # doctest: +SKIP
        PosixPath('report/report.md')
    """
    if not runs:
        raise ValueError("runs: none given; name at least one folder that `cssoftmax train` wrote")
    loaded = [load_run(run) for run in runs]
    pictures = [(name, png(figure), title, words) for name, figure, title, words in _pictures(loaded, curves)]
    text = _report(loaded, [(name, title, words) for name, _, title, words in pictures])
    for name, content, _, _ in pictures:
        files.write_bytes(output / "figures" / f"{name}.png", content)
    path = output / "report.md"
    files.write_bytes(path, text.encode())
    return path


def measures_table(runs: Sequence[Run]) -> Table:
    """All measures side by side, as text: a header ["measure", run, ...], then a row a measure; "-" where missing."""
    rows = [[measure.title, *(_measured(run, measure) for run in runs)] for measure in MEASURES]
    return [["measure", *labels(runs)], *rows]


def class_table(run: Run) -> Table:
    """Class by class, as text: a header, then a row a class; of more than 20 classes the 20 least accurate.

    Angles, in degrees, are on the unit sphere: of a class's samples to its centre (the direction of their mean), on
    average; and of its centre to the nearest other class's. A class without samples has "-".
    """
    present, centres = class_centres(run.embeddings, run.target)
    spread = intra_class_angles(run.embeddings, run.target).tolist()
    angle = inter_class_angles(run.embeddings, run.target).tolist()
    nearest = (centres @ centres.T).fill_diagonal_(-math.inf).argmax(1)
    counts = torch.bincount(run.target, minlength=len(run.classes)).tolist()
    right = torch.bincount(run.target[run.logits.argmax(1) == run.target], minlength=len(run.classes)).tolist()
    accuracy = [hits / count if count else math.inf for hits, count in zip(right, counts, strict=True)]

    rows = [[name, f"{count:,}", "-", "-", "-", "-"] for name, count in zip(run.classes, counts, strict=True)]
    for place, index in enumerate(present.tolist()):
        rows[index][2:4] = f"{100 * accuracy[index]:.2f} %", f"{spread[place]:.1f}°"
        if len(present) > 1:
            rows[index][4:] = run.classes[int(present[nearest[place]])], f"{angle[place]:.1f}°"
    if len(rows) > WORST:
        rows = [rows[index] for index in sorted(range(len(rows)), key=lambda index: accuracy[index])[:WORST]]
    return [["class", "samples", "accuracy", "angle to its centre", "nearest class", "angle to it"], *rows]


def _value(run: Run, key: str) -> float | None:
    value = run.summary["measures"].get(key)
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else None


def _measured(run: Run, measure: Measure) -> str:
    value = _value(run, measure.key)
    return "-" if value is None else format_value(measure, value)


def _pictures(runs: Sequence[Run], curves: Sequence[LogitCurve]) -> Iterator[tuple[str, Any, str, str]]:
    """File name, figure, title, and what to look for."""
    yield (
        "cosines",
        cosine_histogram(runs),
        "Cosines to the class weights",
        "A good run has its own-class cosines close to 1 and far to the right of the others; where the two overlap, "
        "samples are taken for other classes, or accepted as them.",
    )
    if any(run.embeddings.shape[1] == 2 for run in runs):
        seen = "the embeddings as they are, one ray along each class weight"
    else:
        seen = "a flat shadow of the embeddings' directions: classes that overlap here may still be apart in space"
    yield (
        "embeddings",
        embedding_map(runs),
        "Embeddings",
        f"Look for tight groups with empty space between them; this is {seen}.",
    )
    yield (
        "learning",
        learning_curves(runs),
        "Learning",
        "Accuracy on evaluation that stalls or falls while it rises on training means overfitting. The training loss "
        "includes the margin, if there is one, and the evaluation loss does not: compare losses along a line, not "
        "between lines.",
    )
    if curves:
        yield (
            "logits",
            logit_curves(_named(runs, curves)),
            "What the loss asks for",
            "The further its line on the right lies from the grey diagonal, the clearer a loss wants the own class to "
            "win before it is content.",
        )
    for number, (run, label) in enumerate(zip(runs, labels(runs), strict=True), 1):
        if len(run.classes) <= MAX_NAMED:
            yield (
                f"confusion-{number}",
                confusion(run),
                f"Confusion, {label}",
                "Each row adds up to 100 %; a dark cell off the diagonal is a pair of classes that the network mixes "
                "up.",
            )


def _named(runs: Sequence[Run], curves: Sequence[LogitCurve]) -> list[LogitCurve]:
    """Equal curves once; where curves differ but their names do not, the run's name beside it."""
    names = labels(runs) if len(runs) == len(curves) else [""] * len(curves)
    kept: list[tuple[LogitCurve, str]] = []
    for curve, name in zip(curves, names, strict=True):
        if not any(_same(curve, other) for other, _ in kept):
            kept.append((curve, name))
    taken = [curve.name for curve, _ in kept]
    return [
        replace(curve, name=f"{curve.name}, {name}") if name and taken.count(curve.name) > 1 else curve
        for curve, name in kept
    ]


def _same(curve: LogitCurve, other: LogitCurve) -> bool:
    return (curve.name, curve.scale) == (other.name, other.scale) and all(
        torch.equal(getattr(curve, key), getattr(other, key)) for key in ("cosines", "positive", "negative")
    )


def _report(runs: Sequence[Run], pictures: Sequence[tuple[str, str, str]]) -> str:
    names = labels(runs)
    alike = len({(_of(run, "dataset"), _of(run, "split"), *run.classes) for run in runs}) == 1
    title = escape(names[0]) if len(runs) == 1 else f"{len(runs)} runs side by side"
    parts = [
        f"# Report: {title}",
        "\n".join(f"- {_sentence(run, name)}" for run, name in zip(runs, names, strict=True)),
    ]
    if not alike:
        parts.append("The runs were measured on different data, so their numbers cannot be compared.")

    parts += ["## Measures", _bold(runs) if alike and len(runs) > 1 else markdown(measures_table(runs))]
    if alike and len(runs) > 1:
        parts.append("The best of each row is bold.")

    parts.append("## Pictures")
    for name, heading, words in pictures:
        parts += [f"### {escape(heading)}", words, f"![{escape(heading)}](figures/{name}.png)"]

    parts.append("## Classes")
    for run, name in zip(runs, names, strict=True):
        shown = (
            f"the {WORST} least accurate of {len(run.classes)} classes" if len(run.classes) > WORST else "all classes"
        )
        parts += [f"### {escape(name)}: {shown}", markdown(class_table(run), text_columns=(0, 4))]
    parts.append(
        "Angles are between directions: of a class's samples to the centre of the class, on average, and between the "
        "centres of two classes. A class is safe where the first is much smaller than half of the second."
    )

    commands = "\n".join(_command(run) for run in runs)
    parts += ["## How the runs were made", f"```sh\n{commands}\n```", markdown(_settings(runs))]
    return "\n\n".join(parts) + "\n"


def _sentence(run: Run, name: str) -> str:
    samples, size = run.embeddings.shape
    loss = str(run.config["loss"].get("name", "-"))
    data = f"{_of(run, 'dataset')}, {_of(run, 'split')} split"
    return (
        f"**{escape(name)}**: {escape(loss)} on {escape(data)}; {samples:,} samples, "
        f"{len(run.classes)} classes, embeddings of {size} numbers; in `{_code(str(run.path))}`"
    )


def _of(run: Run, key: str) -> str:
    return str(run.summary.get(key, run.config.get(key, "-")))


def _bold(runs: Sequence[Run]) -> str:
    """The table of measures, the best value of each row bold; none where all are equal."""
    header, *rows = measures_table(runs)
    table = [[escape(cell) for cell in header]]
    for measure, (title, *cells) in zip(MEASURES, rows, strict=True):
        values = [value for run in runs if (value := _value(run, measure.key)) is not None]
        best = ""
        if measure.higher_is_better is not None and len(values) > 1 and len(set(cells) - {"-"}) > 1:
            best = format_value(measure, max(values) if measure.higher_is_better else min(values))
        table.append([escape(title), *(f"**{escape(cell)}**" if cell == best else escape(cell) for cell in cells)])
    return markdown(table, escaped=True)


def _command(run: Run) -> str:
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


def _settings(runs: Sequence[Run]) -> Table:
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


def _code(text: str) -> str:
    """Text for a code span, where only backticks would do harm."""
    return " ".join(text.split()).replace("`", "'")


def markdown(table: Table, *, text_columns: Sequence[int] = (0,), escaped: bool = False) -> str:
    """A table in Markdown, its first row the header; columns are flush right but for ``text_columns``."""
    header, *rows = table if escaped else [[escape(cell) for cell in row] for row in table]
    rule = [":--" if column in text_columns else "--:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))
