"""What the page draws, as plain numbers: each function takes a run and returns what JSON can hold."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cssoftmax import metrics
from cssoftmax.report.run import Run

Facts = dict[str, Any]

MAX_NEGATIVES = 1_000_000
MAX_POINTS = 600
MAX_CELLS = 200
BINS = 100
PAIRS = 12
CURVE = 200


def learning(run: Run) -> Facts:
    """Losses in nats and accuracies as fractions over the epochs; what an epoch lacks is None."""
    keys = ("epoch", "train_loss", "eval_loss", "train_accuracy", "eval_accuracy")
    return {key: [_number(epoch.get(key)) for epoch in run.history] for key in keys}


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


def cosine_histograms(run: Run) -> Facts:
    """For own and other classes: shares of pairs, in percent, in bins 0.02 wide from -1 to 1; their mean; their number.

    ``drawn`` is how many of the pairs were counted, where it was not all of them.
    """
    facts = {}
    for name, values, pairs in zip(
        ("own", "other"), cosines(run), (len(run.target), run.logits.numel() - len(run.target)), strict=True
    ):
        counts = torch.histc(values.double().clamp(-1, 1), bins=BINS, min=-1, max=1)
        facts[name] = {
            "share": _rounded(100 * counts / max(len(values), 1), 4),
            "mean": _number(float(values.double().mean())) if len(values) else None,
            "pairs": pairs,
            "drawn": len(values) if len(values) < pairs else None,
        }
    return facts


def embedding_map(run: Run) -> Facts:
    """At most 600 samples, drawn at random, in 2-D and 3-D, and how each was classified.

    ``views`` are named lists of coordinates. Where D = 2 there is the plane itself, with the class weights' directions
    in ``rays``; otherwise the first two and three principal components of the L2-normalised embeddings of the whole
    split, and t-SNE (van der Maaten and Hinton 2008) of the drawn ones by cosine distance.
    """
    rows = torch.randperm(len(run.target), generator=torch.Generator().manual_seed(0))[:MAX_POINTS]
    directions = normalize(run.embeddings, dim=1)
    own = (directions * normalize(run.class_weights, dim=1)[run.target]).sum(1)
    facts: Facts = {
        "rows": rows.tolist(),
        "target": run.target[rows].tolist(),
        "predicted": run.logits[rows].argmax(1).tolist(),
        "cosine": _rounded(own[rows], 3),
    }
    if run.embeddings.shape[1] == 2:
        plane = run.embeddings[rows]
        reach = float(plane.norm(dim=1).max())
        rays = _rounded(reach * normalize(run.class_weights, dim=1), 4)
        return facts | {"views": [{"name": "The plane", "points": _rounded(plane, 4)}], "rays": rays}
    space, shares = principal_components(directions, 3)
    percents = [f"{100 * share:.1f} %" for share in shares]
    views = [
        {"name": "PCA, 2-D", "points": _rounded(space[rows, :2], 4), "axes": percents[:2]},
        {"name": "PCA, 3-D", "points": _rounded(space[rows], 4), "axes": percents},
    ]
    if len(rows) > 30:
        from sklearn.manifold import TSNE

        tsne = TSNE(2, init="pca", metric="cosine", max_iter=500, random_state=0)
        plane = torch.from_numpy(tsne.fit_transform(directions[rows].numpy()))
        views.append({"name": "t-SNE, 2-D", "points": _rounded(plane, 2)})
    return facts | {"views": views}


def principal_components(points: Tensor, count: int) -> tuple[Tensor, list[float]]:
    """The first principal components of points (N, D): coordinates (N, count) and the shares of variance explained.

    The sign of each is such that its largest loading is positive, so that the same points give the same picture.

    Example:
        >>> plane, explained = principal_components(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]), 2)
        >>> explained
        [1.0, 0.0]
    """
    points = points.double()
    centered = points - points.mean(0)
    if (missing := count - centered.shape[1]) > 0:
        centered = torch.cat([centered, centered.new_zeros(len(centered), missing)], dim=1)
    variances, directions = torch.linalg.eigh(centered.T @ centered)
    axes = directions[:, -count:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    shares = (variances.clamp_min(0) / variances.clamp_min(0).sum().clamp_min(1e-30)).flip(0)[:count]
    return (centered @ axes).float(), shares.tolist()


def confusion(run: Run) -> list[list[int]] | None:
    """How often each class (row) is taken for each (column); None above 200 classes."""
    if len(run.classes) > MAX_CELLS:
        return None
    return metrics.confusion_matrix(run.logits, run.target).tolist()


def verification(run: Run) -> Facts | None:
    """The ROC, thinned to about 200 points, and the same on the axes of a DET curve; None where it is not defined.

    ``far`` and ``tar`` are rates; ``far_deviate`` and ``miss_deviate`` the standard normal's quantiles of the false
    accept rate and of 1 - TAR (Martin et al. 1997, "The DET curve in assessment of detection task performance").
    """
    scores, same = metrics.pair_scores(run.embeddings, run.target)
    if same.all() or not same.any():
        return None
    far, tar, _ = metrics.roc(scores, same)
    # Even steps on the axes that people read: the logarithm of FAR, and the deviates.
    lowest = 1 / max(int((~same).sum()), 1)
    steps = torch.cat([torch.logspace(math.log10(lowest), 0, CURVE, dtype=torch.float64), torch.linspace(0, 1, 50)])
    index = torch.unique(torch.searchsorted(far, steps.sort().values, right=True).sub(1).clamp(min=0))
    far, tar = far[index], tar[index]
    inside = (far > 0) & (far < 1) & (tar > 0) & (tar < 1)
    deviates = [torch.special.ndtri(rate[inside]) for rate in (far, 1 - tar)]
    return {
        "far": _significant(far),
        "tar": _significant(tar),
        "far_deviate": _rounded(deviates[0], 4),
        "miss_deviate": _rounded(deviates[1], 4),
        "pairs": len(scores),
    }


def hardest_pairs(run: Run) -> Facts:
    """The pairs of one class that are furthest apart, and those of two classes that are closest: rows and cosine."""
    facts = {}
    for name, same in (("same", True), ("different", False)):
        pairs, values = metrics.hardest_pairs(run.embeddings, run.target, PAIRS, same=same)
        facts[name] = [
            {
                "rows": pair,
                "classes": run.target[pair].tolist(),
                "cosine": value,
            }
            for pair, value in zip(pairs.tolist(), _rounded(values, 3), strict=True)
        ]
    return facts


def errors(run: Run) -> list[Facts]:
    """The errors that the network was surest of, each with the row that is typical of the class it was taken for."""
    typical = metrics.typical_samples(run.embeddings, run.target)
    cosine = normalize(run.embeddings, dim=1) @ normalize(run.class_weights, dim=1).T
    found = []
    for row in metrics.surest_errors(run.logits, run.target, PAIRS).tolist():
        own, taken = int(run.target[row]), int(run.logits[row].argmax())
        found.append(
            {
                "row": row,
                "class": own,
                "taken": taken,
                "typical": typical.get(taken),
                "cosine": round(float(cosine[row, own]), 3),
                "taken_cosine": round(float(cosine[row, taken]), 3),
            }
        )
    return found


def classes(run: Run) -> list[Facts]:
    """Class by class: samples, accuracy, compactness, the nearest wrong class, the angle to it, and the margin.

    Compactness is the mean angle of a class's samples to their mean direction, and the angle to the nearest class is
    between mean directions; both in degrees. The margin is the mean, over the samples, of the lead of the cosine to the
    own class weight over the largest other one. A class without samples has None in their place.
    """
    present, centres = metrics.class_centres(run.embeddings, run.target)
    spread = metrics.intra_class_angles(run.embeddings, run.target).tolist()
    angle = metrics.inter_class_angles(run.embeddings, run.target).tolist()
    nearest = (centres @ centres.T).fill_diagonal_(-math.inf).argmax(1)
    typical = metrics.typical_samples(run.embeddings, run.target)
    margin = metrics.class_margins(run.embeddings, run.class_weights, run.target)
    index = torch.searchsorted(present, run.target)
    right = _means(run.logits.argmax(1) == run.target, index).tolist()
    margins = _means(margin, index).tolist()
    counts = index.bincount().tolist()
    facts: list[Facts] = [
        dict.fromkeys(("accuracy", "spread", "nearest", "angle", "margin", "typical")) | {"name": name, "samples": 0}
        for name in run.classes
    ]
    for place, number in enumerate(present.tolist()):
        facts[number] |= {
            "samples": counts[place],
            "accuracy": right[place],
            "spread": round(spread[place], 2),
            "nearest": int(present[nearest[place]]) if len(present) > 1 else None,
            "angle": _number(round(angle[place], 2)),
            "margin": _number(round(margins[place], 4)),
            "typical": typical[number],
        }
    return facts


def _means(values: Tensor, index: Tensor) -> Tensor:
    """The mean of values (N,) over the samples of each class, by its place in ``index`` (N,)."""
    return torch.bincount(index, weights=values.double()) / torch.bincount(index)


def _number(value: Any) -> float | None:
    """JSON has no nan and no infinity."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _rounded(values: Tensor, digits: int) -> list[Any]:
    rounded: list[Any] = (values.double() * 10**digits).round().div(10**digits).tolist()
    return rounded


def _significant(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


def worst(rows: Sequence[Facts], count: int) -> list[Facts]:
    """Of more than ``count`` classes the least accurate ones, the worst first; otherwise all, in their order."""
    if len(rows) <= count:
        return list(rows)
    return sorted(rows, key=lambda row: math.inf if row["accuracy"] is None else row["accuracy"])[:count]
