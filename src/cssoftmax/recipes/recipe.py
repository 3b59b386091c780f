"""The settings of one training, as data."""

from dataclasses import dataclass, fields
from typing import Literal

from cssoftmax.data.augment import ImageAugment, SoundAugment
from cssoftmax.networks import NETWORKS, is_import_path

# Allowed values, both ends included, and those from 0 to just below the number.
WHOLE = {
    "width": (1, 4096),
    "embedding_size": (1, 65_536),
    "epochs": (1, 100_000),
    "batch_size": (2, 1_000_000),
    "proxy_width": (0, 4096),
}
REAL = {
    "lr": 1e3,
    "class_lr_scale": 1e6,
    "bias_lr_scale": 1e6,
    "weight_decay": 1.0,
    "momentum": 1.0,
    "warmup": 1.0,
    "muon_lr": 2.0,
    "label_smoothing": 1.0,
    "clip_norm": 1e12,
    "ema": 1.0,
    "lookahead": 1.0,
    "mixup": 100.0,
    "low_resolution": 1.0,
}


class RecipeError(ValueError):
    """A setting out of range; the message names it, its value and what is allowed."""


@dataclass(frozen=True)
class Recipe:
    """Network, optimizer (SGD with Nesterov momentum), schedule and augmentation of one training.

    Attributes:
        network: a name in :data:`cssoftmax.networks.NETWORKS`, or ``package.module:function`` of your own.
        width: channels of the network's first layer.
        embedding_size: D.
        epochs: passes over the training split.
        batch_size: samples a step, over all processes together.
        lr: peak learning rate of the network.
        class_lr_scale: the class weights' learning rate over the network's.
        bias_lr_scale: the learning rate of the network's biases and normalisation parameters over that of its weights.
        weight_decay: of the network's weights; biases, norms and class weights have none.
        momentum: of SGD.
        schedule: "one-cycle" rises and falls on straight lines; "cosine" falls along half a cosine.
        warmup: the fraction of all steps in which the learning rate rises, and with it the loss's margin.
        muon_lr: peak learning rate of Muon, which then moves the network's weights but the embedding's, in SGD's place:
            about the angle, in radians, that a step turns a weight by. 0.24 is usual; 0 leaves them to SGD. It is for
            networks that normalise after their weights. See :func:`cssoftmax.training.muon.turn_weights`.
        label_smoothing: in [0, 1).
        clip_norm: the gradient's largest norm; 0 clips nothing.
        ema: decay of the moving average of the weights that is evaluated and saved; 0 averages nothing.
        lookahead: share of slow weights that is kept, at the end of the training, when every fifth step, and after
            each epoch, the weights and the slow ones meet; it grows with the cube of the steps done. The slow ones are
            evaluated and saved, the training goes on from them. 0 keeps none. Source: Zhang et al., "Lookahead
            Optimizer" (2019); the growing share is airbench96's, which ends at 0.77.
        mixup: alpha of the Beta distribution; 0 mixes nothing.
        augment: of the training batches.
        low_resolution: the fraction of all steps, the first ones, that train on images of five eighths of their height
            and width, for two fifths of the work; in [0, 1). Not for sounds, and only for networks that take any size.
        proxy_width: of a narrow copy of the network that chooses, of each batch, the harder half that the network is
            trained on; 0 trains on all. See :func:`cssoftmax.training.fit`.
        average_views: measure the accuracy also with logits averaged over shifted and mirrored views of each sample.
    """

    network: str
    width: int
    embedding_size: int
    epochs: int
    batch_size: int
    lr: float
    class_lr_scale: float = 1.0
    bias_lr_scale: float = 1.0
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    warmup: float = 0.25
    muon_lr: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    ema: float = 0.0
    lookahead: float = 0.0
    mixup: float = 0.0
    augment: ImageAugment | SoundAugment | None = None
    low_resolution: float = 0.0
    proxy_width: int = 0
    average_views: bool = False

    def __post_init__(self) -> None:
        if self.network not in NETWORKS and not is_import_path(self.network):
            known = ", ".join(NETWORKS)
            raise RecipeError(f"network: {self.network!r} is not one of {known}, and not package.module:function")
        if self.schedule not in ("one-cycle", "cosine"):
            raise RecipeError(f"schedule: {self.schedule!r} is not one of one-cycle, cosine")
        for name, (low, high) in WHOLE.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise RecipeError(f"{name}: {value!r} is not a whole number in {low}..{high}")
        for name, upper in REAL.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < upper:
                raise RecipeError(f"{name}: {value!r} is not a number in [0, {upper:g})")
        if self.ema and self.lookahead:
            raise RecipeError(f"lookahead: {self.lookahead:g} beside ema {self.ema:g}; only one can be what is kept")
        if self.low_resolution and isinstance(self.augment, SoundAugment):
            raise RecipeError(f"low_resolution: {self.low_resolution:g}, but only images can be made smaller; give 0")
        if self.lr == 0:
            raise RecipeError("lr: 0 trains nothing; give a positive number")


def field_names() -> set[str]:
    return {field.name for field in fields(Recipe)}
