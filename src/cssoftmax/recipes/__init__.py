"""How to train on each data set, one file each: quickly, or for accuracy; other data, as their kind is."""

from dataclasses import replace
from typing import Any, Literal, get_args

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
BEST = {
    "mnist": mnist.BEST,
    "cifar10": cifar10.BEST,
    "cifar100": cifar100.BEST,
    "fsdd": fsdd.BEST,
    "esc10": esc10.BEST,
}

Variant = Literal["quick", "best"]


def choose(name: str, kind: str, variant: Variant = "quick", **changes: Any) -> Recipe:
    """The recipe of a data set, or of its kind ("image" or "sound") if it has none of its own, with ``changes``.

    Args:
        name: of the data set.
        kind: of its samples.
        variant: "quick" takes minutes on two CPU cores; "best" goes for accuracy, and takes hours.
        changes: settings of :class:`Recipe` to replace.

    Raises:
        RecipeError: no such setting or variant, or no best recipe for this data set.

    >>> choose("mnist", "image", epochs=3).epochs
    3
    >>> choose("mnist", "image", "best").network
    'resnet9'
    """
    if variant not in get_args(Variant):
        raise RecipeError(f"recipe: {variant!r} is not one of {', '.join(get_args(Variant))}")
    if variant == "best" and name not in BEST:
        raise RecipeError(f"recipe: there is no best one for {name}, only for {', '.join(BEST)}; leave it out")
    unknown = set(changes) - field_names()
    if unknown:
        known = ", ".join(sorted(field_names()))
        raise RecipeError(f"{', '.join(sorted(unknown))}: no such setting; there are {known}")
    return replace(BEST[name] if variant == "best" else NAMED.get(name, DEFAULT[kind]), **changes)


__all__ = ["BEST", "DEFAULT", "NAMED", "Recipe", "RecipeError", "Variant", "choose"]
