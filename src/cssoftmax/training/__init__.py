"""The training of a model on a split, by a recipe."""

from cssoftmax.training.batches import augmentation
from cssoftmax.training.cost import flops
from cssoftmax.training.endings import Diverged, Interrupted
from cssoftmax.training.loop import fit
from cssoftmax.training.schedule import learning_rate, margin_warmup_steps

__all__ = [
    "Diverged",
    "Interrupted",
    "augmentation",
    "fit",
    "flops",
    "learning_rate",
    "margin_warmup_steps",
]
