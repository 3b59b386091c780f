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
from matplotlib import font_manager, patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

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


def _halo() -> Any:
    return patheffects.withStroke(linewidth=2.5, foreground="white")


def _color(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _short(text: str, length: int = 22) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
