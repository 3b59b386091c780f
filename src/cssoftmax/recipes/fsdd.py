"""Free Spoken Digit Dataset, log-mel spectrograms of 8 kHz recordings: minutes on two CPU cores."""

from cssoftmax.data.augment import SoundAugment
from cssoftmax.recipes.recipe import Recipe

RECIPE = Recipe(
    network="melnet",
    width=16,
    embedding_size=64,
    epochs=20,
    batch_size=64,
    lr=0.05,
    augment=SoundAugment(time_mask=8, frequency_mask=8, shift=4),
)
