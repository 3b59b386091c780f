"""Pictures of runs. Each function returns a matplotlib figure of its own; nothing global is touched for good."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, ParamSpec

import matplotlib
import torch
from matplotlib import font_manager, patheffects, ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor
from torch.nn.functional import normalize

from cssoftmax.report.run import Run, labels

P = ParamSpec("P")

# Petroff's ten colours, told apart under every common colour vision deficiency.
PALETTE = (
    "#3f90da",
    "#e76300",
    "#832db6",
    "#717581",
    "#bd1f01",
    "#92dadd",
    "#a96b59",
    "#ffa90e",
    "#94a4a2",
    "#b9ac70",
)
OWN, OTHER, INK, GREY = "#0072b2", "#d55e00", "#1f2328", "#6e7781"
STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    # Class names and folders may hold dollar signs.
    "text.parse_math": False,
}
# Class names may be in scripts that matplotlib's own font lacks; whichever of these is installed helps out.
FALLBACK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "Arial Unicode MS",
    "Noto Sans",
)

MAX_NEGATIVES = 1_000_000
MAX_POINTS = 5_000
MAX_NAMED = 20
BINS = 100


@dataclass(frozen=True, eq=False)
class LogitCurve:
    """How a loss turns a cosine into a logit.

    Attributes:
        name: of the loss.
        scale: the scale factor s.
        cosines: (K,) rising, in [-1, 1].
        positive: (K,) P(c), the similarity to the own class at each cosine.
        negative: (K,) N(c), the similarity to any other class.
    """

    name: str
    scale: float
    cosines: Tensor
    positive: Tensor
    negative: Tensor


def _style() -> Any:
    return matplotlib.rc_context(STYLE | {"font.family": ["DejaVu Sans", *_fallback_fonts()]})


@cache
def _fallback_fonts() -> list[str]:
    installed = set(font_manager.get_font_names())
    return [name for name in FALLBACK_FONTS if name in installed]


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws in this package's style."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    return drawn


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's content, 150 dots an inch; the same bytes for the same figure.

    Example:
        >>> png(Figure(figsize=(1, 1)))[1:4]
        b'PNG'
    """
    content = io.BytesIO()
    with _style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return content.getvalue()


def cosines(run: Run, *, max_negatives: int = MAX_NEGATIVES) -> tuple[Tensor, Tensor]:
    """Cosines of a run's embeddings to its class weights: positive (N,), negative (at most ``max_negatives``,).

    Positive: each sample to its own class. Negative: each sample to each other class, N (C - 1) of them; where there
    are more than ``max_negatives``, that many pairs drawn at random, the same ones each time.

    Example:
        >>> positive, negative = cosines(load_run(Path("runs/digits-cs-softmax-0")))  # doctest: +SKIP
    """
    embeddings, weights = normalize(run.embeddings, dim=1), normalize(run.class_weights, dim=1)
    positive = (embeddings * weights[run.target]).sum(1)
    samples, classes = run.logits.shape
    pairs = samples * (classes - 1)
    if pairs <= max_negatives:
        others = torch.ones(samples, classes, dtype=torch.bool)
        others[torch.arange(samples), run.target] = False
        return positive, (embeddings @ weights.T)[others]
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(pairs, (max_negatives,), generator=generator)
    rows = chosen // (classes - 1)
    columns = (run.target[rows] + 1 + chosen % (classes - 1)) % classes
    chunks = zip(torch.split(rows, 50_000), torch.split(columns, 50_000), strict=True)
    return positive, torch.cat([(embeddings[row] * weights[column]).sum(1) for row, column in chunks])


