"""What each step trains on, drawn from (seed, step) alone, so that a resumed run is the run."""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import torch
from accelerate import Accelerator
from torch import Tensor

from cssoftmax.checkpoint import Progress
from cssoftmax.classifier import as_input
from cssoftmax.data import Split
from cssoftmax.data.augment import ImageAugment, SoundAugment, flipped, image_augmentation, smaller, sound_augmentation
from cssoftmax.data.shards import read_ahead
from cssoftmax.recipes import Recipe
from cssoftmax.training.schedule import batch_size


def batches(
    split: Split, recipe: Recipe, progress: Progress, *, seed: int, accelerator: Accelerator
) -> Generator[tuple[Tensor, Tensor, Tensor]]:
    """Rows of the split, augmented inputs and labels of each step that is left, for this process.

    It seeds torch's generator before each, from which that step's network and loss draw, too.
    """
    device = accelerator.device
    inputs = split.inputs.to(device) if isinstance(split.inputs, Tensor) else split.inputs
    target = split.target.to(device)
    augment, mirrored = augmentation(recipe), _mirrored(recipe, len(target), seed)
    order = _rows(split, batch_size(split, recipe), progress, seed, accelerator)
    with closing(read_ahead(inputs, order)) as reading:
        for step, (rows, fetched) in enumerate(reading, progress.step):
            torch.manual_seed(_fold(seed, step))
            batch = as_input(fetched.to(device))
            if mirrored is not None:
                odd = step // progress.steps_per_epoch % 2 == 1
                batch = flipped(batch, (mirrored[rows] ^ odd).to(device))
            batch = augment(batch)
            if step < recipe.low_resolution * progress.steps:
                batch = smaller(batch)
            yield rows, batch, target[rows.to(device)]


def augmentation(recipe: Recipe) -> Callable[[Tensor], Tensor]:
    """What a recipe does to each training batch, as a function of it; mixup, which also mixes labels, aside."""
    if isinstance(recipe.augment, ImageAugment):
        return image_augmentation(recipe.augment)
    if isinstance(recipe.augment, SoundAugment):
        return sound_augmentation(recipe.augment)
    return lambda batch: batch


def _rows(split: Split, batch_size: int, progress: Progress, seed: int, accelerator: Accelerator) -> Iterator[Tensor]:
    """This process's rows of each step that is left."""
    for epoch in range(progress.epoch, progress.steps // progress.steps_per_epoch):
        generator = _generator(seed, epoch)
        if isinstance(split.inputs, Tensor):
            order = torch.randperm(len(split.target), generator=generator)
        else:
            order = split.inputs.order(generator, batch_size, accelerator.num_processes)
        for step in range(max(progress.step - epoch * progress.steps_per_epoch, 0), progress.steps_per_epoch):
            rows = order[step * batch_size : (step + 1) * batch_size]
            yield rows[accelerator.process_index :: accelerator.num_processes]


def _mirrored(recipe: Recipe, samples: int, seed: int) -> Tensor | None:
    """Which samples are mirrored in the even epochs, the others being so in the odd ones; None where none ever is."""
    if not (isinstance(recipe.augment, ImageAugment) and recipe.augment.flip):
        return None
    return torch.rand(samples, generator=_generator(seed, -1)) < 0.5


def _fold(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(_fold(seed, epoch))
