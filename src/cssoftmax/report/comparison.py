"""The report of a comparison: one sentence a measure, a table, paired differences and a box plot."""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cssoftmax import files
from cssoftmax.metrics import MEASURES, OPTIONAL_MEASURES, Measure, format_difference, format_value
from cssoftmax.report.figures import GREY, INK, OTHER, OWN, png, styled
from cssoftmax.report.markdown import Table, escape, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Result = Mapping[str, Any]

BY_KEY = {measure.key: measure for measure in (*MEASURES, *OPTIONAL_MEASURES)}
COLORS = {"better": OWN, "worse": OTHER, "noise": GREY, "untested": GREY, "baseline": INK}
TITLE_WIDTH = 42  # letters over a panel
MARKS = {"better": " ▲", "worse": " ▼"}


def write_comparison(result: Result, folder: Path) -> Path:
    """Writes ``comparison.md`` and ``comparison.png`` into ``folder``; returns the former's path.

    Args:
        result: what :func:`cssoftmax.comparison.compare` returned, or its ``comparison.json``.
        folder: made if missing.

    Example:
        >>> result = json.loads(Path("runs/comparison/comparison.json").read_text())  # doctest: +SKIP
        >>> write_comparison(result, Path("runs/comparison"))  # doctest: +SKIP
        PosixPath('runs/comparison/comparison.md')
    """
    files.write_bytes(folder / "comparison.png", png(box_plot(result)))
    path = folder / "comparison.md"
    files.write_bytes(path, _report(result).encode())
    return path


def conclusion(result: Result, key: str) -> str:
    """One sentence in plain words: which differences to the baseline in a measure are real, and which are noise."""
    measure, baseline, seeds = BY_KEY[key], result["baseline"], len(result["seeds"])
    found = result["differences"].get(key, {})
    named: dict[str, list[str]] = {verdict: [] for verdict in ("better", "worse", "noise", "untested")}
    for loss, difference in _by_size(found, measure):
        named[difference["verdict"]].append(f"{loss} ({format_difference(measure, difference['mean'])})")
    start = f"{measure.title}: over {_count(seeds, 'seed')}, "
    if not found:
        return f"{measure.title}: not defined on these data."
    if named["untested"]:
        return f"{start}what sets {_listed(named['untested'])} apart from {baseline} may be real or noise; try more."
    clauses = []
    for verdict in ("better", "worse"):
        if named[verdict]:
            verb = "is" if len(named[verdict]) == 1 else "are"
            clauses.append(f"{_listed(named[verdict])} {verb} really {verdict} than {baseline}")
    if named["noise"]:
        clauses.append(f"what sets {_listed(named['noise'])} apart from {baseline} may be noise")
    return f"{start}{_listed(clauses)}."


def summary_table(result: Result) -> Table:
    """Mean and standard deviation over seeds: a row a measure, a column a loss.

    ▲ and ▼ mark what is really better or worse than the baseline.
    """
    losses = result["losses"]
    rows = []
    for key, by_loss in result["measures"].items():
        cells = []
        for loss in losses:
            verdict = result["differences"].get(key, {}).get(loss, {}).get("verdict", "")
            cells.append(_mean_and_std(BY_KEY[key], by_loss[loss]) + MARKS.get(verdict, ""))
        rows.append([BY_KEY[key].title, *cells])
    return [["measure", *losses], *rows]


def difference_table(result: Result, key: str) -> Table:
    """Every loss less the baseline in one measure, with interval, p and verdict."""
    measure = BY_KEY[key]
    rows = [
        [
            loss,
            format_difference(measure, difference["mean"]),
            _interval(measure, difference["low"], difference["high"]),
            _p(difference["p"]),
            _p(difference["corrected_p"]),
            difference["verdict"],
        ]
        for loss, difference in _by_size(result["differences"].get(key, {}), measure)
    ]
    return [["loss", "difference", "95 % interval", "p", "corrected p", "verdict"], *rows]


def group_table(result: Result, key: str) -> Table:
    """The mean over seeds on every fold or speaker that was tested on in turn: a row each, a column a loss."""
    measure, losses, by_loss = BY_KEY[key], result["losses"], result["by_group"][key]
    means = zip(*(by_loss[loss] for loss in losses), strict=True)
    rows = [
        [group, *(format_value(measure, math.nan if mean is None else mean) for mean in row)]
        for group, row in zip(result["groups"], means, strict=True)
    ]
    return [["tested on", *losses], *rows]


