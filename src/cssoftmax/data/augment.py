"""Random changes of training batches. All randomness is drawn from torch's global CPU generator."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Beta

Augmentation = Callable[[Tensor], Tensor]

EQUALIZER_BANDS = 8
"""Mel bands, evenly spread, between which a random equalizer's curve is straight."""

SMALLER = 5 / 8
"""Height and width of an image at low resolution, as a share of what they are."""


@dataclass(frozen=True)
class ImageAugment:
    """What may happen to each image of a batch; the defaults change nothing.

    Attributes:
        flip: mirror half of the images left to right in one epoch, and the other half in the next (:func:`flipped`).
        crop_padding: shift by up to so many pixels, the border filled by reflection.
        rotation: turn by up to so many degrees.
        translation: shift by up to this share of height and width.
        scale: resize by a factor from ``1 - scale`` to ``1 + scale``.
        cutout: side in pixels of a square that is set to the image's mean colour.
    """

    flip: bool = False
    crop_padding: int = 0
    rotation: float = 0.0
    translation: float = 0.0
    scale: float = 0.0
    cutout: int = 0


@dataclass(frozen=True)
class SoundAugment:
    """What may happen to each log-mel spectrogram of a batch; the defaults change nothing.

    The masks are SpecAugment's (Park et al., 2019).

    Attributes:
        time_mask: longest run of frames set to the spectrogram's mean; never more than half of them.
        frequency_mask: widest run of mel bands set to the spectrogram's mean; never more than half of them.
        shift: move in time by up to so many frames, what leaves at one end coming back at the other.
        equalization: decibels; the deviation of a random curve over the mel bands that is added, as another room or
            microphone would.
    """

    time_mask: int = 0
    frequency_mask: int = 0
    shift: int = 0
    equalization: float = 0.0


def image_augmentation(config: ImageAugment) -> Augmentation:
    """Augmentation of float images (N, channels, H, W), scaled or normalised; shape, dtype and device are kept.

    All but the flip, which takes turns: the training knows which samples a batch holds, and in which epoch.

    >>> import torch
    >>> augment = image_augmentation(ImageAugment(crop_padding=4, cutout=8))
    >>> augment(torch.rand(8, 3, 32, 32)).shape
    torch.Size([8, 3, 32, 32])
    """
    steps: list[Augmentation] = []
    # The crop is plain indexing; kornia 0.9 crops image by image in a Python loop, several times slower.
    if config.crop_padding:
        steps.append(lambda images: random_crop(images, config.crop_padding))
    if config.rotation or config.translation or config.scale:
        steps.append(_affine(config))
    if config.cutout:
        steps.append(lambda images: random_square(images, config.cutout))
    return _chain(steps)


def sound_augmentation(config: SoundAugment) -> Augmentation:
    """Augmentation of log-mel spectrograms (N, 1, mels, frames) in decibels; shape, dtype and device are kept.

    >>> import torch
    >>> augment = sound_augmentation(SoundAugment(time_mask=8, frequency_mask=8, shift=4))
    >>> augment(torch.rand(8, 1, 64, 63)).shape
    torch.Size([8, 1, 64, 63])
    """
    steps: list[Augmentation] = []
    if config.shift:
        steps.append(lambda inputs: random_shift(inputs, config.shift))
    if config.time_mask:
        steps.append(lambda inputs: random_mask(inputs, config.time_mask, dim=3))
    if config.frequency_mask:
        steps.append(lambda inputs: random_mask(inputs, config.frequency_mask, dim=2))
    if config.equalization:
        steps.append(lambda inputs: random_equalization(inputs, config.equalization))
    return _chain(steps)


def averaged_views(augment: ImageAugment | SoundAugment | None) -> list[Augmentation]:
    """The views of a test sample that test-time averaging looks at: as it is, then as training might have changed it.

    Images are shifted by one pixel to the upper left and the lower right where training shifts them, and mirrored where
    it mirrors them: six views of both. Spectrograms are rolled by a third and two thirds of the longest
    shift, either way: five views.

    >>> len(averaged_views(ImageAugment(flip=True, crop_padding=4))), len(averaged_views(None))
    (6, 1)
    """
    views: list[Augmentation] = [lambda inputs: inputs]
    if isinstance(augment, ImageAugment):
        if augment.crop_padding or augment.translation:
            views += [lambda images: shifted(images, -1, -1), lambda images: shifted(images, 1, 1)]
        if augment.flip:
            views += [lambda images, view=view: view(images).flip(3) for view in views]  # type: ignore[misc]
    elif isinstance(augment, SoundAugment) and augment.shift:
        steps = [round(augment.shift * share) for share in (-2 / 3, -1 / 3, 1 / 3, 2 / 3)]
        views += [lambda inputs, step=step: inputs.roll(step, 3) for step in steps]  # type: ignore[misc]
    return views


