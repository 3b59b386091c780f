"""Steps of weight matrices that turn them in all directions alike."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from cssoftmax.processes import part_like, whole

# Of each iteration, which makes a s + b s^3 + c s^5 of a singular value s. Source: Jordan (2024).
COEFFICIENTS = 3.4445, -4.7750, 2.0315
ITERATIONS = 3

MOMENTUM = 0.6
"""What airbench94_muon takes."""


def turn_weights(optimizer: Optimizer) -> None:
    """Lets every step of ``optimizer`` turn the weights of its groups with ``"muon"`` true; call it once.

    A weight of m outputs by n inputs (a convolution's filters are its rows) begins with the length |W|. Its step is
    ``W - lr |W| O / sqrt(min(m, n))``, brought back to that length, where O is the gradient with Nesterov momentum, its
    singular values brought near 1: no direction is left behind by the few that most of a gradient lies in. So ``lr`` is
    about the angle, in radians, by which a step turns the weight. A group's weight decay is not used: this is for
    networks that normalise after their weights, where a length changes nothing but how fast the weight turns.

    Under autocast the iterations are in its dtype. ``torch.optim.Muon`` takes matrices only, keeps no lengths, and
    always iterates in bfloat16, slow on some processors.

    Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024); kept lengths and three
    iterations as in his airbench94_muon.

    >>> weight = torch.nn.Parameter(torch.eye(4))
    >>> optimizer = torch.optim.SGD([{"params": [weight], "muon": True}], lr=0.1, momentum=0.6)
    >>> turn_weights(optimizer)
    >>> (weight * torch.randn(4, 4)).sum().backward()
    >>> optimizer.step()
    >>> round(weight.norm().item(), 4)
    2.0
    """

    @torch.no_grad()
    def turn(optimizer: Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:  # not those of now: a checkpoint replaces them
            for weight in group["params"] if group.get("muon") else ():
                if weight.grad is not None:
                    _turn(weight, optimizer.state[weight], group["lr"], group["momentum"])
                    weight.grad = None  # and the optimizer passes over it

    optimizer.register_step_pre_hook(turn)


def _turn(weight: Tensor, state: dict[str, Any], lr: float, momentum: float) -> None:
    gradient = weight.grad
    assert gradient is not None
    if not state:
        state["momentum_buffer"] = torch.zeros_like(weight)
        state["length"] = whole(weight).norm()
    state["momentum_buffer"].mul_(momentum).add_(gradient)
    ahead = whole(gradient.add(state["momentum_buffer"], alpha=momentum))
    direction = orthogonal(ahead.flatten(1))
    step = direction * (lr * state["length"] / math.sqrt(min(direction.shape)))
    weight.sub_(part_like(weight, step.view_as(ahead)))
    weight.mul_(state["length"] / whole(weight).norm())


def orthogonal(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """The matrix with its singular values brought near 1, by Newton-Schulz iterations.

    Each iteration multiplies a small one by 3.4, and keeps it between 0.7 and 1.2 once it is there.

    >>> torch.linalg.svdvals(orthogonal(torch.diag(torch.tensor([1.0, 0.5, 0.2])), 5)).round(decimals=2)
    tensor([1.1300, 1.0200, 0.7600])
    """
    a, b, c = COEFFICIENTS
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if len(matrix) <= matrix.shape[1] else wide.T
