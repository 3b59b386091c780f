"""Every backbone takes the sizes it claims, and its embedding can point anywhere."""

import pytest
import torch

from cssoftmax.networks import NETWORKS, Standardize

IMAGES = ("lenet", "resnet9", "resnet18")


@pytest.mark.parametrize("size", [8, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", IMAGES)
def test_images_become_embeddings(name, channels, size):
    network = NETWORKS[name](channels, 5, width=2).eval()
    assert network(torch.rand(2, channels, size, size)).shape == (2, 5)


@pytest.mark.parametrize("frames", [1, 2, 16, 63, 216, 431])
@pytest.mark.parametrize("mels", [40, 64])
def test_spectrograms_of_any_length_become_embeddings(mels, frames):
    network = NETWORKS["melnet"](1, 5, width=2).eval()
    assert network(torch.randn(2, 1, mels, frames)).shape == (2, 5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns_and_no_embedding_is_rectified(name):
    torch.manual_seed(0)
    network = NETWORKS[name](3, 6, width=2)
    embeddings = network(torch.randn(8, 3, 16, 16))
    (embeddings * torch.randn_like(embeddings)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert (embeddings < 0).any(0).all()
    assert (embeddings > 0).any(0).all()


def test_width_scales_the_first_layer():
    for name, network in NETWORKS.items():
        assert network(1, 4, width=3)[0][0].out_channels == 3, name


def test_standardized_channels_have_mean_0_and_deviation_1_and_the_statistics_are_saved():
    inputs = torch.rand(50, 2, 6, 6) * torch.tensor([2.0, 5.0]).view(2, 1, 1) + 3
    layer = Standardize(inputs.mean((0, 2, 3)), inputs.std((0, 2, 3)))
    outputs = layer(inputs)
    torch.testing.assert_close(outputs.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.std((0, 2, 3)), torch.ones(2), atol=1e-5, rtol=0)
    assert set(layer.state_dict()) == {"mean", "std"}
    assert Standardize(torch.zeros(1), torch.zeros(1))(torch.zeros(1, 1, 2, 2)).isfinite().all()
