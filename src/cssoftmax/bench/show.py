"""Measurements as a table and as a picture."""

from collections.abc import Iterator, Sequence
from typing import Any

from cssoftmax.bench.heads import BASELINE
from cssoftmax.bench.measure import Measurement


def table(measurements: Sequence[Measurement]) -> Iterator[tuple[str, ...]]:
    """A header and a row for each measurement: time, over the baseline's, share of the matmul limit, memory."""
    yield ("N", "D", "C", "head", "ms", "x Linear + CE", "of matmul rate", "extra MiB", "process MiB")
    base = {m.shape: m.seconds for m in measurements if m.head == BASELINE}
    for m in measurements:
        ratio = f"{m.seconds / base[m.shape]:.2f}" if m.shape in base else "-"
        extra, process = ("-" if size is None else f"{size / 2**20:,.0f}" for size in (m.memory, m.process))
        sizes = (f"{m.shape.rows:,}", f"{m.shape.features:,}", f"{m.shape.classes:,}")
        yield (*sizes, m.head, f"{1000 * m.seconds:.2f}", ratio, f"{m.limit:.0%}", extra, process)


def markdown(measurements: Sequence[Measurement], setting: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in setting["versions"].items())
    lines = [
        f"{setting['processor']}; {versions}; float32 products by {setting['matmul']}.",
        *(f"`{command}`" for command in setting["commands"]),
        "",
        *markdown_rows(table(measurements)),
    ]
    return "\n".join(lines) + "\n"


def markdown_rows(table: Iterator[tuple[str, ...]]) -> list[str]:
    """A Markdown table, its first row the header."""
    header, *rows = ("| " + " | ".join(row) + " |" for row in table)
    return [header, "|" + "---|" * (header.count("|") - 1), *rows]


def plot(measurements: Sequence[Measurement], title: str) -> bytes:
    """A PNG picture of time and extra memory against C, a line for each head; of a C measured twice the fewest rows."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    from cssoftmax.report.figures import PALETTE, png, styled

    @styled
    def draw() -> Figure:
        figure = Figure(figsize=(11, 5))
        left, right = figure.subplots(1, 2)
        rows: dict[int, int] = {}
        for m in measurements:
            rows[m.shape.classes] = min(m.shape.rows, rows.get(m.shape.classes, m.shape.rows))
        for number, head in enumerate(dict.fromkeys(m.head for m in measurements)):
            own = [m for m in measurements if m.head == head and m.shape.rows == rows[m.shape.classes]]
            own.sort(key=lambda m: m.shape.classes)
            style: dict[str, Any] = {
                "color": PALETTE[number % len(PALETTE)],
                "marker": "osD^vPX"[number % 7],
                "markersize": 4,
            }
            left.plot([m.shape.classes for m in own], [1000 * m.seconds for m in own], label=head, **style)
            known = [m for m in own if m.memory is not None]
            right.plot([m.shape.classes for m in known], [(m.memory or 0) / 2**20 for m in known], **style)
        for axes, name in ((left, "Forward and backward, ms"), (right, "Memory beyond inputs and gradients, MiB")):
            axes.set(title=name, xlabel="classes C", xscale="log")
        left.set_yscale("log")
        right.set_yscale("symlog", linthresh=1)
        right.set_ylim(bottom=0)
        for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
            axis.set_major_formatter(
                FuncFormatter(lambda value, place: f"{value:,.0f}" if value >= 1 else f"{value:g}")
            )
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        return figure

    return png(draw())
