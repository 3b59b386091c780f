"""Measures of embeddings and logits: classification, discriminability, verification, retrieval.

Pure functions of tensors; they compute in float64 on the CPU.
"""

from cssoftmax.metrics.classification import (
    confusion_matrix,
    expected_calibration_error,
    negative_log_likelihood,
    top_k_accuracy,
)
from cssoftmax.metrics.discriminability import class_centres, fisher_ratio, inter_class_angles, intra_class_angles
from cssoftmax.metrics.examples import class_margins, hardest_pairs, surest_errors, typical_samples
from cssoftmax.metrics.measures import MEASURES, OPTIONAL_MEASURES, Measure, format_difference, format_value, measure
from cssoftmax.metrics.open_set import max_cosine, max_log_odds, unknown_auroc
from cssoftmax.metrics.retrieval import (
    Approximate,
    approximate_leave_one_out,
    knn_accuracy,
    leave_one_out,
    map_at_r,
    recall_at_1,
)
from cssoftmax.metrics.significance import PairedDifference, bootstrap_interval, holm, paired_difference, paired_test
from cssoftmax.metrics.verification import (
    Verification,
    equal_error_rate,
    far_threshold,
    pair_scores,
    roc,
    true_accept_rate,
    verify_all_pairs,
)

__all__ = [
    "MEASURES",
    "OPTIONAL_MEASURES",
    "Approximate",
    "Measure",
    "PairedDifference",
    "Verification",
    "approximate_leave_one_out",
    "bootstrap_interval",
    "class_centres",
    "class_margins",
    "confusion_matrix",
    "equal_error_rate",
    "expected_calibration_error",
    "far_threshold",
    "fisher_ratio",
    "format_difference",
    "format_value",
    "hardest_pairs",
    "holm",
    "inter_class_angles",
    "intra_class_angles",
    "knn_accuracy",
    "leave_one_out",
    "map_at_r",
    "max_cosine",
    "max_log_odds",
    "measure",
    "negative_log_likelihood",
    "pair_scores",
    "paired_difference",
    "paired_test",
    "recall_at_1",
    "roc",
    "surest_errors",
    "top_k_accuracy",
    "true_accept_rate",
    "typical_samples",
    "unknown_auroc",
    "verify_all_pairs",
]
