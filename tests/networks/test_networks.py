"""Every backbone takes the sizes it claims, and its embedding can point anywhere."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from cssoftmax.networks import NETWORKS, NetworkError, Standardize, Whitening, build
from cssoftmax.networks.layers import SideBySide
from cssoftmax.networks.sound import Texture

SIZES = {
    **dict.fromkeys(("lenet", "resnet9", "resnet18", "wideresnet"), (8, 28, 32, 64)),
    "whitenet": (16, 28, 32, 64),
    **dict.fromkeys(("plain3", "plain5", "plain7"), (28,)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes])
def test_images_become_embeddings(name, channels, size):
    network = NETWORKS[name](channels, 5, width=2).eval()
    assert network(torch.rand(2, channels, size, size)).shape == (2, 5)


@pytest.mark.parametrize("frames", [1, 2, 16, 63, 216, 431])
@pytest.mark.parametrize("mels", [40, 64])
def test_spectrograms_of_any_length_become_embeddings(mels, frames):
    for name in ("melnet", "texturenet"):
        network = NETWORKS[name](1, 5, width=2).eval()
        embeddings = network(torch.randn(2, 1, mels, frames))
        assert embeddings.shape == (2, 5)
        assert embeddings.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns_and_no_embedding_is_rectified(name):
    torch.manual_seed(0)
    network = NETWORKS[name](3, 6, width=2)
    embeddings = network(torch.randn(16, 3, 28, 28))
    (embeddings * torch.randn_like(embeddings)).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)
    assert (embeddings < 0).any(0).all()
    assert (embeddings > 0).any(0).all()


def test_width_scales_the_first_layer():
    for name, network in NETWORKS.items():
        first = next(p for p in network(1, 4, width=3).parameters() if p.ndim == 4)
        assert len(first) == {"plain3": 6, "wideresnet": 16}.get(name, 3), name


def test_standardized_channels_have_mean_0_and_deviation_1_and_the_statistics_are_saved():
    inputs = torch.rand(50, 2, 6, 6) * torch.tensor([2.0, 5.0]).view(2, 1, 1) + 3
    layer = Standardize(inputs.mean((0, 2, 3)), inputs.std((0, 2, 3)))
    outputs = layer(inputs)
    torch.testing.assert_close(outputs.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.std((0, 2, 3)), torch.ones(2), atol=1e-5, rtol=0)
    assert set(layer.state_dict()) == {"mean", "std"}
    assert Standardize(torch.zeros(1), torch.zeros(1))(torch.zeros(1, 1, 2, 2)).isfinite().all()


def test_whitened_patches_have_no_correlation_and_unit_variance():
    torch.manual_seed(0)
    images = torch.randn(200, 3, 9, 9).cumsum(2).cumsum(3) * torch.tensor([1.0, 3.0, 9.0]).view(3, 1, 1)
    layer = Whitening(3, eps=0.0)
    layer.fit(images)
    outputs = layer(images).permute(1, 0, 2, 3).flatten(1).detach()
    torch.testing.assert_close(outputs[:12], -outputs[12:])
    torch.testing.assert_close(torch.cov(outputs[:12]), torch.eye(12), atol=1e-2, rtol=0)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_constant_patches_are_not_blown_up():
    layer = Whitening(1)
    layer.fit(torch.full((10, 1, 8, 8), 0.5))
    assert layer(torch.full((2, 1, 8, 8), 0.5)).abs().max() < 100


def test_textures_are_what_plain_loops_find():
    torch.manual_seed(0)
    spectrogram = torch.randn(2, 1, 64, 200, dtype=torch.float64)
    got = Texture(1).double()(spectrogram)
    for sample, features in zip(spectrogram[:, 0].numpy(), got.numpy(), strict=True):
        expected = []
        pairs = [(sample[2 * band] + sample[2 * band + 1]) / 2 for band in range(32)]
        expected += [pair.mean() for pair in pairs]
        expected += [pair.std() for pair in pairs]
        expected += [np.diff(pair, prepend=pair[-1]).std() for pair in pairs]
        for band in range(16):
            envelope = sample[4 * band : 4 * band + 4].mean(0)
            envelope -= envelope.mean()
            windows = [envelope[start : start + 64] for start in (0, 32, 64, 96, 128)]
            hann = np.sin(np.pi * np.arange(64) / 64) ** 2
            power = np.mean([np.abs(np.fft.rfft(hann * window)) ** 2 for window in windows], axis=0)
            rates = [1, 2, 4, 6, 9, 14, 21, 33]
            for low, high in pairwise(rates):
                expected.append(np.log(power[low:high].mean() + 2e-3))
        np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_silence_and_short_sounds_have_a_texture():
    for frames in (1, 10, 63, 64, 65):
        assert Texture(2)(torch.zeros(3, 2, 64, frames)).isfinite().all()


def test_networks_side_by_side_are_each_left_out_of_some_samples_but_never_all():
    torch.manual_seed(0)
    network = SideBySide(nn.Flatten(), nn.Flatten(), nn.Flatten())
    ones = torch.ones(4000, 2)
    parts = network(ones).view(4000, 3, 2)
    torch.testing.assert_close(parts[..., 0], parts[..., 1])
    assert parts.amax((1, 2)).min() == 1
    # Of eight equally likely choices one leaves all out, and then one of three stays.
    torch.testing.assert_close(parts[..., 0].mean(0), torch.full((3,), 1 / 2 + 1 / 24), atol=0.03, rtol=0)
    assert network.eval()(ones).min() == 1


def test_two_parts_do_not_fit_into_one_number():
    with pytest.raises(NetworkError, match="network: texturenet failed: .* an embedding size of at least 2, not 1"):
        build("texturenet", 1, 1, width=2)
    assert build("texturenet", 1, 2, width=2).eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 2)
