"""Small data in classes, said by speakers, that stand in for any data set; poisoned where nothing may look."""

from dataclasses import replace

import pytest
import torch

from cssoftmax import runs
from cssoftmax.comparison import protocol
from cssoftmax.data import Dataset, Pixels, Split

CLASSES, SPEAKERS, EACH = 10, 4, 6


@pytest.fixture
def use_data(monkeypatch):
    """Puts a data set in the place of every source: ``use_data(name, speakers, poison)``.

    ``speakers``: None, "in both splits" or "as folds". ``poison`` maps a Dataset to one.
    """

    def use(name="toy", speakers=None, poison=lambda dataset: dataset):
        generator = torch.Generator().manual_seed(0)
        target = torch.arange(CLASSES).repeat(SPEAKERS * EACH)
        speaker = torch.arange(SPEAKERS).repeat_interleave(CLASSES * EACH)
        take = torch.arange(EACH).repeat_interleave(CLASSES).repeat(SPEAKERS)
        inputs = torch.randint(0, 256, (len(target), 1, 8, 8), generator=generator, dtype=torch.uint8)
        inputs[:, 0, 0, 0], inputs[:, 0, 0, 1] = target.to(torch.uint8), speaker.to(torch.uint8)

        def load(source, *, test_group=None, **options):
            by_take = test_group is None and speakers != "as folds"
            is_test = take == 0 if by_take else speaker == int(test_group or "0")
            parts = []
            for mask in (~is_test, is_test):
                names = tuple(str(number) for number in speaker[mask].tolist()) if speakers else None
                parts.append(Split(inputs[mask], target[mask], names))
            classes = tuple(f"class {index}" for index in range(CLASSES))
            return poison(Dataset(name, "image", classes, *parts, f"{name} {test_group}", Pixels(1, 8, 8)))

        monkeypatch.setattr(runs, "load_dataset", load)
        protocol._loaded.cache_clear()

    yield use
    protocol._loaded.cache_clear()


@pytest.fixture
def noise():
    """Gives a split whose samples at a mask are noise."""

    def poisoned(split, mask):
        inputs = split.inputs.clone()
        inputs[mask] = torch.randint_like(inputs[mask], 256)
        return replace(split, inputs=inputs)

    return poisoned
