"""Augmentations keep shape and dtype, repeat under one seed, and do what their names say."""

import pytest
import torch

from cssoftmax.data.augment import (
    ImageAugment,
    SoundAugment,
    averaged_views,
    flipped,
    image_augmentation,
    mixup,
    random_equalization,
    random_mask,
    shifted,
    sound_augmentation,
)

IMAGES = {
    "crop": ImageAugment(crop_padding=4),
    "affine": ImageAugment(rotation=15, translation=0.1, scale=0.1),
    "cutout": ImageAugment(cutout=8),
    "all": ImageAugment(crop_padding=4, rotation=15, translation=0.1, scale=0.1, cutout=8),
}
SOUNDS = {
    "time": SoundAugment(time_mask=10),
    "frequency": SoundAugment(frequency_mask=10),
    "shift": SoundAugment(shift=5),
    "equalization": SoundAugment(equalization=6),
    "all": SoundAugment(time_mask=10, frequency_mask=10, shift=5, equalization=6),
}
CASES = {
    **{f"image {name}": (image_augmentation(config), (16, 3, 32, 28)) for name, config in IMAGES.items()},
    **{f"sound {name}": (sound_augmentation(config), (16, 1, 40, 63)) for name, config in SOUNDS.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_shape_and_repetition(case):
    augment, shape = CASES[case]
    inputs = torch.rand(shape)
    before = inputs.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(inputs)
    second = augment(inputs)
    torch.set_rng_state(state)
    assert torch.equal(augment(inputs), first)
    assert not torch.equal(first, second)
    assert first.shape == inputs.shape
    assert first.dtype == inputs.dtype
    assert first.isfinite().all()
    assert torch.equal(inputs, before)
    assert augment(inputs[:1]).shape == inputs[:1].shape


def test_defaults_change_nothing():
    inputs = torch.rand(4, 1, 16, 16)
    assert torch.equal(image_augmentation(ImageAugment())(inputs), inputs)
    assert torch.equal(sound_augmentation(SoundAugment())(inputs), inputs)


def test_flipped_mirrors_what_it_is_told_to():
    inputs = torch.rand(3, 1, 4, 4)
    outputs = flipped(inputs, torch.tensor([True, False, True]))
    assert torch.equal(outputs, torch.stack([inputs[0].flip(2), inputs[1], inputs[2].flip(2)]))


def test_shifted_moves_down_and_right_and_reflects_at_the_border():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    down = shifted(image, 1, 0)[0, 0]
    assert torch.equal(down[1:], image[0, 0, :-1])
    assert torch.equal(down[0], image[0, 0, 1])
    left = shifted(image, 0, -1)[0, 0]
    assert torch.equal(left[:, :-1], image[0, 0, :, 1:])
    assert torch.equal(shifted(image, 0, 0), image)


@pytest.mark.parametrize(
    ("augment", "count"),
    [
        (None, 1),
        (ImageAugment(cutout=4), 1),
        (ImageAugment(flip=True), 2),
        (ImageAugment(rotation=10, translation=0.1), 3),
        (ImageAugment(flip=True, crop_padding=4), 6),
        (SoundAugment(time_mask=4), 1),
        (SoundAugment(shift=6), 5),
    ],
)
def test_views_are_what_training_shows_and_all_differ(augment, count):
    inputs = torch.rand(2, 1, 16, 16)
    views = [view(inputs) for view in averaged_views(augment)]
    assert len(views) == count
    assert torch.equal(views[0], inputs)
    assert all(view.shape == inputs.shape for view in views)
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_crop_gives_windows_of_the_reflected_image():
    inputs = torch.rand(30, 2, 8, 8)
    outputs = image_augmentation(ImageAugment(crop_padding=2))(inputs)
    padded = torch.nn.functional.pad(inputs, (2, 2, 2, 2), mode="reflect")
    seen = set()
    for image, output in zip(padded, outputs, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(image[:, y : y + 8, x : x + 8], output)]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > 8


def test_cutout_gives_a_square_inside_the_image_its_mean_colour():
    inputs = torch.rand(200, 3, 20, 32)
    outputs = image_augmentation(ImageAugment(cutout=6))(inputs)
    cut = (outputs != inputs).any(dim=1)
    assert (cut.any(dim=2).sum(1) == 6).all() and (cut.any(dim=1).sum(1) == 6).all() and (cut.sum((1, 2)) == 36).all()
    for image, mask, before in zip(outputs, cut, inputs, strict=True):
        torch.testing.assert_close(image[:, mask], before.mean((1, 2))[:, None].expand(3, 36))
    assert {int(rows.nonzero()[0]) for rows in cut.any(dim=2)} == set(range(15))
    assert {int(columns.nonzero()[0]) for columns in cut.any(dim=1)} == set(range(27))
    small = image_augmentation(ImageAugment(cutout=40))(inputs)
    torch.testing.assert_close(small, inputs.mean((2, 3), keepdim=True).expand_as(inputs))


@pytest.mark.parametrize("dim", [2, 3])
def test_a_mask_leaves_half_of_a_short_sound(dim):
    inputs = torch.rand(200, 1, 4, 4)
    kept = (random_mask(inputs, 100, dim) == inputs)[:, 0].all(dim=4 - dim).sum(dim=1)
    assert kept.min() == 2
    assert kept.max() == 4


@pytest.mark.parametrize(("config", "dim"), [(SoundAugment(time_mask=9), 2), (SoundAugment(frequency_mask=9), 1)])
def test_masks_are_runs_of_the_mean(config, dim):
    inputs = torch.rand(50, 1, 40, 63)
    outputs = sound_augmentation(config)(inputs)
    masked = (outputs != inputs)[:, 0]
    lines = masked.any(dim=3 - dim)
    assert torch.equal(lines, masked.all(dim=3 - dim))
    assert 0 < lines.sum(1).max() <= 9
    assert ((lines[:, 1:] & ~lines[:, :-1]).sum(1) <= 1).all()
    mean = inputs.mean((1, 2, 3))[:, None, None].expand_as(masked)
    torch.testing.assert_close(outputs[:, 0][masked], mean[masked])


def test_shift_rolls():
    inputs = torch.rand(20, 1, 4, 30)
    outputs = sound_augmentation(SoundAugment(shift=3))(inputs)
    for before, after in zip(inputs, outputs, strict=True):
        assert any(torch.equal(before.roll(shift, 2), after) for shift in range(-3, 4))


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 5.0])
def test_mixup_weights(alpha):
    inputs, target = torch.rand(32, 3, 4, 4), torch.arange(32)
    torch.manual_seed(0)
    weights = []
    for _ in range(300):
        mixed, target_a, target_b, lam = mixup(inputs, target, alpha)
        assert torch.equal(target_a, target)
        weights.append(lam)
    torch.testing.assert_close(mixed, lam * inputs[target_a] + (1 - lam) * inputs[target_b])
    assert sorted(target_b.tolist()) == target.tolist()
    drawn = torch.tensor(weights)
    assert drawn.isfinite().all()
    assert abs(float(drawn.mean()) - 0.5) < 0.1
    assert float(drawn.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.25)
    torch.manual_seed(0)
    assert mixup(inputs, target, alpha)[3] == weights[0]


def test_equalization_adds_one_smooth_curve_to_all_frames():
    inputs = torch.randn(2000, 2, 64, 5)
    added = random_equalization(inputs, 6.0) - inputs
    torch.testing.assert_close(added, added[:, :1, :, :1].expand_as(added), atol=1e-4, rtol=0)
    curve = added[:, 0, :, 0]
    assert 5.5 < curve[:, 0].std() < 6.5 and abs(float(curve.mean())) < 0.5
    # Straight between eight corners: it bends at the six inner ones, each between two bands or on one.
    bends = curve.diff(n=2, dim=1).abs().mean(0) > 1e-3
    assert 6 <= bends.sum() <= 14
