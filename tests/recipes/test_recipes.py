"""Recipes hold their settings to the ranges that make sense."""

import math
from dataclasses import asdict

import pytest
import torch
from accelerate import Accelerator

from cssoftmax import CSSoftmaxLoss, recipes
from cssoftmax.classifier import Classifier, averaged_logits
from cssoftmax.data import Split
from cssoftmax.networks import NETWORKS
from cssoftmax.recipes import BEST, NAMED, Recipe, RecipeError
from cssoftmax.training import fit

GOOD = {"network": "lenet", "width": 4, "embedding_size": 8, "epochs": 2, "batch_size": 8, "lr": 0.1}


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "network": ["", "resnet", None],
        "schedule": ["linear", None],
        "width": [0, -1, 5000, 1.5, "16", True],
        "embedding_size": [0, 70_000],
        "epochs": [0, -3, 2.0],
        "batch_size": [1, 0],
        "lr": [0, 0.0, -0.1, 1e4, math.nan, math.inf, "0.1"],
        "class_lr_scale": [-1, math.inf],
        "bias_lr_scale": [-1, math.inf],
        "proxy_width": [-1, 0.5],
        "weight_decay": [-1e-4, 1],
        "momentum": [-0.1, 1.0],
        "muon_lr": [-0.1, 2, "0.24"],
        "warmup": [-0.1, 1.0, math.nan],
        "label_smoothing": [-0.1, 1.0],
        "clip_norm": [-1.0, math.inf],
        "ema": [-0.1, 1.0],
        "lookahead": [-0.1, 1.0],
        "mixup": [-0.1, math.nan],
        "low_resolution": [-0.1, 1, math.nan],
    }.items(),
)
def test_a_setting_out_of_range_is_named_with_its_value(name, values):
    for value in values:
        with pytest.raises(RecipeError) as caught:
            Recipe(**GOOD | {name: value})
        assert str(caught.value).startswith(f"{name}: {value!r}" if value not in (0.0, 0) else f"{name}: 0")
        assert "\n" not in str(caught.value)


def test_the_ends_of_the_ranges_are_allowed():
    ends = {"weight_decay": 0, "momentum": 0, "warmup": 0, "label_smoothing": 0, "clip_norm": 0, "ema": 0, "mixup": 0}
    assert asdict(Recipe(**GOOD | ends | {"width": 1, "embedding_size": 1, "epochs": 1, "batch_size": 2}))["ema"] == 0


def test_a_data_set_has_its_own_recipe_or_that_of_its_kind():
    assert recipes.choose("mnist", "image") == NAMED["mnist"]
    assert recipes.choose("holiday", "image") == NAMED["cifar10"]
    assert recipes.choose("birds", "sound").network == "melnet"
    assert recipes.choose("mnist", "image", epochs=3).epochs == 3
    with pytest.raises(RecipeError, match="epoch, rate: no such setting; there are .*epochs"):
        recipes.choose("mnist", "image", epoch=3, rate=1)


SHAPES = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "fsdd": (1, 64, 63),
    "esc10": (1, 64, 216),
}


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, "quick") for name in NAMED] + [(name, "best") for name in BEST],
)
def test_every_recipe_trains(name, variant, tmp_path):
    torch.manual_seed(0)
    kind = "sound" if name in ("fsdd", "esc10") else "image"
    recipe = recipes.choose(name, kind, variant, epochs=1, batch_size=4)
    shape = (8, *SHAPES[name])
    inputs = torch.randn(shape) if kind == "sound" else torch.randint(0, 256, shape, dtype=torch.uint8)
    network = NETWORKS[recipe.network](shape[1], recipe.embedding_size, recipe.width)
    classifier = Classifier(network, CSSoftmaxLoss(recipe.embedding_size, 10))
    before = [p.clone() for p in classifier.parameters() if p.requires_grad]
    data = Split(inputs, torch.arange(8), None)
    accelerator = Accelerator(cpu=True)
    trained = fit(classifier, data, recipe, seed=0, accelerator=accelerator, checkpoint=tmp_path / "c.safetensors")
    after = [p for p in trained.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert averaged_logits(trained, data, recipe, accelerator=accelerator).shape == (8, 10)


def test_the_best_recipe_is_there_for_named_data_only():
    assert recipes.choose("mnist", "image", "best") == BEST["mnist"]
    assert recipes.choose("mnist", "image", variant="best", epochs=2).network == BEST["mnist"].network
    assert set(BEST) <= set(NAMED)
    with pytest.raises(RecipeError, match="recipe: there is no best one for birds, only for mnist, cifar10"):
        recipes.choose("birds", "image", "best")
    with pytest.raises(RecipeError, match="recipe: 'good' is not one of quick, best"):
        recipes.choose("mnist", "image", "good")


def test_sounds_are_augmented():
    for name in ("fsdd", "esc10"):
        augment = NAMED[name].augment
        assert augment.time_mask and augment.frequency_mask and augment.shift
