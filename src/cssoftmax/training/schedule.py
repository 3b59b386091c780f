"""How many steps a training has, and how its learning rate and its margin go over them."""

import math

from cssoftmax.data import Split
from cssoftmax.recipes import Recipe


def batch_size(split: Split, recipe: Recipe) -> int:
    """Samples a step: the recipe's, or all, where these are fewer."""
    return min(recipe.batch_size, len(split.target))


def steps_per_epoch(split: Split, recipe: Recipe) -> int:
    """The last samples of an epoch's order that fill no batch are left out."""
    return len(split.target) // batch_size(split, recipe)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate of a step, as a share of its peak.

    >>> from cssoftmax.recipes import NAMED
    >>> [round(learning_rate(NAMED["mnist"], step, 100), 2) for step in (0, 12, 25, 62, 99)]
    [0.02, 0.5, 0.99, 0.5, 0.01]
    """
    done = (step + 0.5) / steps
    if done < recipe.warmup:
        return done / recipe.warmup
    left = (1 - done) / (1 - recipe.warmup)
    return left if recipe.schedule == "one-cycle" else (1 - math.cos(math.pi * left)) / 2


def margin_warmup_steps(split: Split, recipe: Recipe) -> int:
    """Training forwards of the loss in which its margin rises, as the learning rate does; mixup takes two a step."""
    steps = steps_per_epoch(split, recipe) * recipe.epochs
    return round(recipe.warmup * steps) * (2 if recipe.mixup else 1)
