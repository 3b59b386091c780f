"""Same or different? Pairs of embeddings as verification trials, scored by cosine.

``pair_scores`` and ``roc`` hold the scores; ``verify_all_pairs`` does without, for the pairs of millions of samples.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cssoftmax.metrics import _products
from cssoftmax.metrics._checks import directions, labels, positive

ROWS = 16, 512

# verify_all_pairs: exact cosines count in steps of 2^-32, screened ones in digits of 2^-13, which are wider than their
# error.
STEPS, DIGITS = 2**32, 2**13
# Digits beside that of a threshold in which a screened cosine may lie while the exact one decides: one for the error,
# one for the next point of the ROC.
BESIDE = 2


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
    import sklearn.metrics
    from sklearn.exceptions import UndefinedMetricWarning

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

    The cosines are computed twice, some at a time, in float32: first to count them, which tells about where the
    thresholds lie; then again, and those near a threshold in float64, too, to count their single values. Above 2,000
    numbers an embedding all is in float64. Cosines that differ by less than 2^-32 may count as equal.

    Args:
        embeddings: (N, D), finite, N at least 2.
        target: (N,), integers.
        fars: false accept rates, from 0 to 1.
        watch: is told how many blocks of pairs are done, of how many.

    Returns:
        The rates, nan without same or without different pairs, and the numbers of pairs. Memory: N directions in
        float64 and about 100 MB for each rate.

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
    side = _products.SIDE
    done, total = 0, (-(-len(x) // side)) * (-(-len(x) // side) + 1)

    def watched() -> Iterator[_Block]:
        nonlocal done
        for block in _blocks(x, y, side):
            yield block
            done += 1
            if watch is not None:
                watch(done, total)

    number = 2 * DIGITS + 5
    counts = torch.zeros(2 * number, dtype=torch.int64)
    for block in watched():
        found = block.digits().int()
        if block.same is not None:
            found += number * block.same
        counts += torch.bincount(found.flatten() if block.above is None else found[block.above], minlength=2 * number)
    accepted = counts.view(2, number).flip(1).cumsum(1)  # different and same pairs, from the highest digit down
    pairs = accepted[:, -1]
    if (pairs == 0).any():
        return Verification(math.nan, (math.nan,) * len(fars), int(pairs[1]), int(pairs[0]))
    far, tar = accepted.double() / pairs[:, None]
    # For each rate the digit in which its threshold lies: the first, from above, in which what is sought is passed.
    passed = [far + tar - 1 >= 0, *(far > limit for limit in fars)]
    digit = [number - 1 - (int(mask.int().argmax()) if mask.any() else number - 1) for mask in passed]
    windows = {(max(at - BESIDE, 0), min(at + BESIDE, number - 1)) for at in digit}
    wanted = np.zeros(number, dtype=bool)
    for low, high in windows:
        wanted[low : high + 1] = True
    # One bin a step; what lies outside the window's digits only by rounding counts at its ends.
    fine = STEPS // DIGITS
    bins = {window: torch.zeros(2, (2 * BESIDE + 1) * fine, dtype=torch.int64) for window in windows}
    for block in watched():
        found = block.digits().long()
        inside = torch.from_numpy(np.take(wanted, found.numpy()))
        place = _products.places(inside if block.above is None else inside & block.above)
        if len(place) == 0:
            continue
        found, same = found.flatten()[place], None if block.same is None else block.same.flatten()[place]
        steps = (_products.exact(block.left, block.right, place) * STEPS).round_().long()
        for (low, high), kinds in bins.items():
            here = (found >= low) & (found <= high)
            at = (steps[here] - (low - DIGITS - 2) * fine).clamp_(0, kinds.shape[1] - 1)
            if same is not None:
                at += kinds.shape[1] * same[here]
            kinds.view(-1).scatter_add_(0, at, torch.ones_like(at))

    def points(at: int) -> tuple[Tensor, Tensor]:
        """Of the ROC, the point before a digit's window and those in it."""
        low, high = max(at - BESIDE, 0), min(at + BESIDE, number - 1)
        kinds = bins[low, high].flip(1)
        inside = kinds[:, kinds.any(0)].cumsum(1)
        before = accepted[:, number - 2 - high].unsqueeze(1) if high < number - 1 else accepted.new_zeros(2, 1)
        far, tar = torch.cat([before, before + inside], 1).double() / pairs[:, None]
        return far, tar

    return Verification(
        crossing(*points(digit[0])),
        tuple(highest_within(*points(at), limit) for at, limit in zip(digit[1:], fars, strict=True)),
        int(pairs[1]),
        int(pairs[0]),
    )


class _Block(NamedTuple):
    """Pairs of a sample of ``left`` and one of ``right``, or those of them that are ``above`` the diagonal."""

    left: Tensor
    right: Tensor
    same: Tensor | None
    above: Tensor | None

    def digits(self) -> Tensor:
        """The cosines in digits, from 0 up, as screening has them: the same each time, since all else is the same."""
        dtype = _products.screening_dtype()
        if _products.screening_error(self.left.shape[1]) > 0.99 / DIGITS:  # the rest is for rounding to digits
            dtype = torch.float64
        products: Tensor = (self.left * DIGITS).to(dtype) @ self.right.to(dtype).T
        return products.add_(DIGITS + 2)


def _blocks(x: Tensor, y: Tensor, side: int) -> Iterator[_Block]:
    """All pairs of the samples, sorted by class."""
    for first in range(0, len(x), side):
        left, classes = x[first : first + side], y[first : first + side]
        for second in range(first, len(x), side):
            right, others = x[second : second + side], y[second : second + side]
            same = classes[:, None] == others if classes[-1] >= others[0] else None
            above = torch.ones(len(left), len(left), dtype=torch.bool).triu_(1) if first == second else None
            yield _Block(left, right, same, above)


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
