"""scikit-learn's digits, 8x8 grey: the embedded demonstration, seconds on two CPU cores."""

from cssoftmax.data.augment import ImageAugment
from cssoftmax.recipes.recipe import Recipe

RECIPE = Recipe(
    network="lenet",
    width=16,
    embedding_size=32,
    epochs=30,
    batch_size=64,
    lr=0.1,
    augment=ImageAugment(crop_padding=1),
)
