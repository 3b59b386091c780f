"""MNIST, 28x28 grey, a LeNet-like network: two minutes on two CPU cores.

BEST: not run to its end yet; `python tools/run_recipes.py mnist` does.
"""

from cssoftmax.data.augment import ImageAugment
from cssoftmax.recipes.recipe import Recipe

RECIPE = Recipe(
    network="lenet",
    width=16,
    embedding_size=64,
    epochs=10,
    batch_size=128,
    lr=0.1,
    augment=ImageAugment(crop_padding=2),
)

BEST = Recipe(
    network="plain5",
    width=32,
    embedding_size=128,
    epochs=20,
    batch_size=128,
    lr=0.1,
    ema=0.999,
    augment=ImageAugment(rotation=15, translation=0.12, scale=0.1),
    average_views=True,
)
