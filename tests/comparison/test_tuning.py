"""What is searched for each loss, and that the search goes on as if it had never been interrupted."""

import math

import pytest

from cssoftmax import losses
from cssoftmax.comparison.tuning import best, defaults, settings, space, suggest

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


def trial(score, eer, samples=100):
    error = math.sqrt(score * (1 - score) / samples)
    return {"score": score, "standard_error": error, "tie_break": 1 - eer}


def test_of_trials_that_may_be_as_accurate_as_the_best_the_one_with_the_lowest_error_rate_is_taken():
    first, within, beyond = trial(0.90, 0.15), trial(0.87, 0.10), trial(0.86, 0.05)  # the first's error is 0.03
    for tried in ([first, within, beyond], [beyond, within, first]):
        assert best(tried) is within
    assert best([trial(0.90, 0.15, samples=10_000), within]) == trial(0.90, 0.15, samples=10_000)


def test_of_trials_alike_in_errors_the_more_accurate_is_taken_and_of_equal_ones_the_first():
    tried = [trial(0.88, 0.1), trial(0.90, 0.1), trial(0.90, 0.1)]
    assert best(tried) is tried[1]


def test_trials_without_a_standard_error_are_taken_by_their_score():
    tried = [{"score": 0.9, "tie_break": 0.8}, {"score": 0.9, "tie_break": 0.85}, {"score": 0.89, "tie_break": 0.99}]
    assert best(tried) is tried[1]
    assert best([{"score": 0.7}, {"score": 0.8}]) == {"score": 0.8}


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
