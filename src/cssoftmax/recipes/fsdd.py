"""Free Spoken Digit Dataset, log-mel spectrograms of 8 kHz recordings: minutes on two CPU cores.

64 mel bands, 63 frames. The augmentation was the best of three (none, this, twice this) on a validation split, one seed
each; twice this was worse than none.

BEST: 100.00 ± 0.00 % with CS-Softmax and with plain softmax, three seeds, with and without the mean over views; 0.10
PFLOP, 14 minutes a seed on one thread of an AMD EPYC (bf16): `python tools/run_recipes.py fsdd`.

A speaker that the network never heard is harder: 93.83 % with CS-Softmax and 91.57 % with plain softmax over the six in
turn, one seed, where the worst is nicolas with 90.4 and 82.8 %; 8 minutes a speaker on one thread of an Intel Xeon
(AMX, bf16): `python tools/run_recipes.py fsdd-speakers --jobs 2`.
"""

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

BEST = Recipe(
    network="melnet",
    width=32,
    embedding_size=128,
    epochs=30,
    batch_size=64,
    lr=0.05,
    augment=SoundAugment(time_mask=8, frequency_mask=8, shift=4),
    average_views=True,
)
