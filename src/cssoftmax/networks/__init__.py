"""Small backbones that end in an embedding: batch-normalised, without a rectifier, so that it can point anywhere."""

from cssoftmax.networks.build import NETWORKS, NetworkError, build, find, is_import_path
from cssoftmax.networks.image import lenet, plain3, plain5, plain7, resnet9, resnet18, whitenet, wideresnet
from cssoftmax.networks.layers import Standardize, Whitening
from cssoftmax.networks.sound import melnet, texturenet

__all__ = [
    "NETWORKS",
    "NetworkError",
    "Standardize",
    "Whitening",
    "build",
    "find",
    "is_import_path",
    "lenet",
    "melnet",
    "plain3",
    "plain5",
    "plain7",
    "resnet9",
    "resnet18",
    "texturenet",
    "whitenet",
    "wideresnet",
]
