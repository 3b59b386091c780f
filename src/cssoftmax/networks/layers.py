"""What the backbones share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(
    inputs: int,
    outputs: int,
    stride: int = 1,
    *,
    pool: nn.Module | None = None,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """A 3x3 convolution, batch normalisation, pooling if any, and activation (ReLU).

    At stride 1 only pooling changes height and width. Max pooling before a ReLU gives the numbers of max pooling after
    it, and leaves it a quarter of the work.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if pool is not None:
        layers.append(pool)
    return nn.Sequential(*layers, nn.ReLU(inplace=True) if activation is None else activation)


class Whitening(nn.Module):
    """Frozen 2x2 convolution to decorrelated patches and their negatives: (N, c, H, W) to (N, 8 c, H - 1, W - 1).

    :meth:`fit` sets its filters, the eigenvectors of the patches' covariance over the roots of their eigenvalues; until
    then patches pass as they are. Only the bias is trained.

    Source: D. Page, "How to train your ResNet" (2018); K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU"
    (2024).

    >>> layer = Whitening(3)
    >>> layer.fit(torch.rand(100, 3, 8, 8))
    >>> patches = layer(torch.rand(4, 3, 8, 8))
    >>> patches.shape, layer.weight.requires_grad
    (torch.Size([4, 24, 7, 7]), False)
    """

    weight: Tensor

    def __init__(self, channels: int, eps: float = 5e-4) -> None:
        super().__init__()
        patches = torch.eye(4 * channels).reshape(-1, channels, 2, 2)
        self.register_buffer("weight", torch.cat([patches, -patches]))
        self.bias = nn.Parameter(torch.zeros(8 * channels))
        self.eps = eps

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Sets the filters from images (N, channels, H, W), as the layer will see them."""
        patches = F.unfold(images.float(), 2).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T).double())
        filters = (vectors / (values.clamp(min=0) + self.eps).sqrt()).T.flip(0).reshape(-1, images.shape[1], 2, 2)
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, inputs: Tensor) -> Tensor:
        return F.conv2d(inputs, self.weight, self.bias)


def embedding(inputs: int, size: int) -> nn.Sequential:
    """(N, inputs) features to (N, size) embeddings."""
    return nn.Sequential(nn.Linear(inputs, size, bias=False), nn.BatchNorm1d(size))


class Standardize(nn.Module):
    """(x - mean) / std per channel of (N, channels, H, W); the statistics travel with the network's weights.

    >>> Standardize(torch.tensor([0.5]), torch.tensor([0.25]))(torch.ones(1, 1, 2, 2)).flatten()
    tensor([2., 2., 2., 2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.clamp(min=1e-6).view(-1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.std


class Residual(nn.Module):
    """shortcut(x) + branch(x), then ReLU if ``relu``."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, *, relu: bool = False) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.relu = relu

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.shortcut(inputs) + self.branch(inputs)
        return torch.relu(outputs) if self.relu else outputs


class SideBySide(nn.Module):
    """The embeddings of several networks of one input, side by side.

    In training each network is left out (its numbers are 0) of half of the samples, but never all of one sample: each
    has to tell the classes by itself, too.

    >>> SideBySide(nn.Flatten(), nn.Flatten()).eval()(torch.ones(2, 3)).shape
    torch.Size([2, 6])
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor) -> Tensor:
        embeddings = [network(inputs) for network in self.networks]
        if self.training:
            kept = torch.rand(len(inputs), len(embeddings)) < 0.5
            last = torch.randint(len(embeddings), (len(inputs), 1))
            kept |= ~kept.any(1, keepdim=True) & (torch.arange(len(embeddings)) == last)
            shares = kept.to(inputs.device).unbind(1)
            embeddings = [one * share[:, None] for one, share in zip(embeddings, shares, strict=True)]
        return torch.cat(embeddings, 1)
