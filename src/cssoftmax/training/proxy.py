"""A narrow twin of a model that chooses what this is trained on. Source: K. Jordan's airbench96 (2024)."""

import torch
from accelerate import Accelerator
from torch import Tensor

from cssoftmax.classifier import Classifier
from cssoftmax.recipes import Recipe
from cssoftmax.training.optimizer import optimizer_of, set_rate

LEARNS_EVERY = 4
"""Steps from one in which a proxy learns, and does not only choose, to the next."""


class Chooser:
    """A proxy in training: it chooses the harder half of each batch."""

    def __init__(self, proxy: Classifier, recipe: Recipe, accelerator: Accelerator) -> None:
        self.proxy, self.accelerator = proxy, accelerator
        proxy.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        proxy.loss.reduction = "none"
        self.optimizer = optimizer_of(proxy, recipe)
        self.network, self.prepared = accelerator.prepare(proxy.network, self.optimizer)
        self.loss = accelerator.prepare(proxy.loss)

    def harder_half(self, batch: Tensor, labels: Tensor, rate: float, *, learn: bool) -> Tensor:
        """Rows of the batch, in their order; a row whose loss is NaN is among the hardest."""
        self.proxy.train()
        with torch.set_grad_enabled(learn), self.accelerator.autocast():
            losses = self.loss(self.network(batch), labels)
        chosen: Tensor = losses.detach().topk(max(len(losses) // 2, 1)).indices.sort().values
        if learn and losses.isfinite().all():
            set_rate(self.optimizer, rate)
            self.accelerator.backward(losses[chosen].mean())
            with self.accelerator.autocast():
                self.prepared.step()
            self.prepared.zero_grad()
        return chosen
