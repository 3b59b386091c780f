"""A network and a loss as one model: what it takes, and the embeddings and logits that it gives."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cssoftmax.checkpoint import TrainingError
from cssoftmax.data import Split
from cssoftmax.data.augment import Augmentation, averaged_views
from cssoftmax.data.shards import read_ahead
from cssoftmax.losses import SimilarityLoss
from cssoftmax.processes import is_sharded
from cssoftmax.recipes import Recipe


class Classifier(nn.Module):
    """A network that returns embeddings, and the loss that holds the class weights."""

    def __init__(self, network: nn.Module, loss: SimilarityLoss) -> None:
        super().__init__()
        self.network = network
        self.loss = loss

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings (N, D)."""
        embeddings: Tensor = self.network(inputs)
        return embeddings


def as_input(batch: Tensor) -> Tensor:
    """What networks take: uint8 images scaled to [0, 1], log-mel spectrograms as they are; channels last."""
    batch = batch.float() / 255 if batch.dtype == torch.uint8 else batch
    return batch.contiguous(memory_format=torch.channels_last)


def embed(
    model: Classifier,
    split: Split,
    *,
    accelerator: Accelerator,
    batch_size: int = 500,
    view: Augmentation = lambda inputs: inputs,
) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and logits (N, C) of a view of a split, float32 on the CPU, in evaluation mode.

    Raises:
        TrainingError: some of them are infinite or NaN.
    """
    in_parts = any(is_sharded(weight) for weight in model.network.parameters())
    if not in_parts:
        model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval()
    embeddings, logits = [], []
    # Not in inference mode, in which FSDP would gather weights that no training can use.
    with torch.no_grad(), accelerator.autocast():
        for _, batch in read_ahead(split.inputs, torch.split(torch.arange(len(split.inputs)), batch_size)):
            vectors = model.network(as_input(view(as_input(batch.to(accelerator.device)))))
            embeddings.append(vectors.float().cpu())
            logits.append(model.loss.logits(vectors).float().cpu())
    if in_parts:
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # it holds the whole weights for a backward pass
    found = torch.cat(embeddings), torch.cat(logits)
    if not all(values.isfinite().all() for values in found):
        raise TrainingError("lr: the network's outputs are infinite or NaN; train anew with a lower --lr")
    return found


def averaged_logits(model: Classifier, split: Split, recipe: Recipe, *, accelerator: Accelerator) -> Tensor:
    """Logits (N, C), the mean over each sample's views; see :func:`cssoftmax.data.augment.averaged_views`."""
    views = averaged_views(recipe.augment)
    return torch.stack([embed(model, split, accelerator=accelerator, view=view)[1] for view in views]).mean(0)
