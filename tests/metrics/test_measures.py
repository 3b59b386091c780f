"""All measures of a split, and how people see them."""

import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from cssoftmax import metrics
from cssoftmax.metrics import MEASURES, format_value, measure

KEYS = [
    "accuracy",
    "top5_accuracy",
    "nll",
    "ece",
    "intra_class_degrees_mean",
    "intra_class_degrees_std",
    "inter_class_degrees_mean",
    "inter_class_degrees_min",
    "fisher_ratio",
    "eer",
    "tar_at_far_1e_2",
    "tar_at_far_1e_3",
    "verification_pairs",
    "recall_at_1",
    "map_at_r",
    "knn_accuracy",
]


def problem(noise, n=120, d=16, c=8):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % c
    centres = torch.linalg.qr(torch.randn(d, c, generator=g)).Q.T
    x = centres[y] + noise * torch.randn(n, d, generator=g)
    return x, y, 8 * torch.nn.functional.normalize(x) @ centres.T


def test_the_table_names_every_measure_in_order():
    x, y, logits = problem(0.2)
    assert [m.key for m in MEASURES] == KEYS
    assert list(measure(x, y, logits, reference=(x, y))) == KEYS
    assert list(measure(x, y, logits)) == KEYS[:-1]
    assert len({m.title for m in MEASURES}) == len(MEASURES)


def test_each_measure_is_what_its_function_says():
    x, y, logits = problem(0.3)
    reference = (x[:50] + 0.01, y[:50])
    intra, inter = metrics.intra_class_angles(x, y), metrics.inter_class_angles(x, y)
    trials = metrics.pair_scores(x, y)
    expected = {
        "accuracy": metrics.top_k_accuracy(logits, y, 1),
        "top5_accuracy": metrics.top_k_accuracy(logits, y, 5),
        "nll": metrics.negative_log_likelihood(logits, y),
        "ece": metrics.expected_calibration_error(logits, y),
        "intra_class_degrees_mean": sum(intra.tolist()) / 8,
        "intra_class_degrees_std": math.sqrt(sum((a - sum(intra.tolist()) / 8) ** 2 for a in intra.tolist()) / 8),
        "inter_class_degrees_mean": sum(inter.tolist()) / 8,
        "inter_class_degrees_min": min(inter.tolist()),
        "fisher_ratio": metrics.fisher_ratio(x, y),
        "eer": metrics.equal_error_rate(*trials),
        "tar_at_far_1e_2": metrics.true_accept_rate(*trials, 0.01),
        "tar_at_far_1e_3": metrics.true_accept_rate(*trials, 0.001),
        "verification_pairs": 120 * 119 / 2,
        "recall_at_1": metrics.recall_at_1(x, y),
        "map_at_r": metrics.map_at_r(x, y),
        "knn_accuracy": metrics.knn_accuracy(*reference, x, y),
    }
    assert measure(x, y, logits, reference=reference) == pytest.approx(expected)


def test_noise_makes_worse_what_the_table_says_is_better():
    runs = [measure(x, y, logits, reference=(x, y)) for x, y, logits in map(problem, (0.05, 0.4, 2.0))]
    for m in MEASURES:
        if m.higher_is_better is None or m.key in ("ece", "inter_class_degrees_min"):
            continue
        for better, worse in pairwise(run[m.key] for run in runs):
            assert (better >= worse) if m.higher_is_better else (better <= worse), m.key
        assert runs[0][m.key] != runs[-1][m.key], m.key


def test_a_split_of_one_class_is_measured_as_far_as_it_goes():
    values = measure(torch.randn(5, 3), torch.zeros(5, dtype=torch.long), torch.randn(5, 1))
    undefined = {key for key, value in values.items() if math.isnan(value)}
    assert undefined == {
        "inter_class_degrees_mean",
        "inter_class_degrees_min",
        "fisher_ratio",
        "eer",
        "tar_at_far_1e_2",
        "tar_at_far_1e_3",
    }


def test_values_for_people_carry_their_unit():
    shown = {m.key: format_value(m, 0.25) for m in MEASURES}
    assert shown["accuracy"] == "25.00 %" and shown["nll"] == "0.2500 nats"
    assert shown["inter_class_degrees_min"] == "0.2°" and shown["fisher_ratio"] == "0.25"
    assert format_value(MEASURES[KEYS.index("verification_pairs")], 7140.0) == "7,140"
    assert all(format_value(m, math.nan) == "n/a" for m in MEASURES)
    assert format_value(MEASURES[KEYS.index("fisher_ratio")], math.inf) == "inf"


def test_the_loss_alone_does_not_load_the_measures():
    code = (
        "import sys, cssoftmax; sys.exit(bool({'cssoftmax.metrics', 'sklearn', 'torchmetrics'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_search_for_neighbours_tells_how_far_it_is():
    x, y = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
    told = []
    measure(x, y, None, reference=(x[:6], y[:6]), watch=lambda done, total: told.append((done, total)))
    assert told == sorted(told) and told[-1] == (12 * 12 + 12 * 6,) * 2
