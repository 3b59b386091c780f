"""Does the search for the nearest embeddings, by cosine, find the right class?

A zero embedding has cosine 0 to everything. Of equally near samples the one with the lower index is nearer, so that
embeddings that are all the same come out at chance.

The search is exact and in blocks: of N samples it holds N directions, and of the (N, N) cosines some at a time.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cssoftmax.metrics import _products
from cssoftmax.metrics._checks import directions, labels, positive

# Numbers held of what is found; and how many are so few that none is let go of.
HELD, FEW = 2**22, 2**19
# Samples that tell how near the k nearest will be: at least so many, and so many times the root of all.
SAMPLE = 4096, 32

Array = np.ndarray[Any, np.dtype[np.float64]]

# Searched for at a time in FAISS's index.
TOGETHER = 4096

# Called with the number of samples that were searched for, and that of all.
Watch = Callable[[int, int], None]


def recall_at_1(embeddings: Tensor, target: Tensor) -> float:
    """The fraction of samples whose nearest other sample is of the same class, from 0 to 1.

    Also called precision at 1, or leave-one-out nearest-neighbour accuracy. Samples that are alone in their class are
    searched among, but not for; nan if all are alone.

    Args:
        embeddings: (N, D), finite.
        target: (N,), integers.

    Raises:
        ValueError: shapes that do not fit, no samples, embeddings that are not finite.
        TypeError: embeddings that are not floating-point, a target that is not integer.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.5], [1.0, 2.0]])
    >>> recall_at_1(x, torch.tensor([0, 0, 1, 1]))  # the third is nearer to the second than to the fourth
    0.75
    """
    return leave_one_out(embeddings, target)[0]


def map_at_r(embeddings: Tensor, target: Tensor) -> float:
    """Mean average precision at R, from 0 to 1 (Musgrave et al. 2020, "A Metric Learning Reality Check", section 3.2).

    For a sample with R others of its class, the mean over the ranks i = 1 to R of the precision among the i nearest
    others where the i-th is of the same class, and 0 where it is not; then the mean over the samples. Samples with
    R = 0 are searched among, but not for; nan if there are no others.

    Args:
        embeddings: (N, D), finite.
        target: (N,), integers.

    Raises:
        ValueError: shapes that do not fit, no samples, embeddings that are not finite.
        TypeError: embeddings that are not floating-point, a target that is not integer.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [0.0, 1.0]])
    >>> map_at_r(x, torch.tensor([0, 1, 0, 2]))  # R = 1 for both samples of class 0, and their nearest is of class 1
    0.0
    """
    return leave_one_out(embeddings, target)[1]


def leave_one_out(embeddings: Tensor, target: Tensor, watch: Watch | None = None) -> tuple[float, float]:
    """``recall_at_1`` and ``map_at_r`` in one search, which is what takes the time; ``watch`` is told how far it is.

    >>> leave_one_out(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
    (1.0, 1.0)
    """
    x = directions(embeddings)
    y = labels(target, len(x))
    queries, others = _queries(y)
    if len(queries) == 0:
        return math.nan, math.nan
    first, average, done = 0.0, 0.0, 0
    while done < len(queries):
        most = int(others[min(done + _products.SIDE, len(others)) - 1])
        part = slice(done, done + _rows(most))
        rows, r = queries[part], others[part]
        recall, precision = _hits(y[_nearest(x[rows], x, int(r[-1]), rows)] == y[rows][:, None], r)
        first, average, done = first + recall, average + precision, done + len(rows)
        if watch is not None:
            watch(done, len(queries))
    return first / len(queries), average / len(queries)


class Approximate(NamedTuple):
    """What :func:`approximate_leave_one_out` finds, and how well it searched."""

    recall_at_1: float
    map_at_r: float
    search_recall: float


def approximate_leave_one_out(
    embeddings: Tensor, target: Tensor, *, probes: int = 16, checked: int = 1000, seed: int = 0
) -> Approximate:
    """:func:`leave_one_out` with FAISS's inverted lists, for many millions of samples; it needs ``faiss-cpu``.

    k-means puts the samples into about sqrt(N) cells, and a sample is compared with those in the ``probes`` cells that
    are nearest to it, in float32.

    Args:
        embeddings: (N, D), finite.
        target: (N,), integers.
        probes: cells looked into, at least 1: the more, the slower and the more exact.
        checked: samples that are searched for exactly as well, to tell how good the search is.
        seed: of which those are.

    Returns:
        Both measures, and ``search_recall``: of the R nearest of the checked samples, the fraction that was found.

    Raises:
        ImportError: FAISS is not installed.
        ValueError, TypeError: as :func:`leave_one_out`.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError('approximate search needs the package faiss-cpu; pip install "cssoftmax[faiss]"') from error
    x = directions(embeddings)
    y = labels(target, len(x))
    positive(probes, "probes")
    queries, others = _queries(y)
    if len(queries) == 0:
        return Approximate(math.nan, math.nan, math.nan)
    cells = max(1, math.isqrt(len(x)))
    vectors = x.float().numpy()
    index = faiss.index_factory(vectors.shape[1], f"IVF{cells},Flat", faiss.METRIC_INNER_PRODUCT)
    faiss.extract_index_ivf(index).cp.min_points_per_centroid = 1  # else it warns
    index.train(vectors[np.random.default_rng(seed).permutation(len(x))[: 64 * cells]])
    index.add(vectors)
    faiss.extract_index_ivf(index).nprobe = min(probes, cells)

    def search(rows: Tensor, k: int) -> Tensor:
        """The k nearest others, -1 where the cells hold fewer."""
        found = torch.from_numpy(index.search(vectors[rows.numpy()], k + 1)[1])
        # Of k + 1 without itself; where it is not among them, without the last.
        itself = found == rows[:, None]
        itself[:, -1] |= ~itself.any(1)
        without: Tensor = found[~itself].view(len(rows), k)
        return without

    first, average = 0.0, 0.0
    for rows, r in zip(torch.split(queries, TOGETHER), torch.split(others, TOGETHER), strict=True):
        found = search(rows, int(r.max()))
        recall, precision = _hits((y[found] == y[rows][:, None]) & (found >= 0), r)
        first, average = first + recall, average + precision
    sample = torch.randperm(len(queries), generator=torch.Generator().manual_seed(seed))[:checked]
    found_number = 0
    for place in sample.tolist():
        row, k = queries[place : place + 1], int(others[place])
        found_number += len(np.intersect1d(search(row, k), _nearest(x[row], x, k, row)))
    share = found_number / int(others[sample].sum())
    return Approximate(first / len(queries), average / len(queries), share)


def knn_accuracy(
    train_embeddings: Tensor,
    train_target: Tensor,
    embeddings: Tensor,
    target: Tensor,
    k: int = 5,
    watch: Watch | None = None,
) -> float:
    """The fraction of samples that a vote of their ``k`` nearest training samples puts into the right class, 0 to 1.

    Every neighbour has one vote; of classes with equally many, that of the nearest neighbour wins.

    Args:
        train_embeddings: (M, D), finite.
        train_target: (M,), integers.
        embeddings: (N, D), finite.
        target: (N,), integers.
        k: at least 1; above M it counts as M.
        watch: is told how far it is.

    Raises:
        ValueError: shapes that do not fit, no samples, embeddings that are not finite, k below 1.
        TypeError: embeddings that are not floating-point, targets or k that are not integer.

    >>> train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> knn_accuracy(train, torch.tensor([0, 1]), torch.tensor([[3.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]), k=1)
    0.5
    """
    gallery = directions(train_embeddings, "train_embeddings")
    gallery_labels = labels(train_target, len(gallery), "train_target")
    x = directions(embeddings)
    y = labels(target, len(x))
    if x.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"embeddings: expected {gallery.shape[1]} columns, as many as train_embeddings, got {x.shape[1]}"
        )
    k = min(positive(k, "k"), len(gallery))
    right = 0
    for rows in torch.split(torch.arange(len(x)), _rows(k**2)):
        near = gallery_labels[_nearest(x[rows], gallery, k)]
        votes = (near[:, :, None] == near[:, None, :]).sum(2)
        elected = (votes * k - torch.arange(k)).argmax(1, keepdim=True)  # most votes, then nearest
        right += int((near.gather(1, elected).flatten() == y[rows]).sum())
        if watch is not None:
            watch(int(rows[-1]) + 1, len(x))
    return right / len(x)


