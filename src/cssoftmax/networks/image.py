"""Backbones for small images: (N, channels, H, W) floats to (N, embedding_size)."""

from torch import nn

from cssoftmax.networks.layers import Residual, conv, embedding


def lenet(channels: int, embedding_size: int, width: int = 32) -> nn.Sequential:
    """Three 3x3 convolutions of ``width``, 2 and 4 times that, each halving the image; for images of 8 to 32 pixels.

    >>> import torch
    >>> lenet(1, 64)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 64])
    """
    return nn.Sequential(
        conv(channels, width),
        nn.MaxPool2d(2),
        conv(width, 2 * width),
        nn.MaxPool2d(2),
        conv(2 * width, 4 * width),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        embedding(16 * width, embedding_size),
    )


def resnet9(channels: int, embedding_size: int, width: int = 64) -> nn.Sequential:
    """ResNet-9 for 32x32 images: widths 1, 2, 4 and 8 times ``width``, residual pairs at the second and fourth.

    Source: the network of D. Page, "How to train your ResNet" (2018); its pooling kept, its last layer an embedding.

    >>> import torch
    >>> resnet9(3, 128, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 128])
    """
    return nn.Sequential(
        conv(channels, width),
        conv(width, 2 * width),
        nn.MaxPool2d(2),
        Residual(nn.Sequential(conv(2 * width, 2 * width), conv(2 * width, 2 * width))),
        conv(2 * width, 4 * width),
        nn.MaxPool2d(2),
        conv(4 * width, 8 * width),
        nn.MaxPool2d(2),
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


def _basic_block(inputs: int, outputs: int, stride: int) -> Residual:
    branch = nn.Sequential(
        conv(inputs, outputs, stride), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
    )
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return Residual(branch, shortcut, relu=True)
