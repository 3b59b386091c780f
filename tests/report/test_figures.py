"""Pictures are the same bytes for the same figure, and leave nothing behind."""

import matplotlib
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure

from cssoftmax.report.figures import png, styled


@styled
def draw():
    figure = Figure(figsize=(2, 1))
    figure.subplots().set_title("$x_1$ 猫")  # a name, not mathematics
    return figure


def test_the_same_figure_gives_the_same_bytes_and_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    assert png(draw()) == png(draw())
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.figs  # pyplot knows of no figure
