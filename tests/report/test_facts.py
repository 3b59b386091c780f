"""What the page draws is what the tensors say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn.functional import cosine_similarity, normalize

from cssoftmax import metrics
from cssoftmax.report import Run, facts, load_run

EVERY = (
    "learning",
    "cosine_histograms",
    "embedding_map",
    "confusion",
    "verification",
    "hardest_pairs",
    "errors",
    "classes",
)


def test_cosines_of_each_sample_to_each_class(make_run):
    run = load_run(make_run(classes=4, samples=120))
    positive, negative = facts.cosines(run)
    assert positive.shape == (120,) and negative.shape == (360,)
    own = cosine_similarity(run.embeddings, run.class_weights[run.target])
    assert torch.allclose(positive, own, atol=1e-6)
    every = cosine_similarity(run.embeddings[:, None], run.class_weights[None], dim=2)
    assert negative.double().sum().item() == pytest.approx((every.sum() - own.sum()).item(), abs=1e-3)


def test_negatives_beyond_the_limit_are_drawn_at_random_and_never_of_the_own_class(make_run):
    run = load_run(make_run(classes=4, samples=120, noise=0.0))
    _, negative = facts.cosines(run, max_negatives=200)
    assert negative.shape == (200,)
    assert negative.max() < 0.99  # without noise the own class's cosine is 1
    assert torch.equal(negative, facts.cosines(run, max_negatives=200)[1])


def test_histograms_hold_all_pairs(make_run):
    histograms = facts.cosine_histograms(load_run(make_run(classes=4, samples=120)))
    assert [sum(histograms[kind]["share"]) for kind in ("own", "other")] == pytest.approx([100, 100], abs=1e-2)
    assert histograms["own"]["pairs"] == 120 and histograms["other"]["pairs"] == 360
    assert histograms["other"]["drawn"] is None


def test_a_plane_is_drawn_as_it_is_with_a_ray_for_each_class_weight(make_run):
    run = load_run(make_run(classes=5, size=2, samples=25))
    found = facts.embedding_map(run)
    (view,) = found["views"]
    assert np.allclose(view["points"], run.embeddings[found["rows"]], atol=1e-4)
    assert torch.allclose(cosine_similarity(torch.tensor(found["rays"]), run.class_weights), torch.ones(5))


def test_more_than_two_dimensions_become_the_principal_components_of_the_directions(make_run):
    run = load_run(make_run(size=8, samples=30))
    found = facts.embedding_map(run)
    flat, space = found["views"]
    pca = PCA(3).fit(normalize(run.embeddings, dim=1).double().numpy())
    assert [float(text.split()[0]) for text in space["axes"]] == pytest.approx(
        100 * pca.explained_variance_ratio_, abs=0.06
    )
    expected = np.abs(pca.transform(normalize(run.embeddings, dim=1).double().numpy()))[found["rows"]]
    assert np.allclose(np.abs(space["points"]), expected, atol=1e-3)
    assert np.allclose(np.array(space["points"])[:, :2], flat["points"])


def test_one_dimension_is_a_line():
    plane, explained = facts.principal_components(torch.tensor([[1.0], [-1.0], [1.0]]), 3)
    assert explained == pytest.approx([1, 0, 0]) and torch.equal(plane[:, 1:], torch.zeros(3, 2))


def test_the_curve_of_verification_is_the_roc(make_run):
    run = load_run(make_run(classes=4, samples=60, noise=0.6))
    found = facts.verification(run)
    far, tar, _ = metrics.roc(*metrics.pair_scores(run.embeddings, run.target))
    points = {(float(f"{a:.4g}"), float(f"{b:.4g}")) for a, b in zip(far.tolist(), tar.tolist(), strict=True)}
    assert set(zip(found["far"], found["tar"], strict=True)) <= points
    assert found["far"] == sorted(found["far"]) and found["far"][-1] == found["tar"][-1] == 1
    assert facts.verification(replace(run, target=torch.zeros(60, dtype=torch.long))) is None


def test_per_class_facts():
    turn = torch.tensor([0, 10, 60, 80, 180, 180]).double().deg2rad()
    run = Run(
        path=None,
        config={"classes": ["a", "b", "c", "empty"]},
        history=[],
        summary={},
        embeddings=torch.stack([turn.cos(), turn.sin()], 1).float() * torch.arange(1, 7)[:, None],
        target=torch.tensor([0, 0, 1, 1, 2, 2]),
        logits=torch.eye(4)[torch.tensor([0, 0, 1, 0, 1, 1])],
        class_weights=torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]),
    )
    rows = facts.classes(run)
    keys = ("name", "samples", "accuracy", "spread", "nearest", "angle")
    assert [[row[key] for key in keys] for row in rows] == [
        ["a", 2, 1.0, 5.0, 1, 65.0],
        ["b", 2, 0.5, 10.0, 0, 65.0],
        ["c", 2, 0.0, 0.0, 1, 110.0],
        ["empty", 0, None, None, None, None],
    ]
    # sample a1: cosine 1 to its own weight, 0 to the next; a2: cos 10 and sin 10 degrees
    assert rows[0]["margin"] == pytest.approx((1 + np.cos(np.pi / 18) - np.sin(np.pi / 18)) / 2, abs=1e-4)
    assert [row["name"] for row in facts.worst(rows, 3)] == ["c", "b", "a"]


def test_errors_are_shown_beside_what_they_were_taken_for(make_run):
    run = load_run(make_run(classes=3, samples=12, noise=0.01))
    logits = run.logits.clone()
    logits[4] = torch.tensor([0.0, 1.0, 9.0])  # of class 1
    (error,) = facts.errors(replace(run, logits=logits))
    assert (error["row"], error["class"], error["taken"]) == (4, 1, 2)
    assert run.target[error["typical"]] == 2


def test_confusion_of_very_many_classes_is_left_out(make_run):
    assert facts.confusion(load_run(make_run(classes=201, samples=201))) is None


@pytest.mark.parametrize(
    "changes", [{"classes": 2, "samples": 2}, {"classes": 2, "samples": 3, "size": 1}, {"noise": 0.0}]
)
def test_small_runs_and_perfect_ones_have_facts_that_json_can_hold(make_run, changes):
    run = load_run(make_run(**changes))
    for name in EVERY:
        json.dumps(getattr(facts, name)(run), allow_nan=False)
