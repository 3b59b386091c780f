"""Joining a loss to what is already there: a network's last layer, an optimizer."""

import copy
from typing import Any

from torch import nn


def split_head(model: nn.Module, name: str | None = None) -> tuple[nn.Module, nn.Linear]:
    """Splits a classifier into a backbone that returns embeddings and its last linear layer.

    ``model`` itself is left as it is; the backbone is a shallow copy of it with the layer replaced by ``nn.Identity``,
    and shares all its parameters and buffers, so that training the backbone and the layer trains ``model``.

    Args:
        model: any module whose classifier is an ``nn.Linear``.
        name: of the layer, as in ``model.named_modules()``. None takes the last layer that has parameters, if that is
            an ``nn.Linear`` without a twin (a second one beside it with the same input size).

    Returns:
        The backbone, and the ``nn.Linear``: what ``CSSoftmaxLoss.from_linear`` takes.

    Raises:
        ValueError: no such layer, or no single last one; the message lists the linear layers there are.
        TypeError: the layer of that name is not an ``nn.Linear``.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> backbone, linear = split_head(model)
    >>> backbone(torch.randn(2, 6)).shape, linear
    (torch.Size([2, 4]), Linear(in_features=4, out_features=3, bias=True))
    """
    modules = dict(model.named_modules())
    if name is None:
        name = _last_linear(modules)
    elif name not in modules or name == "":
        raise ValueError(f"name: the network has no layer {name!r}; {_known(modules)}")
    linear = modules[name]
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"name: {name!r} is a {type(linear).__name__}, not an nn.Linear; {_known(modules)}")
    return _with_identity(model, name.split(".")), linear


def param_groups(
    network: nn.Module,
    loss: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    class_lr_scale: float = 1.0,
    class_weight_decay: float = 0.0,
    bias_lr_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameter groups for one optimizer over a network and its loss.

    Weight decay acts on the network's weights, not on its biases and normalisation parameters (those with one
    dimension), and by default not on the class weights: a cosine does not see their length, so decay would only raise
    their learning rate as they shrink.

    Args:
        network: the backbone. Parameters it shares with ``loss`` go with the loss.
        loss: a loss of this package, or any module.
        lr: learning rate of the network.
        weight_decay: of the network's weights.
        class_lr_scale: the loss's learning rate over the network's.
        class_weight_decay: of the loss's parameters.
        bias_lr_scale: the learning rate of biases and normalisation parameters over the network's.

    >>> import torch
    >>> from cssoftmax import CSSoftmaxLoss
    >>> groups = param_groups(nn.Linear(6, 4), CSSoftmaxLoss(4, 3), lr=0.1, weight_decay=5e-4)
    >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
    >>> [group["weight_decay"] for group in optimizer.param_groups]
    [0.0005, 0.0, 0.0]
    """
    classes = [p for p in loss.parameters() if p.requires_grad]
    own = {id(p) for p in classes}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in own]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "lr": lr * bias_lr_scale, "weight_decay": 0.0},
        {"params": classes, "lr": lr * class_lr_scale, "weight_decay": class_weight_decay},
    ]
    return [group for group in groups if group["params"]]


def _last_linear(modules: dict[str, nn.Module]) -> str:
    with_parameters = [n for n, module in modules.items() if any(True for _ in module.parameters(recurse=False))]
    last = modules[with_parameters[-1]] if with_parameters else None
    if not isinstance(last, nn.Linear):
        shown = type(last).__name__ if last is not None else "none at all"
        raise ValueError(f"name: the network's last layer with parameters is {shown}, give the name; {_known(modules)}")
    name = with_parameters[-1]
    parent = name.rpartition(".")[0]
    twins = [
        other
        for other in with_parameters
        if other != name
        and other.rpartition(".")[0] == parent
        and isinstance(twin := modules[other], nn.Linear)
        and twin.in_features == last.in_features
        and twin.out_features != last.in_features
    ]
    if twins:
        raise ValueError(
            f"name: {twins[-1]!r} and {name!r} may both be the classifier, give the name; {_known(modules)}"
        )
    return name


def _known(modules: dict[str, nn.Module]) -> str:
    names = [name for name, module in modules.items() if isinstance(module, nn.Linear) and name]
    return f"its linear layers: {', '.join(names)}" if names else "it has no nn.Linear inside"


def _with_identity(module: nn.Module, path: list[str]) -> nn.Module:
    """A copy of the modules along the path, all else shared."""
    if path == [""]:
        return nn.Identity()
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    head, *rest = path
    child = module._modules[head]
    assert child is not None
    twin._modules[head] = _with_identity(child, rest) if rest else nn.Identity()
    return twin
