"""How to train on each data set: one file a recipe, and one for any other folder of images or sounds."""

from dataclasses import replace
from typing import Any

from cssoftmax.recipes import cifar10, cifar100, digits, esc10, fsdd, mnist
from cssoftmax.recipes.recipe import Recipe, RecipeError, field_names

NAMED = {
    "digits": digits.RECIPE,
    "mnist": mnist.RECIPE,
    "cifar10": cifar10.RECIPE,
    "cifar100": cifar100.RECIPE,
    "fsdd": fsdd.RECIPE,
    "esc10": esc10.RECIPE,
}
DEFAULT = {"image": cifar10.RECIPE, "sound": esc10.RECIPE}


def choose(name: str, kind: str, **changes: Any) -> Recipe:
    """The recipe of a data set, or of its kind ("image" or "sound") if it has none of its own, with ``changes``.

    >>> choose("mnist", "image", epochs=3).epochs
    3
    """
    unknown = set(changes) - field_names()
    if unknown:
        known = ", ".join(sorted(field_names()))
        raise RecipeError(f"{', '.join(sorted(unknown))}: no such setting; there are {known}")
    return replace(NAMED.get(name, DEFAULT[kind]), **changes)


__all__ = ["DEFAULT", "NAMED", "Recipe", "RecipeError", "choose"]