@styled
def cosine_histogram(runs: Sequence[Run]) -> Figure:
    """Histograms of the cosines to the own class weight and to all others: one panel a run, shared axes.

    Each histogram is in percent of its own pairs, so that many negatives do not dwarf the positives; bins are 0.02
    wide. Dashed lines are the means. Negatives above a million are a random million, and the legend says so.
    """
    figure = Figure(figsize=(7.6, 0.9 + 2.3 * len(runs)))
    panels = figure.subplots(len(runs), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, run, label in zip(panels, runs, labels(runs), strict=True):
        positive, negative = cosines(run)
        pairs = run.logits.numel() - len(run.target)
        drawn = f"{pairs:,}" if pairs == len(negative) else f"{len(negative):,} drawn of {pairs:,}"
        for values, color, name, count in (
            (negative, OTHER, "other classes", drawn),
            (positive, OWN, "own class", f"{len(positive):,}"),
        ):
            if not len(values):
                continue
            counts, bounds = torch.histogram(values.double().clamp(-1, 1), bins=BINS, range=(-1.0, 1.0))
            heights, edges = (100 * counts / len(values)).numpy(), bounds.numpy()
            mean = float(values.double().mean())
            title = f"{name}: mean {mean:.3f}\n{count} pairs"
            axes.stairs(heights, edges, fill=True, color=color, alpha=0.35, linewidth=0)
            axes.stairs(heights, edges, color=color, linewidth=1.4, label=title)
            axes.axvline(mean, color=color, linestyle=(0, (4, 2)), linewidth=1.2)
        axes.set_title(_short(label, 70))
        axes.set_ylabel("share of pairs, %")
        handles, names = axes.get_legend_handles_labels()
        axes.legend(
            handles[::-1], names[::-1], loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, labelspacing=0.9
        )
        axes.set_xlim(-1, 1)
    panels[0].set_ylim(bottom=0)  # once all is drawn: it ends the scaling of the shared axis
    panels[-1].set_xlabel("cosine between embedding and class weight")
    return figure


@styled
def embedding_map(runs: Sequence[Run]) -> Figure:
    """The embeddings in two dimensions, coloured by class: one panel a run, at most 5000 points each.

    Where D = 2, the plane itself, with each class weight's direction as a ray. Otherwise the first two principal
    components of the L2-normalised embeddings, which share a unit length; the axis labels say how much of the variance
    they explain. Up to 20 classes are named in the legend; of more classes, as many are named in the map as fit.
    """
    columns = min(len(runs), 2)
    rows = math.ceil(len(runs) / columns)
    classes = runs[0].classes
    named = len(classes) <= MAX_NAMED and all(run.classes == classes for run in runs)
    side = 5.2 if len(runs) == 1 else 4.4
    figure = Figure(figsize=(side * columns + 1.6 * named, side * rows + 0.3))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, run, label in zip(panels, runs, labels(runs), strict=False):
        if run.embeddings.shape[1] == 2:
            _draw_plane(axes, run)
        else:
            _draw_components(axes, run, side)
        axes.set_aspect("equal", adjustable="box")
        axes.set_title(_short(label, 44))
        axes.locator_params(nbins=6)
    for axes in panels[len(runs) :]:
        axes.set_axis_off()
    if named:
        handles = [
            Line2D([], [], linestyle="", marker=_marker(index), color=_color(index), markersize=6)
            for index in range(len(classes))
        ]
        figure.legend(handles, [_short(name) for name in classes], loc="outside right center")
    return figure


def _draw_plane(axes: Any, run: Run) -> None:
    rows = _drawn(run)
    _scatter(axes, run.embeddings[rows], run.target[rows])
    reach = 1.08 * float(run.embeddings[rows].norm(dim=1).max())
    rays = reach * normalize(run.class_weights, dim=1)
    lone = _scattered(rays / reach, 0.14)
    for index, (x, y) in enumerate(rays.tolist()):
        axes.plot([0, x], [0, y], color=INK, linewidth=1.0 if len(rays) <= MAX_NAMED else 0.6, zorder=3)
        if lone[index]:
            side = "center" if abs(x) < 0.3 * reach else "left" if x > 0 else "right"
            axes.text(1.06 * x, 1.06 * y, _short(run.classes[index], 12), ha=side, va="center", fontsize=9)
    axes.set_xlim(-1.4 * reach, 1.4 * reach)
    axes.set_ylim(-1.4 * reach, 1.4 * reach)
    axes.set_xlabel("embedding, first number")
    axes.set_ylabel("embedding, second number")


def _scattered(points: Tensor, gap: float) -> list[bool]:
    """Which of the points (M, 2) to label, the first come first, so that no two labels are nearer than ``gap``."""
    kept: list[int] = []
    for index, point in enumerate(points):
        if not kept or float((points[kept] - point).norm(dim=1).min()) >= gap:
            kept.append(index)
    return [index in kept for index in range(len(points))]


def _draw_components(axes: Any, run: Run, inches: float) -> None:
    plane, explained = principal_components(normalize(run.embeddings, dim=1))
    rows = _drawn(run)
    _scatter(axes, plane[rows], run.target[rows])
    axes.set_xlabel(f"first principal component ({100 * explained[0]:.1f} % of variance)")
    axes.set_ylabel(f"second principal component ({100 * explained[1]:.1f} % of variance)")
    centre = (plane.amax(0) + plane.amin(0)) / 2
    reach = 0.54 * max(float((plane.amax(0) - plane.amin(0)).max()), 1e-3)
    axes.set_xlim(float(centre[0]) - reach, float(centre[0]) + reach)
    axes.set_ylim(float(centre[1]) - reach, float(centre[1]) + reach)
    _name_clusters(axes, run, plane, inch=2 * reach / (inches - 0.8))


def _name_clusters(axes: Any, run: Run, plane: Tensor, inch: float) -> None:
    """Class names at the classes' centres, the outermost first, each only where it covers no other name.

    ``inch`` is how much of the plane an inch of paper shows.
    """
    present = torch.unique(run.target)
    centres = torch.stack([plane[run.target == index].mean(0) for index in present])
    size = 9 if len(run.classes) <= MAX_NAMED else 7.5
    boxes: list[tuple[float, float, float, float]] = []
    for row in (centres - plane.mean(0)).norm(dim=1).argsort(descending=True).tolist():
        (x, y), name = centres[row].tolist(), _short(run.classes[int(present[row])], 14)
        half_width, half_height = 0.32 * len(name) * size / 72 * inch, 0.7 * size / 72 * inch
        if any(abs(x - left) < half_width + w and abs(y - low) < half_height + h for left, low, w, h in boxes):
            continue
        boxes.append((x, y, half_width, half_height))
        axes.text(x, y, name, ha="center", va="center", fontsize=size, path_effects=[_halo()], zorder=4)


def principal_components(points: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """The first two principal components of points (N, D): coordinates (N, 2) and the shares of variance explained.

    The sign of each is such that its largest loading is positive, so that the same points give the same picture.

    Example:
        >>> plane, explained = principal_components(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
        >>> explained
        (1.0, 0.0)
    """
    points = points.double()
    centered = points - points.mean(0)
    if centered.shape[1] == 1:
        centered = torch.cat([centered, torch.zeros_like(centered)], dim=1)
    variances, directions = torch.linalg.eigh(centered.T @ centered)
    axes = directions[:, [-1, -2]]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    shares = (variances.clamp_min(0) / variances.clamp_min(0).sum().clamp_min(1e-30)).tolist()
    return (centered @ axes).float(), (shares[-1], shares[-2])


def _drawn(run: Run) -> Tensor:
    """Rows to draw, in random order so that no class lies over all others."""
    return torch.randperm(len(run.target), generator=torch.Generator().manual_seed(0))[:MAX_POINTS]


def _scatter(axes: Any, points: Tensor, target: Tensor) -> None:
    area = 14 if len(points) <= 1000 else 7
    for marker in ("o", "^"):
        rows = torch.tensor([_marker(index) == marker for index in target.tolist()])
        if rows.any():
            colors = [_color(index) for index in target[rows].tolist()]
            x, y = points[rows].numpy().T
            axes.scatter(x, y, s=area, c=colors, marker=marker, alpha=0.7, linewidths=0)


def _halo() -> Any:
    return patheffects.withStroke(linewidth=2.5, foreground="white")


def _color(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _marker(index: int) -> str:
    return "o" if index // len(PALETTE) % 2 == 0 else "^"


@styled
def learning_curves(runs: Sequence[Run]) -> Figure:
    """Loss in nats and accuracy in percent over the epochs: a colour a run, dashed on training, solid on evaluation.

    The training loss includes the margin, the evaluation loss does not. The loss axis is logarithmic where the losses
    span more than a factor of 20.
    """
    figure = Figure(figsize=(8.6, 3.4 + 0.22 * len(runs)))
    left, right = figure.subplots(1, 2)
    losses: list[float] = []
    for index, run in enumerate(runs):
        epochs = [epoch["epoch"] for epoch in run.history]
        for split, line in (("train", (0, (4, 2))), ("eval", "-")):
            loss = _column(run, f"{split}_loss")
            accuracy = [100 * value for value in _column(run, f"{split}_accuracy")]
            style = {
                "color": _color(index),
                "linestyle": line,
                "marker": "o" if len(epochs) <= 30 else "",
                "markersize": 3.5,
            }
            left.plot(epochs, loss, **style)
            right.plot(epochs, accuracy, **style)
            losses += [value for value in loss if math.isfinite(value)]
    left.set_title("Loss")
    left.set_ylabel("loss, nats")
    right.set_title("Accuracy")
    right.set_ylabel("accuracy, %")
    if losses and min(losses) > 0 and max(losses) > 20 * min(losses):
        left.set_yscale("log")
        left.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        left.yaxis.set_minor_formatter(ticker.NullFormatter())
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, min_n_ticks=1))
    handles = [Line2D([], [], color=_color(index)) for index in range(len(runs))]
    names = [_short(label, 70) for label in labels(runs)]
    handles += [Line2D([], [], color=INK), Line2D([], [], color=INK, linestyle=(0, (4, 2)))]
    figure.legend(handles, [*names, "evaluation", "training"], loc="outside lower left", ncols=1 + (len(runs) == 1) * 2)
    return figure


def _column(run: Run, key: str) -> list[float]:
    """A column of the history; what an epoch lacks is a gap in the line."""
    values = [epoch.get(key) for epoch in run.history]
    return [math.nan if value is None else float(value) for value in values]


@styled
def logit_curves(curves: Sequence[LogitCurve]) -> Figure:
    """What losses make of a cosine, and where they draw the line between two classes.

    On the left the logits s P(c) (solid) and s N(c) (dashed) against the cosine c. On the right the decision boundary
    in the plane of the cosines to the own class c_y and to another class c_j, both from -1 to 1: where
    s P(c_y) = s N(c_j). A loss pulls each sample to the right of and below its line. In grey the plain cosine softmax,
    P = N = c.

    Example:
        >>> c = torch.linspace(-1, 1, 201)
        >>> figure = logit_curves([LogitCurve("cosface", 30.0, c, c - 0.35, c)])
    """
    names = _distinct(curves)
    figure = Figure(figsize=(9.2, 4.0 + 0.22 * len(curves)))
    left, right = figure.subplots(1, 2)
    line = torch.tensor([-1.0, 1.0])
    for scale in sorted({curve.scale for curve in curves}):
        left.plot(line, scale * line, color=GREY, linewidth=1, linestyle=":")
    right.plot(line, line, color=GREY, linewidth=1, linestyle=":")
    for index, curve in enumerate(curves):
        cosine = curve.cosines.double()
        positive, negative = (curve.scale * values.double() for values in (curve.positive, curve.negative))
        color = _color(index)
        left.plot(cosine.numpy(), positive.numpy(), color=color)
        left.plot(cosine.numpy(), negative.numpy(), color=color, linestyle=(0, (4, 2)))
        lead = (positive[None, :] - negative[:, None]).numpy()
        if len(curves) == 1:
            right.contourf(cosine.numpy(), cosine.numpy(), lead, levels=[0, math.inf], colors=[color], alpha=0.15)
        if lead.min() < 0 < lead.max():
            right.contour(cosine.numpy(), cosine.numpy(), lead, levels=[0], colors=[color], linewidths=1.8)
    left.set_title("Logit of a cosine")
    left.set_xlabel("cosine c")
    left.set_ylabel("logit")
    left.set_xlim(-1, 1)
    right.set_title("Decision boundary")
    right.set_xlabel("cosine to the own class, c_y")
    right.set_ylabel("cosine to another class, c_j")
    right.set_xlim(-1, 1)
    right.set_ylim(-1, 1)
    right.set_aspect("equal")
    for x, y, side, words in ((0.94, -0.92, "right", "own class wins"), (-0.94, 0.86, "left", "other class wins")):
        right.text(x, y, words, ha=side, fontsize=9, path_effects=[_halo()])
    handles = [Line2D([], [], color=_color(index)) for index in range(len(curves))]
    handles += [
        Line2D([], [], color=INK),
        Line2D([], [], color=INK, linestyle=(0, (4, 2))),
        Line2D([], [], color=GREY, linewidth=1, linestyle=":"),
    ]
    kinds = ["own class, s P(c)", "other class, s N(c)", "no margin, P = N = c"]
    figure.legend(handles, [*names, *kinds], loc="outside lower left", ncols=2 if len(curves) > 1 else 4)
    return figure


def _distinct(curves: Sequence[LogitCurve]) -> list[str]:
    names = [f"{_short(curve.name, 60)}, s = {curve.scale:.4g}" for curve in curves]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]


