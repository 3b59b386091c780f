"""Same or different? Pairs of embeddings as verification trials, scored by cosine.

``pair_scores`` and ``roc`` hold the scores; ``verify_all_pairs`` does without, for the pairs of millions of samples.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import sklearn.metrics
import torch
from sklearn.exceptions import UndefinedMetricWarning
from torch import Tensor

from cssoftmax.metrics._checks import directions, labels, positive

ROWS = 16, 512

# verify_all_pairs: cosines count in steps of 2^-36, as a digit of 2^16 and one of 2^21; samples compared at a time.
STEPS, FINE = 2**36, 2**21
SIDE = 1024


def pair_scores(
    embeddings: Tensor, target: Tensor, *, max_pairs: int = 2_000_000, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Cosines of pairs of samples, and whether the two are of the same class.

    All N (N - 1) / 2 pairs where they are at most ``max_pairs``, else ``max_pairs`` of them: with samples in a random
    cyclic order, each with its next one, its next but one, and so on. No pair comes twice, every pair is as likely as
    any other, so same and different pairs come in their natural ratio on average, and every sample takes part equally
    often (but for the last incomplete round). Such a balanced sample estimates means over all pairs with less variance
    than independent draws (Lee 1990, "U-Statistics", chapter 4). A zero embedding has cosine 0 to everything.

    Args:
        embeddings: (N, D), finite, N at least 2.
        target: (N,), integers.
        max_pairs: at least 1.
        seed: of the order.

    Returns:
        scores (P,), float64 from -1 to 1, and same (P,), bool, in no particular order of pairs.

    Raises:
        ValueError: shapes that do not fit, fewer than two samples, embeddings that are not finite, max_pairs below 1.
        TypeError: embeddings that are not floating-point, a target or max_pairs that is not integer.

    >>> scores, same = pair_scores(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
    >>> sorted(zip(scores.tolist(), same.tolist()))
    [(0.0, False), (0.0, False), (1.0, True)]
    """
    x = directions(embeddings)
    y = labels(target, len(x))
    n = len(x)
    if n < 2:
        raise ValueError("embeddings: expected at least two samples, for a pair, got one")
    pairs = min(positive(max_pairs, "max_pairs"), n * (n - 1) // 2)
    shifts = -(-pairs // n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    x, y = torch.cat([x[order], x[order[:shifts]]]), torch.cat([y[order], y[order[:shifts]]])

    # Row s of both: samples 0 to N - 1 with those s + 1 further on. All pairs are (N - 1) / 2 rows; for even N the last
    # row would hold its pairs twice, and `pairs` cuts it in half.
    scores = torch.empty(shifts, n, dtype=x.dtype)
    same = y.unfold(0, n, 1)[1:] == y[:n]
    height = min(max(shifts, ROWS[0]), ROWS[1])
    for first in range(0, n, height):
        last = min(first + height, n)
        block = x[first:last] @ x[first + 1 : last + shifts].T
        band = torch.arange(last - first)[:, None] + torch.arange(shifts)
        scores[:, first:last] = block.gather(1, band).T
    return scores.flatten()[:pairs].clamp_(-1, 1), same.flatten()[:pairs]


def roc(scores: Tensor, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The receiver operating characteristic: what accepting all pairs with a score of at least a threshold brings.

    Args:
        scores: (P,), the higher the more alike; finite.
        same: (P,), bool.

    Returns:
        The false accept rate (different pairs accepted), the true accept rate (same pairs accepted), and the threshold,
        all float64, one entry for each different score, descending, after a first one that accepts nothing (threshold
        inf). Without different pairs the first is all nan, without same pairs the second.

    Raises:
        ValueError: shapes that do not fit, no pairs, scores that are not finite.
        TypeError: scores that are not floating-point, ``same`` that is not bool.

    >>> far, tar, threshold = roc(torch.tensor([0.9, 0.5, 0.1]), torch.tensor([True, False, True]))
    >>> far.tolist(), tar.tolist()
    ([0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 0.5, 1.0])
    """
    for name, x in (("scores", scores), ("same", same)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if not scores.is_floating_point():
        raise TypeError(f"scores: expected a floating-point tensor, got {scores.dtype}")
    if same.dtype != torch.bool:
        raise TypeError(f"same: expected a bool tensor, got {same.dtype}")
    if scores.ndim != 1 or len(scores) == 0 or scores.shape != same.shape:
        raise ValueError(
            f"scores, same: expected the same shape (P,) with at least one pair, "
            f"got {tuple(scores.shape)} and {tuple(same.shape)}"
        )
    if not scores.isfinite().all():
        raise ValueError("scores: holds NaN or infinite values")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        # Every threshold: those that scikit-learn drops by default matter to "the highest rate within a limit".
        rates = sklearn.metrics.roc_curve(
            same.cpu().numpy(), scores.detach().cpu().double().numpy(), drop_intermediate=False
        )
    far, tar, threshold = (torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in rates)
    return far, tar, threshold


def equal_error_rate(scores: Tensor, same: Tensor) -> float:
    """The rate at which as many different pairs are accepted as same pairs are rejected, from 0 to 1.

    Taken where the line through the points of the ROC crosses false accept rate = 1 - true accept rate. nan without
    same pairs, or without different pairs.

    Args:
        scores: (P,), the higher the more alike; finite.
        same: (P,), bool.

    Raises:
        ValueError: shapes that do not fit, no pairs, scores that are not finite.
        TypeError: scores that are not floating-point, ``same`` that is not bool.

    >>> scores = torch.tensor([0.9, 0.8, 0.6, 0.7, 0.2, 0.1])
    >>> round(equal_error_rate(scores, torch.tensor([True, True, True, False, False, False])), 4)
    0.3333
    """
    far, tar, _ = roc(scores, same)
    return crossing(far, tar)


def true_accept_rate(scores: Tensor, same: Tensor, far: float) -> float:
    """TAR at FAR: the highest true accept rate of a threshold whose false accept rate is at most ``far``, from 0 to 1.

    Nothing is interpolated: where not one different pair may be accepted (``far`` below 1 over their number), it is the
    rate at a false accept rate of 0. nan without same pairs, or without different pairs.

    Args:
        scores: (P,), the higher the more alike; finite.
        same: (P,), bool.
        far: the false accept rate, from 0 to 1.

    Raises:
        ValueError: shapes that do not fit, no pairs, scores that are not finite, ``far`` out of range.
        TypeError: scores that are not floating-point, ``same`` that is not bool.

    >>> true_accept_rate(torch.tensor([0.9, 0.5, 0.1]), torch.tensor([True, False, True]), far=0.01)
    0.5
    """
    if not 0 <= far <= 1:
        raise ValueError(f"far: expected a rate from 0 to 1, got {far}")
    rates, accepted, _ = roc(scores, same)
    return highest_within(rates, accepted, far)


def far_threshold(impostors: Tensor, far: float) -> float:
    """The lowest threshold at which at most the share ``far`` of these scores, which should be rejected, is accepted.

    Scores of at least the threshold are accepted. Where not one of P may be (``far`` below 1 / P), it lies just above
    the highest.

    Args:
        impostors: (P,), at least one, finite, the higher the more alike.
        far: the false accept rate, from 0 to 1.

    Raises:
        ValueError: ``impostors`` or ``far`` is not so.

    >>> scores = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    >>> threshold = far_threshold(scores, 0.25)
    >>> (scores >= threshold).tolist()
    [False, False, False, True]
    """
    if impostors.ndim != 1 or len(impostors) == 0 or not impostors.isfinite().all():
        raise ValueError(f"impostors: expected finite scores (P,), at least one, got shape {tuple(impostors.shape)}")
    if not 0 <= far <= 1:
        raise ValueError(f"far: expected a rate from 0 to 1, got {far}")
    allowed = math.floor(far * len(impostors) + 1e-9)
    if allowed == len(impostors):
        return -math.inf
    return math.nextafter(float(impostors.double().sort(descending=True).values[allowed]), math.inf)


class Verification(NamedTuple):
    """What :func:`verify_all_pairs` finds; rates from 0 to 1, ``true_accept_rates`` in the order of the FARs."""

    equal_error_rate: float
    true_accept_rates: tuple[float, ...]
    same_pairs: int
    different_pairs: int


def verify_all_pairs(
    embeddings: Tensor,
    target: Tensor,
    fars: Sequence[float] = (1e-2, 1e-3),
    watch: Callable[[int, int], None] | None = None,
) -> Verification:
    """``equal_error_rate`` and ``true_accept_rate`` over all N (N - 1) / 2 pairs, exactly, with none of them kept.

    The cosines are computed twice, some at a time: first to count them by their leading digit, which tells where the
    thresholds lie, then to count the single values there. Cosines that differ by less than 2^-36 may count as equal.

    Args:
        embeddings: (N, D), finite, N at least 2.
        target: (N,), integers.
        fars: false accept rates, from 0 to 1.
        watch: is told how many blocks of pairs are done, of how many.

    Returns:
        The rates, nan without same or without different pairs, and the numbers of pairs. Memory: N directions in
        float64 and about 200 MB.

    Raises:
        ValueError: shapes that do not fit, fewer than two samples, embeddings that are not finite, a rate out of range.
        TypeError: embeddings that are not floating-point, a target that is not integer.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> verify_all_pairs(x, torch.tensor([0, 0, 1]), fars=[0.01])
    Verification(equal_error_rate=0.0, true_accept_rates=(1.0,), same_pairs=1, different_pairs=2)
    """
    x = directions(embeddings)
    y = labels(target, len(x))
    if len(x) < 2:
        raise ValueError("embeddings: expected at least two samples, for a pair, got one")
    for far in fars:
        if not 0 <= far <= 1:
            raise ValueError(f"fars: expected rates from 0 to 1, got {far}")
    order = y.argsort()  # so that few blocks have pairs of both kinds
    x, y = x[order], y[order]
    done, total = 0, (-(-len(x) // SIDE)) * (-(-len(x) // SIDE) + 1)

    def watched() -> Iterator[tuple[Tensor, Tensor | None]]:
        nonlocal done
        for block in _pairs(x, y):
            yield block
            done += 1
            if watch is not None:
                watch(done, total)

    number = 2 * STEPS // FINE + 1
    coarse = torch.zeros(2 * number, dtype=torch.int64)
    for cosines, same in watched():
        coarse += torch.bincount(_both(cosines // FINE, same, number), minlength=2 * number)
    accepted = coarse.view(2, number).flip(1).cumsum(1)  # different and same pairs, from the highest digit down
    pairs = accepted[:, -1]
    if (pairs == 0).any():
        return Verification(math.nan, (math.nan,) * len(fars), int(pairs[1]), int(pairs[0]))
    far, tar = accepted.double() / pairs[:, None]
    # For each rate the digit in which its threshold lies: the first, from above, in which what is sought is passed.
    passed = [far + tar - 1 >= 0, *(far > limit for limit in fars)]
    places = [int(mask.int().argmax()) if mask.any() else number - 1 for mask in passed]
    digits = sorted({number - 1 - place for place in places})
    fine = {digit: torch.zeros(2 * FINE, dtype=torch.int64) for digit in digits}
    for cosines, same in watched():
        leading = cosines // FINE
        for digit in digits:
            at = leading == digit
            values = _both(cosines[at] - digit * FINE, None if same is None else same[at], FINE)
            fine[digit].scatter_add_(0, values, torch.ones_like(values))

    def points(place: int) -> tuple[Tensor, Tensor]:
        """Of the ROC, the point before a digit and those in it."""
        counts = fine[number - 1 - place].view(2, FINE).flip(1)
        inside = counts[:, counts.any(0)].cumsum(1)
        before = accepted[:, place - 1 : place] if place else accepted.new_zeros(2, 1)
        far, tar = torch.cat([before, before + inside], 1).double() / pairs[:, None]
        return far, tar

    return Verification(
        crossing(*points(places[0])),
        tuple(highest_within(*points(place), limit) for place, limit in zip(places[1:], fars, strict=True)),
        int(pairs[1]),
        int(pairs[0]),
    )


def _pairs(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """All pairs of the samples, sorted by class: cosines in steps, from 0 up, and which are of the same class, if any.

    In blocks, in the same order and of the same shapes each time: so each cosine is rounded alike.
    """
    for first in range(0, len(x), SIDE):
        left = x[first : first + SIDE] * STEPS
        for second in range(first, len(x), SIDE):
            right = x[second : second + SIDE]
            cosines = (left @ right.T).round_().clamp_(-STEPS, STEPS).long().add_(STEPS)
            same = None
            if y[min(first + SIDE, len(x)) - 1] >= y[second]:
                same = y[first : first + SIDE, None] == y[second : second + SIDE]
            if first == second:
                above = torch.ones_like(cosines, dtype=torch.bool).triu_(1)
                cosines, same = cosines[above], None if same is None else same[above]
            yield cosines, same


def _both(digits: Tensor, same: Tensor | None, number: int) -> Tensor:
    """Digits below ``number``, plus that for pairs of the same class; one after the other."""
    return (digits if same is None else digits + number * same).flatten()


def crossing(far: Tensor, tar: Tensor) -> float:
    """The equal error rate of the ROC with these points."""
    if far.isnan().any() or tar.isnan().any():
        return math.nan
    gap = far + tar - 1  # rises from -1 to 1
    after = int((gap >= 0).int().argmax())
    weight = gap[after] / (gap[after] - gap[after - 1])
    return float(torch.lerp(far[after], far[after - 1], weight))


def highest_within(far: Tensor, tar: Tensor, limit: float) -> float:
    """The highest true accept rate of the ROC with these points whose false accept rate is at most ``limit``."""
    if far.isnan().any() or tar.isnan().any():
        return math.nan
    return float(tar[far <= limit].max())
