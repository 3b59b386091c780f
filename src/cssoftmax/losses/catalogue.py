"""The losses by the names that the command line takes, and their settings as JSON has them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cssoftmax.losses.adaptive import AdaCosLoss, AdaFaceLoss, CurricularFaceLoss, ElasticFaceLoss, MagFaceLoss
from cssoftmax.losses.base import Options, SimilarityLoss
from cssoftmax.losses.margins import (
    ArcFaceLoss,
    CircleLoss,
    CosFaceLoss,
    CSSoftmaxLoss,
    NormFaceLoss,
    SoftmaxLoss,
    SOSoftmaxLoss,
    SphereFaceLoss,
    SubCenterArcFaceLoss,
)
from cssoftmax.schedule import Schedule

LOSSES: dict[str, Callable[..., SimilarityLoss]] = {
    "cs-softmax": CSSoftmaxLoss,
    "softmax": SoftmaxLoss,
    "normface": NormFaceLoss,
    "cosface": CosFaceLoss,
    "arcface": ArcFaceLoss,
    "subcenter-arcface": SubCenterArcFaceLoss,
    "sphereface": SphereFaceLoss,
    "adacos": AdaCosLoss,
    "curricularface": CurricularFaceLoss,
    "magface": MagFaceLoss,
    "adaface": AdaFaceLoss,
    "elasticface": ElasticFaceLoss,
    "circle": CircleLoss,
    "so-softmax": SOSoftmaxLoss,
}
NO_MARGIN = {"margin": 0.0, "upper_margin": 0.0, "relaxation": 0.5}
"""The factors that are a margin, and where there is none."""


def build(name: str, in_features: int, num_classes: int, **settings: Any) -> SimilarityLoss:
    """The loss of that name, as the command line spells it, with its own settings (margin, scale, ...).

    So that settings can be read from JSON, a mapping stands for a :class:`~cssoftmax.Schedule` with these arguments and
    a list for a tensor.

    Raises:
        ValueError: no loss of that name, or it has no such setting (the message lists those there are), or not with
            such a value.

    >>> build("cosface", 8, 3, margin=0.2)
    CosFaceLoss(in_features=8, num_classes=3, margin=0.2, scale=3.613)
    """
    if name not in LOSSES:
        raise ValueError(f"loss: {name!r} is not one of {', '.join(LOSSES)}")
    allowed = _factors(LOSSES[name])
    for key, value in settings.items():
        if key not in allowed:
            raise ValueError(f"{key}: {name} has no such setting; it has {', '.join(sorted(allowed))}")
        if isinstance(value, Mapping):
            try:
                settings[key] = Schedule(**value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key}: {dict(value)} is no schedule: {error}") from None
        elif isinstance(value, list):
            settings[key] = torch.tensor(value, dtype=torch.float32)
    try:
        return LOSSES[name](in_features, num_classes, **settings)
    except TypeError as error:
        raise ValueError(str(error)) from error


def warmed_up(name: str, settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The settings, for :func:`build`, with margins that rise on a line from none to what they are.

    Why: see "A margin that rises" in docs/losses.md. What is a schedule or differs by class stays as it is, and so does
    SphereFace, which has its annealing.

    Args:
        name: of the loss.
        settings: its own; what is left out has its default.
        steps: training forwards until the margins are whole; with 0 they are so from the first.

    >>> warmed_up("cosface", {"scale": 20.0}, 100)
    {'scale': 20.0, 'margin': {'start': 0.0, 'end': 0.35, 'steps': 100, 'shape': 'linear'}}
    """
    risen = dict(settings)
    if steps and name != "sphereface":
        own = inspect.signature(LOSSES[name]).parameters
        for factor, none in NO_MARGIN.items():
            value = settings.get(factor, own[factor].default) if factor in own else None
            if isinstance(value, int | float):
                risen[factor] = asdict(Schedule(none, value, steps))
    return risen


def settings_of(loss: SimilarityLoss) -> dict[str, Any]:
    """The loss's own settings, defaults filled in, as :func:`build` takes them, ready for JSON.

    >>> settings_of(ElasticFaceLoss(8, 3, kind="cos", scale=20.0))
    {'kind': 'cos', 'label_smoothing': 0.0, 'margin': 0.5, 'scale': 20.0, 'std': 0.0125}
    """
    known = vars(loss) | vars(loss._similarity) | loss._schedules | {"scale": loss._schedules.get("scale", loss.scale)}
    settings = {}
    for name in sorted(_factors(type(loss))):
        value = known[name]
        if isinstance(value, Schedule):
            value = asdict(value)
        settings[name] = value.tolist() if isinstance(value, Tensor) else value
    return settings


def _factors(loss: Callable[..., SimilarityLoss]) -> set[str]:
    """What sets a loss apart, without what is the same for all or cannot be written as JSON."""
    own = set(inspect.signature(loss).parameters)
    if loss not in (SoftmaxLoss, AdaCosLoss):
        own |= {"scale"}
    shared = Options.__annotations__.keys() - {"scale"}
    return own - shared - {"in_features", "num_classes", "bias", "generator", "options"} | {"label_smoothing"}
