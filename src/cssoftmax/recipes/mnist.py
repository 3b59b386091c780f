"""MNIST, 28x28 grey, a LeNet-like network: two minutes on two CPU cores.

BEST: 99.74 % with CS-Softmax, 99.75 % with the mean over views, two seeds; plain softmax 99.71 ± 0.03 % and 99.75 ±
0.05 %; the paper's 99.81 % is not reached, and a third seed was given up when two had shown that. 0.26 PFLOP and 29
minutes a training on one thread of an AMD EPYC (bf16): `python tools/run_recipes.py mnist --jobs 2 --seeds 2`.

On validation images, `cssoftmax train mnist --recipe best --width 16 --validation 0.5 --amp bf16` had 99.59 % (half of
the training images, one seed), 99.60 % with `--label-smoothing 0.1`, 99.59 % with `--mixup 0.2`, and 99.63 % with
`--epochs 40`, where the negative log-likelihood rose again towards the end.
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
    network="resnet9",
    width=32,
    embedding_size=128,
    epochs=20,
    batch_size=128,
    lr=0.1,
    ema=0.999,
    augment=ImageAugment(rotation=15, translation=0.12, scale=0.1),
    proxy_width=8,
    average_views=True,
)
