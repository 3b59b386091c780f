"""CIFAR-100, 32x32, as CIFAR-10: a narrow ResNet-9, minutes on two CPU cores; the best for hours.

BEST: not run to its end yet; `python tools/run_recipes.py cifar100` does.
"""

from dataclasses import replace

from cssoftmax.data.augment import ImageAugment
from cssoftmax.recipes import cifar10

RECIPE = cifar10.RECIPE

BEST = replace(cifar10.BEST, embedding_size=256, augment=ImageAugment(flip=True, crop_padding=4, cutout=8))
