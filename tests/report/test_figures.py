"""What the pictures show is what the tensors say."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.collections import PathCollection
from matplotlib.contour import ContourSet
from torch.nn.functional import cosine_similarity

from cssoftmax.report import (
    LogitCurve,
    confusion,
    cosine_histogram,
    cosines,
    embedding_map,
    learning_curves,
    load_run,
    logit_curves,
)
from cssoftmax.report.figures import MAX_POINTS, png, principal_components

GRID = torch.linspace(-1, 1, 201, dtype=torch.float64)


def points_drawn(axes):
    return np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)])


def texts(axes):
    return {text.get_text() for text in axes.texts}


def test_cosines_of_each_sample_to_each_class(make_run):
    run = load_run(make_run(classes=4, samples=120))
    positive, negative = cosines(run)
    assert positive.shape == (120,) and negative.shape == (360,)
    own = cosine_similarity(run.embeddings, run.class_weights[run.target])
    assert torch.allclose(positive, own, atol=1e-6)
    every = cosine_similarity(run.embeddings[:, None], run.class_weights[None], dim=2)
    assert negative.double().sum().item() == pytest.approx((every.sum() - own.sum()).item(), abs=1e-3)


def test_negatives_beyond_the_limit_are_drawn_at_random_and_never_of_the_own_class(make_run):
    run = load_run(make_run(classes=4, samples=120, noise=0.0))
    _, negative = cosines(run, max_negatives=200)
    assert negative.shape == (200,)
    assert negative.max() < 0.99  # without noise the own class's cosine is 1
    assert torch.equal(negative, cosines(run, max_negatives=200)[1])


def test_histograms_hold_all_pairs_and_share_their_axes(make_run):
    runs = [load_run(make_run("a", noise=0.4)), load_run(make_run("b"))]
    figure = cosine_histogram(runs)  # the second run's is the tallest
    assert len(figure.axes) == 2
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    for axes in figure.axes:
        assert [patch.get_data().values.sum() for patch in axes.patches] == pytest.approx([100] * 4)
        assert max(patch.get_data().values.max() for patch in axes.patches) <= axes.get_ylim()[1]
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend[0].endswith("120 pairs") and legend[1].endswith("360 pairs")


def test_a_plane_is_drawn_as_it_is_with_a_ray_for_each_class_weight(make_run):
    run = load_run(make_run(classes=5, size=2))
    (axes,) = embedding_map([run]).axes
    assert np.allclose(np.sort(points_drawn(axes), 0), np.sort(run.embeddings.numpy(), 0))
    ends = torch.tensor(np.array([line.get_xydata()[1] for line in axes.lines]))
    assert torch.allclose(cosine_similarity(ends, run.class_weights.double()), torch.ones(5).double())
    assert texts(axes) == set(run.classes)


def test_more_than_two_dimensions_become_the_first_two_components_of_the_directions(make_run):
    run = load_run(make_run(size=8))
    (axes,) = embedding_map([run]).axes
    directions = run.embeddings / run.embeddings.norm(dim=1, keepdim=True)
    variances = np.sort(np.linalg.eigvalsh(np.cov(directions.numpy().T.astype(float))))[::-1]
    share = variances / variances.sum()
    assert f"{100 * share[0]:.1f} % of variance" in axes.get_xlabel()
    assert f"{100 * share[1]:.1f} % of variance" in axes.get_ylabel()
    drawn = points_drawn(axes)
    assert drawn.var(axis=0, ddof=1) == pytest.approx(variances[:2], rel=1e-4)


def test_one_dimension_is_a_line():
    plane, explained = principal_components(torch.tensor([[1.0], [-1.0], [1.0]]))
    assert explained == pytest.approx((1, 0)) and torch.equal(plane[:, 1], torch.zeros(3))


def test_a_map_of_many_classes_has_no_legend_and_no_two_names_on_each_other(make_run):
    figure = embedding_map([load_run(make_run(classes=100, size=32, samples=MAX_POINTS + 1000))])
    (axes,) = figure.axes
    assert not figure.legends
    assert len(points_drawn(axes)) == MAX_POINTS
    png(figure)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) >= 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_classes_are_named_in_the_legend_as_they_are(make_run):
    names = ["$x_1$", "猫", "<b>|x", "plain"]
    figure = embedding_map([load_run(make_run(names=names))])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    png(figure)


def test_learning_curves_are_the_history(make_run):
    run = load_run(make_run())
    run.history[1].pop("eval_loss")
    left, right = learning_curves([run]).axes
    train, evaluation = (line.get_ydata() for line in left.lines)
    assert list(train) == [9.0, 4.5, 3.0]
    assert evaluation[0] == 1.0 and np.isnan(evaluation[1])
    assert list(right.lines[1].get_ydata()) == pytest.approx([80, 90, 100 - 20 / 3])


def boundary(axes):
    (contour,) = [c for c in axes.collections if isinstance(c, ContourSet) and not c.filled]
    return np.concatenate([path.vertices for path in contour.get_paths()])


@pytest.mark.parametrize("margin", [0.1, 0.35, 0.5])
def test_the_boundary_of_cosface_is_its_margin(margin):
    _, axes = logit_curves([LogitCurve("cosface", 30.0, GRID, GRID - margin, GRID)]).axes
    line = boundary(axes)
    assert len(line) > 50
    assert np.allclose(line[:, 0] - line[:, 1], margin, atol=1e-9)


def test_the_boundary_of_so_softmax_is_an_ellipse():
    r = 0.4
    _, axes = logit_curves([LogitCurve("so-softmax", 30.0, GRID, r**2 - (1 - GRID) ** 2, GRID**2 - r**2)]).axes
    line = boundary(axes)
    assert np.allclose((1 - line[:, 0]) ** 2 + line[:, 1] ** 2, 2 * r**2, atol=1e-3)


def test_logits_are_scaled_and_a_loss_that_is_always_content_has_no_boundary():
    left, right = logit_curves([LogitCurve("easy", 7.0, GRID, GRID + 3, GRID - 3)]).axes
    solid, dashed = (line.get_ydata() for line in left.lines[-2:])
    assert np.allclose(solid, 7 * (GRID + 3)) and np.allclose(dashed, 7 * (GRID - 3))
    assert not any(isinstance(c, ContourSet) and not c.filled for c in right.collections)


def test_confusion_counts_in_percent_of_the_true_class(make_run):
    run = load_run(make_run(classes=3, samples=6))
    logits = torch.eye(3)[torch.tensor([0, 1, 2, 1, 1, 2])]  # of targets 0 1 2 0 1 2
    axes = confusion(replace(run, logits=logits)).axes[0]
    assert axes.images[0].get_array().tolist() == [[50, 50, 0], [0, 100, 0], [0, 0, 100]]
    assert [label.get_text() for label in axes.get_yticklabels()] == run.classes


def test_confusion_of_many_classes_is_refused(make_run):
    with pytest.raises(ValueError, match="21 classes are too many"):
        confusion(load_run(make_run(classes=21)))


def test_the_same_run_gives_the_same_bytes_and_leaves_matplotlib_as_it_was(make_run):
    before = dict(matplotlib.rcParams)
    run = load_run(make_run(classes=2, samples=20))
    assert png(cosine_histogram([run])) == png(cosine_histogram([run]))
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs  # pyplot knows of no figure
