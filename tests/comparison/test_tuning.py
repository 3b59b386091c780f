"""What is searched for each loss, and that the search goes on as if it had never been interrupted."""

import math

import pytest

from cssoftmax import losses
from cssoftmax.comparison.tuning import defaults, settings, space, suggest

LOSSES = tuple(losses.LOSSES)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_searched_over_the_same_learning_rates_around_its_defaults(loss):
    limits = space(loss)
    assert limits["lr"] == space("softmax")["lr"]
    assert all(limits[name].low <= value <= limits[name].high for name, value in defaults(loss).items())
    assert limits.keys() == defaults(loss).keys()


@pytest.mark.parametrize("loss", LOSSES)
def test_defaults_build_the_loss_that_no_settings_build(loss):
    built = losses.build(loss, 8, 10, **settings(loss, defaults(loss), 8, 10))
    plain = losses.build(loss, 8, 10)
    assert repr(built) == repr(plain) and math.isclose(float(built.scale), float(plain.scale))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_corner_of_the_space_builds(loss):
    for end in ("low", "high"):
        values = {name: getattr(limits, end) for name, limits in space(loss).items()}
        losses.build(loss, 8, 10, **settings(loss, values, 8, 10))


def test_the_scale_is_a_multiple_of_what_fits_the_other_settings():
    values = {"lr": 1.0, "scale": 2.0, "margin": 0.2}
    fitting = losses.build("cosface", 8, 100, margin=0.2).scale
    assert settings("cosface", values, 8, 100)["scale"] == pytest.approx(2 * fitting)


def search(trials, seed=0):
    tried = []
    for _ in range(trials):
        values = suggest("cs-softmax", tried, seed)
        tried.append((values, 1 - abs(values["margin"] - 0.3) - abs(math.log(values["lr"]))))
    return tried


def test_a_search_follows_from_its_seed_and_its_past_alone():
    tried = search(9)
    assert tried == search(9) and tried[1:] != search(9, seed=1)[1:]
    assert suggest("cs-softmax", tried[:5], 0) == tried[5][0]
    assert tried[0][0] == defaults("cs-softmax")
    limits = space("cs-softmax")
    assert all(limits[name].low <= value <= limits[name].high for values, _ in tried for name, value in values.items())


def test_losses_with_the_same_settings_get_the_same_first_draws():
    def draw(loss):
        return suggest(loss, [(defaults(loss), 0.5)], 3)

    assert draw("softmax")["lr"] == draw("cosface")["lr"] == draw("cs-softmax")["lr"]
    assert draw("cosface")["scale"] == draw("cs-softmax")["scale"]
