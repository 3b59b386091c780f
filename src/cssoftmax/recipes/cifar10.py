"""CIFAR-10, 32x32, a narrow ResNet-9: minutes on two CPU cores.

BEST: not run to its end yet; `python tools/run_recipes.py cifar10` does. An earlier version (SGD without Muon, 45
epochs, longer warmup, black squares for cutout, weights in batch normalisation, a narrower last group) ended with
CS-Softmax at 94.39 %, and 95.46 % with the mean over views, one seed, the last epoch; 3.2 PFLOP, 95 minutes on two
cores of an AMD EPYC (Zen 4, bf16).
"""

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
    epochs=60,
    batch_size=1024,
    lr=0.6,
    class_lr_scale=0.01,  # at the network's rate plain softmax can diverge
    bias_lr_scale=16,
    weight_decay=2.6e-3,
    momentum=0.85,
    warmup=0.1,
    muon_lr=0.24,
    label_smoothing=0.2,
    lookahead=0.77,
    proxy_width=32,
    augment=ImageAugment(flip=True, crop_padding=4, cutout=12),
    average_views=True,
)
