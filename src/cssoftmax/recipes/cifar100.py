"""CIFAR-100, 32x32, as CIFAR-10: a narrow ResNet-9, minutes on two CPU cores; the best for hours.

BEST: not run to its end yet; `python tools/run_recipes.py cifar100` does.
"""

from dataclasses import replace

from cssoftmax.data.augment import ImageAugment
from cssoftmax.recipes import cifar10

RECIPE = cifar10.RECIPE

# The class weights' rate is ten times that for ten classes, as each class is in a tenth as many samples.
BEST = replace(
    cifar10.BEST,
    embedding_size=256,
    class_lr_scale=0.1,
    augment=ImageAugment(flip=True, crop_padding=4, cutout=8),
)