@styled
def confusion(run: Run) -> Figure:
    """How often each class is taken for which, in percent of the true class's samples; up to 20 classes.

    Raises:
        ValueError: there are more than 20 classes; the table per class says more than a picture could.
    """
    classes = len(run.classes)
    if classes > MAX_NAMED:
        raise ValueError(f"{run.path}: {classes} classes are too many for a confusion matrix; at most {MAX_NAMED}")
    counts = torch.bincount(run.target * classes + run.logits.argmax(1), minlength=classes**2).view(classes, classes)
    percent = (100 * counts / counts.sum(1, keepdim=True).clamp_min(1)).numpy()
    side = 2.4 + 0.42 * classes
    figure = Figure(figsize=(side + 0.7, side))
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for row in range(classes):
        for column in range(classes):
            if counts[row, column]:
                value = percent[row, column]
                axes.text(
                    column,
                    row,
                    f"{value:.0f}" if value >= 1 else "<1",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if value > 55 else INK,
                )
    names = [_short(name, 16) for name in run.classes]
    upright = max(map(len, names)) <= 3
    axes.set_xticks(range(classes), names, rotation=0 if upright else 45, ha="center" if upright else "right")
    axes.set_yticks(range(classes), names)
    if not upright:
        axes.tick_params(axis="x", pad=2)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(_short(labels([run])[0], 44))
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class, %").outline.set_visible(False)
    return figure


def _short(text: str, length: int = 22) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
