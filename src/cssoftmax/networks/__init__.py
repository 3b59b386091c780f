"""Small backbones that end in an embedding: batch-normalised, without a rectifier, so that it can point anywhere."""

from cssoftmax.networks.image import lenet, plain3, plain5, plain7, resnet9, resnet18, whitenet, wideresnet
from cssoftmax.networks.layers import Standardize, Whitening
from cssoftmax.networks.sound import melnet

NETWORKS = {
    "lenet": lenet,
    "plain3": plain3,
    "plain5": plain5,
    "plain7": plain7,
    "resnet9": resnet9,
    "resnet18": resnet18,
    "whitenet": whitenet,
    "wideresnet": wideresnet,
    "melnet": melnet,
}

__all__ = [
    "NETWORKS",
    "Standardize",
    "Whitening",
    "lenet",
    "melnet",
    "plain3",
    "plain5",
    "plain7",
    "resnet9",
    "resnet18",
    "whitenet",
    "wideresnet",
]
