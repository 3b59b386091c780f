"""All measures of a split, and the one table of their names that reports and command lines print."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cssoftmax.metrics.classification import expected_calibration_error, negative_log_likelihood, top_k_accuracy
from cssoftmax.metrics.discriminability import fisher_ratio, inter_class_angles, intra_class_angles
from cssoftmax.metrics.retrieval import knn_accuracy, leave_one_out
from cssoftmax.metrics.verification import crossing, highest_within, pair_scores, roc


@dataclass(frozen=True)
class Measure:
    """What people see of a measure.

    Attributes:
        key: in the dict of ``measure``.
        title: for people, without the unit.
        unit: of the value in the dict; a "fraction" is shown in percent. See ``format_value``.
        higher_is_better: None where neither is.
    """

    key: str
    title: str
    unit: Literal["fraction", "nats", "degrees", "ratio", "count"]
    higher_is_better: bool | None


MEASURES = (
    Measure("accuracy", "Accuracy", "fraction", True),
    Measure("top5_accuracy", "Top-5 accuracy", "fraction", True),
    Measure("nll", "Negative log-likelihood", "nats", False),
    Measure("ece", "Expected calibration error", "fraction", False),
    Measure("intra_class_degrees_mean", "Angle to own class centre, mean", "degrees", False),
    Measure("intra_class_degrees_std", "Angle to own class centre, std over classes", "degrees", None),
    Measure("inter_class_degrees_mean", "Angle to nearest other class centre, mean", "degrees", True),
    Measure("inter_class_degrees_min", "Angle to nearest other class centre, min", "degrees", True),
    Measure("fisher_ratio", "Fisher ratio", "ratio", True),
    Measure("eer", "EER", "fraction", False),
    Measure("tar_at_far_1e_2", "TAR at FAR 1 %", "fraction", True),
    Measure("tar_at_far_1e_3", "TAR at FAR 0.1 %", "fraction", True),
    Measure("verification_pairs", "Verification pairs", "count", None),
    Measure("recall_at_1", "Recall@1", "fraction", True),
    Measure("map_at_r", "MAP@R", "fraction", True),
    Measure("knn_accuracy", "5-NN accuracy", "fraction", True),
)
# What only some recipes and protocols measure.
OPTIONAL_MEASURES = (
    Measure("accuracy_tta", "Accuracy, averaged over views", "fraction", True),
    Measure("unknown_auroc_cosine", "AUROC of rejecting unknown classes, maximum cosine", "fraction", True),
    Measure("unknown_auroc_probability", "AUROC of rejecting unknown classes, maximum probability", "fraction", True),
)


def measure(
    embeddings: Tensor,
    target: Tensor,
    logits: Tensor | None,
    *,
    reference: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    watch: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """All measures of a split, in the order of ``MEASURES``; the functions of this package say what each one is.

    Rates and accuracies are fractions, angles degrees, likelihoods nats. Means and the standard deviation (of the
    population) of angles are over classes. Measures that a split does not define are nan: between classes where there
    is one, of same and different pairs where there are not both, of retrieval where every class has one sample. The
    Fisher ratio can be inf.

    Args:
        embeddings: (N, D), finite, N at least 2.
        target: (N,), integers from 0 to C - 1.
        logits: (N, C), finite; None for classes that the network was not trained on, which leaves out what needs them.
        reference: embeddings (M, D) and target (M,) of the training split, for "knn_accuracy"; without it the dict has
            no such key.
        seed: of the sample of verification pairs.
        watch: is told how many pairs were compared in the search for neighbours, which takes the time, of how many.

    Raises:
        ValueError: shapes that do not fit, fewer than two samples, classes out of range, values that are not finite.
        TypeError: embeddings or logits that are not floating-point, targets that are not integer.

    >>> import torch
    >>> x = torch.eye(3).repeat(2, 1)
    >>> measures = measure(x, torch.arange(3).repeat(2), 20 * x)
    >>> {key: round(measures[key], 2) for key in ("accuracy", "inter_class_degrees_min", "eer", "map_at_r")}
    {'accuracy': 1.0, 'inter_class_degrees_min': 90.0, 'eer': 0.0, 'map_at_r': 1.0}
    """
    values: dict[str, float] = {}
    if logits is not None:
        values["accuracy"] = top_k_accuracy(logits, target, 1)
        values["top5_accuracy"] = top_k_accuracy(logits, target, 5)
        values["nll"] = negative_log_likelihood(logits, target)
        values["ece"] = expected_calibration_error(logits, target)
    intra, inter = intra_class_angles(embeddings, target), inter_class_angles(embeddings, target)
    values["intra_class_degrees_mean"] = float(intra.mean())
    values["intra_class_degrees_std"] = float(intra.std(correction=0))
    values["inter_class_degrees_mean"] = float(inter.mean())
    values["inter_class_degrees_min"] = float(inter.min())
    values["fisher_ratio"] = fisher_ratio(embeddings, target)
    scores, same = pair_scores(embeddings, target, seed=seed)
    far, tar, _ = roc(scores, same)
    values["eer"] = crossing(far, tar)
    values["tar_at_far_1e_2"] = highest_within(far, tar, 1e-2)
    values["tar_at_far_1e_3"] = highest_within(far, tar, 1e-3)
    values["verification_pairs"] = float(len(scores))
    own, others = len(target) ** 2, 0 if reference is None else len(target) * len(reference[1])

    def watched(before: int, pairs: int) -> Callable[[int, int], None] | None:
        if watch is None:
            return None
        return lambda done, total: watch(before + pairs * done // total, own + others)

    values["recall_at_1"], values["map_at_r"] = leave_one_out(embeddings, target, watched(0, own))
    if reference is not None:
        values["knn_accuracy"] = knn_accuracy(*reference, embeddings, target, watch=watched(own, others))
    return values


def format_value(measure: Measure, value: float) -> str:
    """A value for people, with its unit; "n/a" for nan.

    >>> by_key = {measure.key: measure for measure in MEASURES}
    >>> format_value(by_key["accuracy"], 0.98765), format_value(by_key["intra_class_degrees_mean"], 12.34)
    ('98.77 %', '12.3°')
    >>> format_value(by_key["verification_pairs"], 2e6), format_value(by_key["eer"], math.nan)
    ('2,000,000', 'n/a')
    """
    if math.isnan(value):
        return "n/a"
    match measure.unit:
        case "fraction":
            return f"{100 * value:.2f} %"
        case "degrees":
            return f"{value:.1f}°"
        case "nats":
            return f"{value:.4f} nats"
        case "ratio":
            return f"{value:.4g}"
        case "count":
            return f"{value:,.0f}"


def format_difference(measure: Measure, value: float) -> str:
    """A difference for people, with its sign; of fractions in percentage points.

    >>> by_key = {measure.key: measure for measure in MEASURES}
    >>> format_difference(by_key["accuracy"], 0.0123), format_difference(by_key["intra_class_degrees_mean"], -4.9)
    ('+1.23 points', '-4.9°')
    """
    match measure.unit:
        case "fraction":
            return f"{100 * value:+.2f} points"
        case "degrees":
            return f"{value:+.1f}°"
        case "nats":
            return f"{value:+.4f} nats"
        case "ratio":
            return f"{value:+.4g}"
        case "count":
            return f"{value:+,.0f}"