def _queries(target: Tensor) -> tuple[Tensor, Tensor]:
    """The samples that others of their class can be searched for, and how many those are; the fewest first."""
    _, index, counts = torch.unique(target, return_inverse=True, return_counts=True)
    others, queries = (counts[index] - 1).sort(stable=True)
    some = others > 0
    return queries[some], others[some]


def _hits(same: Tensor, others: Tensor) -> tuple[float, float]:
    """Sums over samples of whether the nearest is of the class, and of the average precision among the R nearest.

    ``same`` (B, k) says which of the nearest are of the class, ``others`` (B,) is R, k at most.
    """
    rank = torch.arange(1, same.shape[1] + 1)
    hit = (same & (rank <= others[:, None])).double()
    return float(hit[:, 0].sum()), float(((hit.cumsum(1) / rank * hit).sum(1) / others).sum())


def _rows(held: int) -> int:
    """How many samples to search neighbours for at a time, where each holds so many numbers."""
    return max(1, min(_products.SIDE, HELD // held))


def _nearest(queries: Tensor, gallery: Tensor, k: int, itself: Tensor | None = None) -> Tensor:
    """Indices of the k nearest of the gallery, nearest first: (B, k); without the one at index ``itself`` (B,)."""
    # A key is the cosine as a whole number (in steps of 2^-38 with 10,000 samples) less the index as a fraction, which
    # fits the 53 bits of a float64. All keys differ, so that what is nearer depends neither on rounding in the product
    # nor on how equal ones are sorted.
    width = 2 ** len(gallery).bit_length()
    queries = queries * (2**52 // width)
    fractions = torch.arange(len(gallery), dtype=torch.float64) / width
    bars, share = _bars(queries, gallery, k)
    rows, best = torch.arange(len(queries)), torch.empty(len(queries), k, dtype=torch.float64)
    while len(rows):
        left, bar = queries[rows], bars[rows]
        held: list[tuple[Tensor, Tensor]] = []
        number = 0
        for first in range(0, len(gallery), _products.SIDE):
            part = slice(first, first + _products.SIDE)
            places = None if itself is None else itself[rows] - first
            held.append(_above(bar, left, gallery[part], fractions[part], places, share < _products.FEW))
            number += len(held[-1][0])
            if number > 2 * max(len(rows) * k, FEW):
                row, keys, full = _largest(held, len(rows), k)
                bar[full] = keys[full[row]].view(-1, k)[:, -1]
                held, number = [(row, keys)], len(row)
        row, keys, full = _largest(held, len(rows), k)
        best[rows[full]] = keys[full[row]].view(-1, k)
        rows, bars, share = rows[~full], torch.full_like(bars, -math.inf), 1.0
    near: Tensor = ((best.ceil() - best) * width).long()
    return near


def _bars(queries: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, float]:
    """For each query a key that hardly ever more than a few over k of the gallery pass, and hardly ever fewer: (B,).

    And about which share of the gallery passes it. Judged by a sample; it spares sorting the rest.
    """
    least, roots = SAMPLE
    sample = gallery[:: max(1, len(gallery) // max(least, roots * math.isqrt(len(gallery))))]
    expected = k * len(sample) / len(gallery)
    rank = int(expected + 4 * math.sqrt(expected) + 8)
    if rank >= len(sample):
        return queries.new_full((len(queries),), -math.inf), 1.0
    keys = queries.float() @ sample.float().T
    return keys.topk(rank, sorted=False).values.amin(1).double(), rank / len(sample)


def _above(
    bars: Tensor, queries: Tensor, gallery: Tensor, fractions: Tensor, itself: Tensor | None, screened: bool
) -> tuple[Tensor, Tensor]:
    """The keys that pass their query's bar, and perhaps some more, row by row: rows and keys.

    Where products are ``screened`` in float32, only those are computed exactly that could pass; where many could, all.
    """

    def passing(products: Tensor, bars: Tensor) -> tuple[Tensor, Tensor]:
        above = products > bars.to(products.dtype)[:, None]
        if itself is not None:
            here = ((itself >= 0) & (itself < len(gallery))).nonzero().squeeze(1)
            above[here, itself[here]] = False
        place = _products.places(above)
        ends = torch.searchsorted(place, torch.arange(len(above) + 1) * len(gallery))
        return torch.arange(len(above)).repeat_interleave(ends.diff()), place

    dtype = _products.screening_dtype() if screened else torch.float64
    if dtype == torch.float32:
        slack = _products.screening_error(queries.shape[1]) * queries.norm(dim=1)
        row, place = passing(queries.to(dtype) @ gallery.to(dtype).T, bars - slack - 1)
        if len(place) < _products.FEW * len(queries) * len(gallery):
            keys = _products.exact(queries, gallery, place).round_()
            return row, keys.sub_(fractions[place - row * len(gallery)])
    keys = (queries @ gallery.T).round_().sub_(fractions)
    row, place = passing(keys, bars)
    return row, keys.flatten()[place]


def _largest(held: list[tuple[Tensor, Tensor]], number: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``number`` rows' keys each row's k largest, row by row and falling: rows, keys, and which rows have k."""
    row, keys = map(torch.cat, zip(*held, strict=True))
    counts = torch.bincount(row, minlength=number)
    lines = keys.numpy()[np.argsort(row.numpy().astype(np.int16), kind="stable")]
    kept = [np.sort(line)[: -k - 1 : -1] for line in np.split(lines, counts.cumsum(0)[:-1].numpy())]
    counts.clamp_(max=k)
    return torch.arange(number).repeat_interleave(counts), torch.from_numpy(np.concatenate(kept)), counts == k