@styled
def box_plot(result: Result) -> "Figure":
    """The seeds of every loss in the headline measures: a panel a measure, a box and the seeds as dots a loss.

    Boxes are the quartiles, their line the median, whiskers the range. The dashed line is the baseline's mean.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    losses, keys = result["losses"], [key for key in result["headlines"] if key in result["measures"]]
    columns = min(len(keys), 2)
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(2.0 + 3.9 * columns, 0.9 + rows * (1.0 + 0.33 * len(losses))))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, key in zip(panels, keys, strict=False):
        measure = BY_KEY[key]
        factor = 100 if measure.unit == "fraction" else 1
        for place, loss in enumerate(losses):
            values = [factor * value for value in result["measures"][key][loss]["values"] if value is not None]
            if not values:
                continue
            color = COLORS[_verdict(result, key, loss)]
            line = {"color": color, "linewidth": 1.4}
            if len(values) > 1:
                axes.boxplot(
                    values,
                    positions=[place],
                    widths=0.6,
                    orientation="horizontal",
                    whis=(0, 100),
                    patch_artist=True,
                    boxprops={"facecolor": color, "alpha": 0.25, "edgecolor": color},
                    medianprops=line,
                    whiskerprops=line,
                    capprops=line,
                    manage_ticks=False,
                )
            axes.scatter(values, [place] * len(values), s=16, color=color, zorder=3, linewidths=0)
        mean = result["measures"][key][result["baseline"]]["mean"]
        if mean is not None:
            axes.axvline(factor * mean, color=INK, linestyle=(0, (4, 2)), linewidth=1, zorder=1)
        axes.set_yticks(range(len(losses)), losses)
        axes.set_ylim(len(losses) - 0.4, -0.6)
        axes.set_title(textwrap.fill(measure.title, TITLE_WIDTH))
        unit = {"fraction": "%", "degrees": "degrees"}.get(measure.unit, measure.unit)
        sense = {True: "more is better →", False: "← less is better", None: ""}[measure.higher_is_better]
        axes.set_xlabel(f"{unit}   {sense}")
        axes.locator_params(axis="x", nbins=5)
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    baseline = result["baseline"]
    named = {
        "baseline": f"{baseline}, its mean dashed",
        "better": f"really better than {baseline}",
        "worse": f"really worse than {baseline}",
        "noise": "not to be told from noise",
    }
    handles = [Patch(facecolor=COLORS[name], alpha=0.6) for name in named]
    figure.legend(handles, list(named.values()), loc="outside lower left", ncols=2)
    return figure


def _report(result: Result) -> str:
    headlines = [key for key in result["headlines"] if key in result["measures"]]
    parts: list[str] = [
        f"# Comparison of losses: {escape(result['dataset'])}, {result['protocol']} protocol",
        "\n".join(f"- {escape(conclusion(result, key))}" for key in headlines),
        "![Box plot of the seeds of every loss](comparison.png)",
        "## What was compared",
        _facts(result),
        "## Measures",
        markdown(_bold_best(result), escaped=True),
        f"Mean ± standard deviation over {_count(len(result['seeds']), 'seed')}. The best mean of each row is bold; ▲ "
        f"and ▼ mark what is really better or worse than {escape(result['baseline'])}.",
        f"## Differences to {escape(result['baseline'])}",
    ]
    for key in headlines:
        parts += [f"### {escape(BY_KEY[key].title)}", markdown(difference_table(result, key), text_columns=(0, 5))]
    parts += [_how_to_read(result)]
    if result.get("by_group"):
        parts += [
            "## Each fold or speaker",
            "Means over seeds on the one tested on, the others having been trained on.",
        ]
        for key in headlines:
            parts += [f"### {escape(BY_KEY[key].title)}", markdown(group_table(result, key))]
    parts += [
        "## Settings",
        _tuning(result),
        markdown(_settings_table(result), text_columns=(0, 1)),
        "## How it was made",
        f"```sh\n{result['command']}\n```",
        markdown(
            [
                ["", ""],
                *([f"recipe: {name}".replace("_", " "), _plain(value)] for name, value in result["recipe"].items()),
                ["precision", "float32" if result["amp"] == "no" else result["amp"]],
                ["devices", "; ".join(result["devices"])],
                *([f"version: {name}", version] for name, version in result["versions"].items()),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(result: Result) -> str:
    groups, held_out = result["groups"], result["held_out_classes"]
    seeds = result["seeds"]
    lines = [
        f"{_count(len(result['losses']), 'loss', 'losses')}, {_count(len(seeds), 'seed')} each "
        f"({seeds[0]} to {seeds[-1]}), {_count(result['epochs'], 'epoch')}: {result['runs']:,} runs, after "
        f"{result['trials']:,} trials on validation data.",
        "For one seed every loss had the same data, the same first network weights, the same batches in the same order "
        "and the same budget. The network of the last epoch was measured; nothing was chosen on what it was measured "
        "on.",
    ]
    if len(groups) > 1:
        lines.append(
            f"Tested on each of {', '.join(map(escape, groups))} in turn, trained on the others; a seed's measure is "
            "the mean over them."
        )
    if held_out:
        names = ", ".join(map(escape, held_out))
        purpose = {
            "verification": "Measured are their test samples; what needs class weights or training samples of the same "
            "classes is left out.",
            "open": "Their test samples are to be rejected; the other measures are of the classes trained on.",
        }[result["protocol"]]
        lines.append(f"Held out of training: {len(held_out)} of {result['classes']} classes ({names}). {purpose}")
    return "\n".join(f"- {line}" for line in lines)


def _how_to_read(result: Result) -> str:
    others, seeds = len(result["losses"]) - 1, len(result["seeds"])
    text = (
        "A difference is called real where the paired t-test over seeds, with p corrected by Holm's method for "
        f"{_count(others, 'comparison')} (measure by measure), falls below {result['level']:g}. The question is "
        "whether the difference would be there again in trainings with other seeds on the same data. Whether it would "
        "be there on other test samples is another question, which these numbers do not answer. The interval is the "
        "expanded percentile bootstrap over seeds."
    )
    if seeds == 1:
        return text + " One seed says nothing about noise: there is no test and no interval."
    if seeds <= 3:
        t = {2: "12.7", 3: "4.3"}[seeds]
        return text + (
            f" With {seeds} seeds the test finds only differences of more than {t} standard errors (before the "
            "correction), and the interval is no more than the range of the seeds: real differences may well be called "
            "noise."
        )
    return text


def _tuning(result: Result) -> str:
    if not result["tune"]:
        return "Not tuned: every loss with its default settings and the recipe's learning rate."
    rule = ""
    if result["protocol"] == "closed":
        rule = ": of all within one standard error of the highest accuracy, that with the lowest equal error rate"
    return (
        f"Each loss had {_count(result['tune'], 'trial')}{' a rotation' if len(result['groups']) > 1 else ''} over its "
        "own settings and the learning rate, its defaults first, scored on a part of the training data that the trial "
        f"was not trained on; these are the best{rule}."
    )


def _settings_table(result: Result) -> Table:
    rows = []
    for loss in result["losses"]:
        for found in result["settings"][loss]:
            values = ", ".join(f"{name} {_plain(value)}" for name, value in found["settings"].items())
            score = "-" if found["validation_score"] is None else f"{found['validation_score']:.4f}"
            name = loss if found["group"] is None else f"{loss}, {found['group']}"
            rows.append([name, values or "-", f"{found['lr']:.3g}", score])
    return [["loss", "settings", "learning rate", "validation score"], *rows]


def _bold_best(result: Result) -> Table:
    header, *rows = summary_table(result)
    table = [[escape(cell) for cell in header]]
    for key, (title, *cells) in zip(result["measures"], rows, strict=True):
        measure = BY_KEY[key]
        means = [result["measures"][key][loss]["mean"] for loss in result["losses"]]
        known = [mean for mean in means if mean is not None]
        best = None
        if measure.higher_is_better is not None and len(set(known)) > 1:
            best = max(known) if measure.higher_is_better else min(known)
        shown = [
            f"**{escape(cell)}**" if best is not None and mean == best else escape(cell)
            for cell, mean in zip(cells, means, strict=True)
        ]
        table.append([escape(title), *shown])
    return table


def _verdict(result: Result, key: str, loss: str) -> str:
    if loss == result["baseline"]:
        return "baseline"
    return str(result["differences"].get(key, {}).get(loss, {}).get("verdict", "noise"))


def _by_size(found: Mapping[str, Any], measure: Measure) -> list[tuple[str, Any]]:
    """The best first."""
    return sorted(found.items(), key=lambda item: item[1]["mean"], reverse=bool(measure.higher_is_better))


def _mean_and_std(measure: Measure, summary: Mapping[str, Any]) -> str:
    if summary["mean"] is None:
        return "n/a"
    mean = format_value(measure, summary["mean"])
    if not summary["std"]:
        return mean
    number, _, unit = mean.partition(" ")
    if measure.unit == "degrees":
        number, unit = number.rstrip("°"), "°"
        return f"{number} ± {summary['std']:.1f}{unit}"
    spread = format_value(measure, summary["std"]).partition(" ")[0]
    return f"{number} ± {spread} {unit}".rstrip()


def _interval(measure: Measure, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    return f"{format_difference(measure, low).partition(' ')[0]} to {format_difference(measure, high)}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)
