"""Splits are stratified and stable; statistics are those of the samples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cssoftmax.data import DataError, Split, channel_statistics, load_dataset, validation_split
from cssoftmax.data.split import stratified_mask


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 100),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_masks_are_stratified_and_do_not_depend_on_the_order(counts, fraction, seed, order):
    items = [(label, f"{label}/{index}") for label, count in enumerate(counts) for index in range(count)]

    def picked(items):
        mask = stratified_mask(torch.tensor([label for label, _ in items]), [name for _, name in items], fraction, seed)
        return {item for item, chosen in zip(items, mask.tolist(), strict=True) if chosen}

    first = picked(items)
    for label, count in enumerate(counts):
        number = sum(chosen == label for chosen, _ in first)
        assert number == (0 if count == 1 else min(max(round(count * fraction), 1), count - 1))
    order.shuffle(items)
    assert picked(items) == first


def test_one_more_file_moves_at_most_one():
    names = [f"{index}.png" for index in range(101)]
    target = torch.zeros(101, dtype=torch.long)
    before = stratified_mask(target[:100], names[:100], 0.2, 0)
    after = stratified_mask(target, names, 0.2, 0)
    assert int((before != after[:100]).sum()) <= 1


def test_validation_split_is_carved_off_train():
    dataset = load_dataset("digits")
    part = validation_split(dataset, 0.25, seed=3)
    assert len(part.train.target) + len(part.test.target) == len(dataset.train.target)
    share = part.test.target.bincount() / dataset.train.target.bincount()
    assert ((share - 0.25).abs() < 0.01).all()
    both = torch.cat([part.train.inputs, part.test.inputs]).flatten(1)
    assert sorted(both.tolist()) == sorted(dataset.train.inputs.flatten(1).tolist())
    assert part.fingerprint == validation_split(dataset, 0.25, seed=3).fingerprint
    assert part.fingerprint != validation_split(dataset, 0.25, seed=4).fingerprint
    for fraction in (0, 1, -0.5, float("nan")):
        with pytest.raises(DataError, match="over 0 and under 1"):
            validation_split(dataset, fraction, seed=0)


def test_channel_statistics():
    inputs = torch.randint(0, 256, (5000, 3, 4, 4), dtype=torch.uint8)
    mean, std = channel_statistics(Split(inputs, torch.zeros(5000, dtype=torch.long), None))
    scaled = inputs.double() / 255
    torch.testing.assert_close(mean, scaled.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, scaled.std((0, 2, 3), correction=0).float())
    sounds = torch.randn(10, 1, 8, 8) * 20 - 50
    mean, std = channel_statistics(Split(sounds, torch.zeros(10, dtype=torch.long), None))
    torch.testing.assert_close(mean, sounds.mean((0, 2, 3)))
    torch.testing.assert_close(std, sounds.std((0, 2, 3), correction=0))
