"""Optimizer steps of a loss that draws its classes: they touch the drawn ones alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer

from cssoftmax.losses import SimilarityLoss
from cssoftmax.sharded.head import Sharded


def step_drawn_rows(optimizer: Optimizer, loss: SimilarityLoss) -> None:
    """Lets every step of ``optimizer`` pass over the class weights of ``loss`` that have no gradient; call it once.

    Those are, of a loss sharded with a ``sample_rate``, the ones not drawn. They, their momentum and whatever else the
    optimizer keeps stay as they are; nor does weight decay move them. For optimizers that treat each number of a
    parameter alike (SGD, Adam, AdamW, ...).

    Raises:
        ValueError: the loss is not sharded, or its weights are not in the optimizer.
    """
    if not isinstance(loss, Sharded):
        raise ValueError("loss: it is not sharded, and draws no rows; see shard_loss")
    if not any(parameter is loss.weight for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("optimizer: the class weights of this loss are not in it")
    extracts: list[_Extract] = []

    def before(optimizer: Optimizer, *_: object) -> None:
        own = {id(parameter) for parameter in loss.parameters()}
        for group in optimizer.param_groups:
            for place, parameter in enumerate(group["params"]):
                if id(parameter) in own and parameter.grad is not None:
                    extracts.append(_Extract.make(optimizer, group["params"], place))

    def after(optimizer: Optimizer, *_: object) -> None:
        while extracts:
            extracts.pop().put_back(optimizer)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


@dataclass
class _Extract:
    """The rows of a parameter that have a gradient, in its place in an optimizer while that makes a step."""

    parameters: list[Tensor]
    place: int
    whole: DTensor
    rows: Tensor
    state: dict[str, Any]

    @classmethod
    def make(cls, optimizer: Optimizer, parameters: list[Tensor], place: int) -> "_Extract":
        whole = parameters[place]
        assert isinstance(whole, DTensor)
        gradient = _here(whole.grad)
        rows = gradient.reshape(len(gradient), -1).ne(0).any(1).nonzero().squeeze(1)
        state = optimizer.state.pop(whole, {})
        part = nn.Parameter(_here(whole)[rows])
        part.grad = gradient[rows]
        parameters[place] = part
        optimizer.state[part] = {
            name: _here(value)[rows] if isinstance(value, DTensor) else value for name, value in state.items()
        }
        return cls(parameters, place, whole, rows, state)

    def put_back(self, optimizer: Optimizer) -> None:
        part = self.parameters[self.place]
        self.parameters[self.place] = self.whole
        _here(self.whole)[self.rows] = part.detach()
        for name, value in optimizer.state.pop(part, {}).items():
            if isinstance(value, Tensor) and value.shape == part.shape:
                whole = self.state.get(name)
                whole = torch.zeros_like(self.whole.detach()) if whole is None else whole
                _here(whole)[self.rows] = value
                value = whole
            self.state[name] = value
        optimizer.state[self.whole] = self.state


def _here(values: Tensor | None) -> Tensor:
    """The rank's part of a DTensor."""
    assert isinstance(values, DTensor)
    local: Tensor = values.to_local()
    return local.detach()
