"""The style of still pictures, and how a figure becomes a file. Nothing global is touched for good."""

import io
import warnings
from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(STYLE | {"font.family": ["DejaVu Sans", *_fallback_fonts()]})


@cache
def _fallback_fonts() -> list[str]:
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return [name for name in FALLBACK_FONTS if name in installed]


def styled(draw: Callable[P, "Figure"]) -> Callable[P, "Figure"]:
    """Draws in this package's style."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        with _style():
            return draw(*args, **kwargs)

    return drawn


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file's content, 150 dots an inch; the same bytes for the same figure.

    Example:
        >>> from matplotlib.figure import Figure
        >>> png(Figure(figsize=(1, 1)))[1:4]
        b'PNG'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    with _style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return content.getvalue()
