"""Backbones for small images: (N, channels, H, W) floats to (N, embedding_size)."""

from itertools import pairwise

from torch import nn

from cssoftmax.networks.layers import Residual, Whitening, conv, embedding


def lenet(channels: int, embedding_size: int, width: int = 32) -> nn.Sequential:
    """Three 3x3 convolutions of ``width``, 2 and 4 times that, each halving the image; for images of 8 to 32 pixels.

    >>> import torch
    >>> lenet(1, 64)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 64])
    """
    return nn.Sequential(
        conv(channels, width, pool=nn.MaxPool2d(2)),
        conv(width, 2 * width, pool=nn.MaxPool2d(2)),
        conv(2 * width, 4 * width, pool=nn.AdaptiveMaxPool2d(2)),
        nn.Flatten(),
        embedding(16 * width, embedding_size),
    )


def plain3(channels: int, embedding_size: int, width: int = 16) -> nn.Sequential:
    """Ten 3x3 convolutions without padding or pooling, of 2, 3, ... 11 times ``width``; for images of 28 pixels.

    Source: M3 of An, Lee, Park, Yang, So, "An ensemble of simple convolutional neural network models for MNIST digit
    recognition" (2020), its last layer an embedding; :func:`plain5` is M5, :func:`plain7` is M7.

    >>> import torch
    >>> plain3(1, 64, width=2)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 64])
    """
    return _plain(channels, embedding_size, 3, [width * times for times in range(2, 12)])


def plain5(channels: int, embedding_size: int, width: int = 32) -> nn.Sequential:
    """Five 5x5 convolutions without padding or pooling, of 1 to 5 times ``width``; for images of 28 pixels."""
    return _plain(channels, embedding_size, 5, [width * times for times in range(1, 6)])


def plain7(channels: int, embedding_size: int, width: int = 48) -> nn.Sequential:
    """Four 7x7 convolutions without padding or pooling, of 1 to 4 times ``width``; for images of 28 pixels."""
    return _plain(channels, embedding_size, 7, [width * times for times in range(1, 5)])


def _plain(channels: int, embedding_size: int, kernel: int, widths: list[int], side: int = 28) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([channels, *widths]):
        layers += [nn.Conv2d(inputs, outputs, kernel, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    side -= (kernel - 1) * len(widths)
    return nn.Sequential(*layers, nn.Flatten(), embedding(widths[-1] * side**2, embedding_size))


def whitenet(channels: int, embedding_size: int, width: int = 128) -> nn.Sequential:
    """Whitened 2x2 patches, then three groups of three convolutions, of 1, 3 and 5 times ``width``; for 32x32 images.

    A convolution's first filters begin as the identity, and batch normalisation has no weights, only biases.

    Source: K. Jordan's airbench96 ("94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024), its last layer an
    embedding, and its last group, on the smallest maps, five times as wide as its first, not four.

    >>> import torch
    >>> whitenet(3, 128, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 128])
    """
    layers: list[nn.Module] = [Whitening(channels), nn.GELU()]
    for inputs, outputs in pairwise([8 * channels, width, 3 * width, 5 * width]):
        layers += [_conv3(inputs, outputs), nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.GELU()]
        branch = [conv(outputs, outputs, activation=nn.GELU()), _conv3(outputs, outputs), nn.BatchNorm2d(outputs)]
        layers += [Residual(nn.Sequential(*branch)), nn.GELU()]
    network = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), embedding(5 * width, embedding_size))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight.data[: layer.in_channels])
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.requires_grad_(False)
    return network


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def resnet9(channels: int, embedding_size: int, width: int = 64) -> nn.Sequential:
    """ResNet-9 for 32x32 images: widths 1, 2, 4 and 8 times ``width``, residual pairs at the second and fourth.

    Source: the network of D. Page, "How to train your ResNet" (2018); its pooling kept, its last layer an embedding.

    >>> import torch
    >>> resnet9(3, 128, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 128])
    """
    return nn.Sequential(
        conv(channels, width),
        conv(width, 2 * width, pool=nn.MaxPool2d(2)),
        Residual(nn.Sequential(conv(2 * width, 2 * width), conv(2 * width, 2 * width))),
        conv(2 * width, 4 * width, pool=nn.MaxPool2d(2)),
        conv(4 * width, 8 * width, pool=nn.MaxPool2d(2)),
        Residual(nn.Sequential(conv(8 * width, 8 * width), conv(8 * width, 8 * width))),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        embedding(8 * width, embedding_size),
    )


def resnet18(channels: int, embedding_size: int, width: int = 64) -> nn.Sequential:
    """ResNet-18 for 32x32 images: a 3x3 first layer without pooling, four stages of two blocks, average pooling.

    Source: He et al., "Deep Residual Learning for Image Recognition" (2016), in its usual form for CIFAR.

    >>> import torch
    >>> resnet18(3, 128, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 128])
    """
    layers: list[nn.Module] = [conv(channels, width)]
    inputs = width
    for stage in range(4):
        outputs = width * 2**stage
        for block in range(2):
            layers.append(_basic_block(inputs, outputs, stride=2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), embedding(inputs, embedding_size))


def wideresnet(channels: int, embedding_size: int, width: int = 160) -> nn.Sequential:
    """WideResNet-28 for 32x32 images: three stages of four pre-activated blocks; 160 is the usual "28-10".

    Source: Zagoruyko, Komodakis, "Wide Residual Networks" (2016), without dropout, its last layer an embedding.

    >>> import torch
    >>> wideresnet(3, 128, width=4)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 128])
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False)]
    inputs = 16
    for stage in range(3):
        outputs = width * 2**stage
        for block in range(4):
            layers.append(_pre_activated_block(inputs, outputs, stride=2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    return nn.Sequential(
        *layers,
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        embedding(inputs, embedding_size),
    )


def _pre_activated_block(inputs: int, outputs: int, stride: int) -> Residual:
    branch = nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        conv(inputs, outputs, stride),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
    )
    plain = stride == 1 and inputs == outputs
    return Residual(branch, None if plain else nn.Conv2d(inputs, outputs, 1, stride, bias=False))


def _basic_block(inputs: int, outputs: int, stride: int) -> Residual:
    branch = nn.Sequential(
        conv(inputs, outputs, stride), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
    )
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return Residual(branch, shortcut, relu=True)
