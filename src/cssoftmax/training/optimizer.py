"""How weights move: SGD and Muon, their learning rates, and weights that follow those in training."""

from typing import Any, cast

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from cssoftmax.checkpoint import TrainingError
from cssoftmax.classifier import Classifier
from cssoftmax.processes import is_sharded, whole
from cssoftmax.recipes import Recipe
from cssoftmax.training.muon import MOMENTUM, turn_weights
from cssoftmax.wiring import param_groups


def optimizer_of(model: Classifier, recipe: Recipe) -> torch.optim.SGD:
    """The recipe's; each group remembers its peak learning rate, as ``peak``.

    Raises:
        TrainingError: the recipe has a ``muon_lr``, and the network no weights before its last.
    """
    groups = param_groups(
        model.network,
        model.loss,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        class_lr_scale=recipe.class_lr_scale,
        bias_lr_scale=recipe.bias_lr_scale,
    )
    if recipe.muon_lr:
        groups.append(_hidden_weights(model, groups[0], recipe))
    for group in groups:
        group["peak"] = group["lr"]
    optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    if recipe.muon_lr:
        turn_weights(optimizer)
    return optimizer


def _hidden_weights(model: Classifier, first: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """A group of the weights before the last, the embedding's, taken out of the first one, where weights are.

    Those that begin at zero stay there: they have no length to keep.
    """
    classes = {id(parameter) for parameter in model.loss.parameters()}
    weights = [p for p in first["params"] if p.ndim > 1 and id(p) not in classes]
    hidden = [p for p in weights[:-1] if whole(p).any()]
    if not hidden:
        raise TrainingError("muon_lr: the network has no weights before its last layer; leave it at 0")
    turned = {id(p) for p in hidden}
    first["params"] = [p for p in weights if id(p) not in turned]
    return {"params": hidden, "lr": recipe.muon_lr, "momentum": MOMENTUM, "muon": True}


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rates to this share of their peaks."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate


def moving_average(model: Classifier, decay: float, *, in_parts: bool = False) -> AveragedModel:
    """A copy of the model that follows it; ``in_parts`` where its network is shared out over processes."""
    if in_parts or is_sharded(model.loss.weight):  # which do not go into one operation with whole ones
        return AveragedModel(model, avg_fn=get_ema_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


@torch.no_grad()
def meet(fast: nn.Module, slow: nn.Module, kept: float) -> None:
    """Moves slow weights and statistics to the fast ones, all but the share ``kept`` of the way, and these to them."""
    pairs = zip([*fast.parameters(), *fast.buffers()], [*slow.parameters(), *slow.buffers()], strict=True)
    for ahead, behind in pairs:
        if ahead.is_floating_point():
            behind.lerp_(ahead, 1 - kept)
            ahead.copy_(behind)
        else:
            behind.copy_(ahead)


def evaluated(model: Classifier, average: AveragedModel | None) -> Classifier:
    """The one of the two that a training is for."""
    return model if average is None else cast(Classifier, average.module)
