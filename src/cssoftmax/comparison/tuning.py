"""Choosing a loss's settings on validation data: what is searched, and how the next trial is drawn."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cssoftmax import losses

Values = dict[str, float]


class TuningError(RuntimeError):
    """Nothing can be tuned here; the message says why."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; ``log`` draws their logarithm evenly."""

    low: float
    high: float
    log: bool = False


# Losses whose margin is in radians.
ANGULAR = ("arcface", "subcenter-arcface", "curricularface", "magface", "adaface", "elasticface")

# The learning rate and the scale are multiples of the recipe's and of the loss's default; "LOSS.setting" goes before
# "setting". A loss is searched over those of its settings that stand here.
SPACE = {
    "lr": Range(0.25, 4.0, log=True),
    "scale": Range(0.4, 4.0, log=True),
    "margin": Range(0.0, 0.5),
    **{f"{loss}.margin": Range(0.0, 0.8) for loss in ANGULAR},
    "sphereface.margin": Range(1.0, 4.0),
    "weight_update": Range(0.0, 0.5),
    "relaxation": Range(0.1, 0.5),
}


# So many trials are drawn at random before the sampler looks at the scores.
RANDOM = 6


def space(loss: str) -> dict[str, Range]:
    """What is searched for a loss: its own factors, its scale where it has one, and the learning rate.

    >>> list(space("cs-softmax")), list(space("softmax"))
    (['lr', 'scale', 'margin', 'weight_update'], ['lr'])
    """
    own = inspect.signature(losses.LOSSES[loss]).parameters
    names = ["lr", *(["scale"] if _has_scale(loss) else []), *(name for name in own if name != "scale")]
    found = {name: SPACE.get(f"{loss}.{name}", SPACE.get(name)) for name in names}
    return {name: limits for name, limits in found.items() if limits is not None}


def defaults(loss: str) -> Values:
    """The defaults as a point of the space.

    >>> defaults("cosface")
    {'lr': 1.0, 'scale': 1.0, 'margin': 0.35}
    """
    own = inspect.signature(losses.LOSSES[loss]).parameters
    return {name: 1.0 if name in ("lr", "scale") else float(own[name].default) for name in space(loss)}


def settings(loss: str, values: Values, embedding_size: int, num_classes: int) -> dict[str, Any]:
    """A point of the space as :func:`cssoftmax.losses.build` takes it; the learning rate is not the loss's.

    >>> settings("cosface", {"lr": 2.0, "scale": 2.0, "margin": 0.0}, embedding_size=8, num_classes=10)
    {'margin': 0.0, 'scale': 11.23...}
    """
    own: dict[str, Any] = {name: value for name, value in values.items() if name not in ("lr", "scale")}
    if "scale" in values:
        own["scale"] = values["scale"] * float(losses.build(loss, embedding_size, num_classes, **own).scale)
    return own


def suggest(loss: str, earlier: Sequence[tuple[Values, float]], seed: int) -> Values:
    """The point to try next: the defaults first, then what optuna's TPE makes of the scores so far.

    It depends on the arguments alone, so that a search that was interrupted goes on as if it had not been.

    Args:
        loss: its name.
        earlier: points tried and their scores, higher is better, in their order.
        seed: the same for every loss.

    >>> suggest("softmax", [], seed=0)
    {'lr': 1.0}
    """
    if not earlier:
        return defaults(loss)
    optuna = _optuna()
    distributions = {
        name: optuna.distributions.FloatDistribution(limits.low, limits.high, log=limits.log)
        for name, limits in space(loss).items()
    }
    sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM, seed=seed * 1_000_003 + len(earlier))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, score in earlier:
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=score))
    return dict(study.ask(distributions).params)


def best(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the trials that may be as good as the one with the highest score, that with the highest tie-break.

    That is those whose score is less than that one's by no more than its standard error: where settings differ by less
    than validation can tell, what else is measured decides; the score again, where that is equal, too. Trials without
    a ``tie_break`` or a ``standard_error`` have 0.

    Source: the one-standard-error rule of Breiman, Friedman, Olshen, Stone, "Classification and Regression Trees"
    (1984), section 3.4.3, which takes the simplest.

    >>> tried = [{"score": 0.90, "standard_error": 0.01, "tie_break": 0.8}, {"score": 0.89, "tie_break": 0.9}]
    >>> best(tried)["tie_break"], best([*tried, {"score": 0.95, "tie_break": 0.7}])["tie_break"]
    (0.9, 0.7)
    """
    first = max(trials, key=lambda trial: trial["score"])
    least = first["score"] - first.get("standard_error", 0.0)
    as_good = [trial for trial in trials if trial["score"] >= least]
    return max(as_good, key=lambda trial: (trial.get("tie_break", 0.0), trial["score"]))


def check() -> None:
    """TuningError if optuna is missing."""
    _optuna()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise TuningError("tune: optuna is missing; pip install 'cssoftmax[tune]', or leave --tune out") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _has_scale(loss: str) -> bool:
    try:
        losses.build(loss, 1, 2, scale=1.0)
    except (TypeError, ValueError):
        return False
    return True
