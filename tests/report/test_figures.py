"""What the pictures show is what the numbers say."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.contour import ContourSet

from cssoftmax.report import LogitCurve, logit_curves
from cssoftmax.report.figures import png

GRID = torch.linspace(-1, 1, 201, dtype=torch.float64)


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


def test_the_same_curves_give_the_same_bytes_and_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    curve = LogitCurve("cosface", 30.0, GRID, GRID - 0.35, GRID)
    assert png(logit_curves([curve])) == png(logit_curves([curve]))
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs  # pyplot knows of no figure
