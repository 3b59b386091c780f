"""Draws the pictures of docs/: P, N and the decision boundary of every loss, and the sweep behind the defaults.

python tools/draw_docs.py    # or make pictures
"""

import io
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from sweep_defaults import at_usual_rate, read

from cssoftmax import bench
from cssoftmax import similarity as similarities
from cssoftmax.report.figures import GREY, INK, PALETTE, png, styled
from cssoftmax.similarity import Similarity

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"

# What is drawn of a loss: a name, the similarity, the embedding's length.
Curve = tuple[str, Similarity, float]
CURVES: dict[str, list[Curve]] = {
    "cs-softmax": [(f"m = 0.15, u = {u:g}", similarities.CSSoftmax(0.15, u), 1) for u in (0.0, 0.125, 1.0)]
    + [("m = 0.4, u = 0.125", similarities.CSSoftmax(0.4, 0.125), 1)],
    "softmax": [(f"|x| |w| = {length:g}", similarities.CosFace(normalized="none"), length) for length in (1, 2)],
    "normface": [("", similarities.CosFace(), 1)],
    "cosface": [(f"m = {m:g}", similarities.CosFace(m), 1) for m in (0.1, 0.35)],
    "arcface": [
        ("m = 0.2", similarities.ArcFace(0.2), 1),
        ("m = 0.5, linear", similarities.ArcFace(0.5), 1),
        ("m = 0.5, easy margin", similarities.ArcFace(0.5, "easy_margin"), 1),
    ],
    "subcenter-arcface": [("m = 0.5", similarities.ArcFace(0.5), 1)],
    "sphereface": [(f"m = 4, λ = {a:g}", similarities.SphereFace(4.0, a), 1) for a in (0.0, 5.0)],
    "adacos": [("", similarities.CosFace(), 1)],
    "curricularface": [(f"m = 0.5, t = {t:g}", similarities.CurricularFace(0.5, t=t), 1) for t in (0.0, 0.8)],
    "magface": [(f"|x| = {length:g}", similarities.MagFace(0.45), length) for length in (10, 60, 110)],
    "adaface": [
        (f"z = {z:g}", similarities.AdaFace(0.4, norm_mean=50.0, norm_std=10.0), length)
        for z, length in ((-1, 10), (0, 50), (1, 90))
    ],
    "elasticface": [(f"m = {m:g}", similarities.ArcFace(m), 1) for m in (0.475, 0.5, 0.525)],
    "circle": [(f"relaxation {r:g}", similarities.CSSoftmax(1 - 2 * r, 1.0), 1) for r in (0.25, 0.4)],
    "so-softmax": [(f"m = {m:g}", similarities.SOSoftmax(m), 1) for m in (0.2, 0.5)],
}
# Where N depends on the own cosine, it is drawn at this one.
OWN = 0.6


@styled
def loss_picture(curves: list[Curve]) -> Figure:
    """P (solid) and N (dashed) of a cosine, without the scale; and where P = N for two classes."""
    figure = Figure(figsize=(8.4, 4.1))
    left, right = figure.subplots(1, 2)
    cosine = torch.linspace(-1, 1, 401, dtype=torch.float64)
    line = torch.tensor([-1.0, 1.0])
    right.plot(line, line, color=GREY, linewidth=1, linestyle=":")
    for place, (_, similarity, length) in enumerate(curves):
        color = PALETTE[place]
        target, norm = torch.zeros(len(cosine), dtype=torch.long), torch.full_like(cosine, length)
        # Without both lengths divided out, what stands for the cosine is the inner product.
        inner = cosine if similarity.normalized == "both" else cosine * length
        rows = similarity.rows(inner, norm, target)
        positive = similarity.positive(inner, rows)
        at = similarity.rows(torch.full_like(inner, OWN), norm, target)
        negative = similarity.negative(inner, at)
        left.plot(cosine, positive, color=color)
        left.plot(cosine, negative, color=color, linestyle=(0, (4, 2)))
        columns = tuple(row[:, None] if isinstance(row, torch.Tensor) and row.ndim else row for row in rows)
        lead = positive[:, None] - similarity.negative(inner.expand(len(inner), -1), columns)
        right.contour(cosine, cosine, lead.T, levels=[0], colors=[color], linewidths=1.8)
    for axes in (left, right):
        axes.locator_params(nbins=5)
    left.set_title("Similarity")
    left.set_xlabel("cosine c")
    left.set_xlim(-1, 1)
    left.set_ylim(bottom=max(left.get_ylim()[0], -2.2))
    right.set_title("Decision boundary")
    right.set_xlabel("cosine to the own class, c_y")
    right.set_ylabel("cosine to another class, c_j")
    right.set_xlim(-1, 1)
    right.set_ylim(-1, 1)
    right.set_aspect("equal")
    right.text(0.94, -0.92, "own class wins", ha="right", fontsize=9, color=GREY)
    right.text(-0.94, 0.86, "other class wins", fontsize=9, color=GREY)
    named = [(name, PALETTE[place]) for place, (name, *_) in enumerate(curves) if name]
    handles = [Line2D([], [], color=color) for _, color in named]
    handles += [Line2D([], [], color=INK), Line2D([], [], color=INK, linestyle=(0, (4, 2)))]
    figure.legend(handles, [*(name for name, _ in named), "P", "N"], loc="outside lower left", ncols=6)
    return figure


@styled
def sweep_picture(folder: Path) -> Figure:
    """Accuracy and equal error rate over the margin, a line a weight update factor, a column a data set."""
    paths = [folder / f"{name}.jsonl" for name in ("mnist", "cifar10", "cifar100")]
    figure = Figure(figsize=(9.6, 5.4))
    panels = figure.subplots(2, len(paths), sharex=True)
    for column, path in enumerate(paths):
        _, usual = at_usual_rate(read(path))
        grid = [row for row in usual if row["loss"] == "cs-softmax" and row["probability"] == 0.999]
        plain = [row for row in usual if row["loss"] == "softmax"]
        for axes, key in zip(panels[:, column], ("accuracy", "eer"), strict=True):
            for place, u in enumerate(sorted({row["weight_update"] for row in grid})):
                points = sorted((row["margin"], 100 * row[key]) for row in grid if row["weight_update"] == u)
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=PALETTE[place])
            axes.axhline(100 * plain[0][key], color=INK, linestyle=(0, (4, 2)), linewidth=1.2)
            axes.locator_params(nbins=5)
        panels[0, column].set_title(path.stem)
        panels[1, column].set_xlabel("margin")
    panels[0, 0].set_ylabel("accuracy, %")
    panels[1, 0].set_ylabel("EER, %")
    handles = [Line2D([], [], color=PALETTE[place]) for place in range(4)]
    handles.append(Line2D([], [], color=INK, linestyle=(0, (4, 2))))
    names = [*(f"u = {u:g}" for u in (0, 0.25, 0.5, 1)), "plain softmax"]
    figure.legend(handles, names, loc="outside lower left", ncols=5)
    return figure


def save(picture: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path.relative_to(ROOT))


def main() -> None:
    for name, curves in CURVES.items():
        save(png(loss_picture(curves)), IMAGES / "losses" / f"{name}.png")
    save(png(sweep_picture(ROOT / "results" / "defaults")), IMAGES / "sweep.png")
    setting, measurements = bench.read(ROOT / "results" / "bench" / "head.json")
    save(bench.plot(measurements, setting["processor"]), IMAGES / "bench.png")


if __name__ == "__main__":
    main()