def mixup(inputs: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """Mix each sample of a batch with another one.

    The loss of the mixture is ``lam * loss(logits, target_a) + (1 - lam) * loss(logits, target_b)``.

    Args:
        inputs: float images or spectrograms (N, channels, H, W).
        target: classes (N,).
        alpha: both parameters of the beta distribution that ``lam`` is drawn from, over 0.

    Returns:
        ``lam * inputs + (1 - lam) * inputs[order]``, ``target``, ``target[order]`` and ``lam``, with one random order.

    >>> import torch
    >>> mixed, target_a, target_b, lam = mixup(torch.rand(4, 1, 8, 8), torch.arange(4), alpha=0.2)
    >>> mixed.shape, 0 <= lam <= 1
    (torch.Size([4, 1, 8, 8]), True)
    """
    lam = float(Beta(alpha, alpha).sample())
    order = torch.randperm(len(inputs)).to(inputs.device)
    return torch.lerp(inputs[order], inputs, lam), target, target[order], lam


def flipped(images: Tensor, mirrored: Tensor) -> Tensor:
    """Images (N, channels, H, W), those where ``mirrored`` (N,) is true left to right.

    To mirror each image in every second epoch, not at random, shows the network both sides of it as often as it can.
    Source: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024), section 3.6.
    """
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def smaller(images: Tensor) -> Tensor:
    """Images (N, channels, H, W) at five eighths of height and width, each pixel an average over those it stands for.

    Source: progressive resizing, of fast.ai's entry to DAWNBench (J. Howard, 2018); bilinear with the filter of Pillow.

    >>> import torch
    >>> smaller(torch.rand(8, 3, 32, 32)).shape
    torch.Size([8, 3, 20, 20])
    """
    height, width = (max(round(side * SMALLER), 1) for side in images.shape[2:])
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True)


def random_crop(images: Tensor, padding: int) -> Tensor:
    """Shift images (N, channels, H, W) by up to ``padding`` pixels; the border is filled by reflection."""
    number, _, height, width = images.shape
    windows = F.pad(images, (padding,) * 4, mode="reflect").unfold(2, height, 1).unfold(3, width, 1)
    top, left = torch.randint(0, 2 * padding + 1, (2, number)).to(images.device)
    return windows[torch.arange(number, device=images.device), :, top, left]


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Images (N, channels, H, W) moved by so many pixels, the border filled by reflection."""
    height, width = images.shape[-2:]
    reach = max(abs(down), abs(right))
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return padded[..., reach - down : reach - down + height, reach - right : reach - right + width]


def random_shift(inputs: Tensor, frames: int) -> Tensor:
    """Roll each sample (N, channels, H, W) along its last axis by up to ``frames`` either way."""
    number, _, _, width = inputs.shape
    shift = torch.randint(-frames, frames + 1, (number, 1)).to(inputs.device)
    columns = (torch.arange(width, device=inputs.device) - shift) % width
    return inputs.gather(3, columns[:, None, None, :].expand_as(inputs))


def random_equalization(inputs: Tensor, decibels: float) -> Tensor:
    """Add to each sample (N, channels, mels, frames) a curve over its bands: straight between normal numbers."""
    number, _, mels, _ = inputs.shape
    curve = F.interpolate(torch.randn(number, 1, EQUALIZER_BANDS), mels, mode="linear", align_corners=True)
    return inputs + (decibels * curve).to(inputs)[..., None]


def random_mask(inputs: Tensor, widest: int, dim: int) -> Tensor:
    """Set a run of up to ``widest`` positions along ``dim`` of each sample (N, channels, H, W) to the sample's mean.

    However wide that is, half of the positions stay: a short sound is not wiped out.
    """
    number, size = len(inputs), inputs.shape[dim]
    width = torch.randint(0, min(widest, size // 2) + 1, (number, 1))
    start = (torch.rand(number, 1) * (size - width + 1)).long()
    masked = _run(start, width, size, dim).to(inputs.device)
    return torch.where(masked, inputs.mean(dim=(1, 2, 3), keepdim=True), inputs)


def random_square(images: Tensor, side: int) -> Tensor:
    """Set a square of each image (N, channels, H, W) to the image's mean colour.

    A black one would stand out by edges that no photograph has.
    """
    number, _, height, width = images.shape
    top = torch.randint(0, max(height - side, 0) + 1, (number, 1))
    left = torch.randint(0, max(width - side, 0) + 1, (number, 1))
    inside = (_run(top, side, height, dim=2) & _run(left, side, width, dim=3)).to(images.device)
    return torch.where(inside, images.mean(dim=(2, 3), keepdim=True), images)


def _run(start: Tensor, width: Tensor | int, size: int, dim: int) -> Tensor:
    """Which positions along ``dim`` are in each sample's run, to broadcast against (N, channels, H, W)."""
    position = torch.arange(size)
    shape = [len(start), 1, 1, 1]
    shape[dim] = size
    return ((position >= start) & (position < start + width)).view(shape)


def _affine(config: ImageAugment) -> nn.Module:
    from kornia.augmentation import RandomAffine

    module: nn.Module = RandomAffine(
        degrees=config.rotation,
        translate=(config.translation, config.translation),
        scale=(1 - config.scale, 1 + config.scale),
        padding_mode="reflection",
        p=1.0,
    )
    return module


def _chain(steps: list[Augmentation]) -> Augmentation:
    def augment(inputs: Tensor) -> Tensor:
        for step in steps:
            inputs = step(inputs)
        return inputs

    return augment
