"""CIFAR-10, 32x32, a narrow ResNet-9: minutes on two CPU cores."""

from cssoftmax.data.augment import ImageAugment
from cssoftmax.recipes.recipe import Recipe

RECIPE = Recipe(
    network="resnet9",
    width=16,
    embedding_size=128,
    epochs=10,
    batch_size=256,
    lr=0.2,
    augment=ImageAugment(flip=True, crop_padding=4),
)

BEST = Recipe(
    network="whitenet",
    width=128,
    embedding_size=128,
    epochs=20,
    batch_size=512,
    lr=0.2,
    augment=ImageAugment(flip=True, crop_padding=4, cutout=12),
    average_views=True,
)
