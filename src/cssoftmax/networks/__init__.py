"""Small backbones that end in an embedding: batch-normalised, without a rectifier, so that it can point anywhere."""

from cssoftmax.networks.image import lenet, resnet9, resnet18
from cssoftmax.networks.layers import Standardize
from cssoftmax.networks.sound import melnet

NETWORKS = {"lenet": lenet, "resnet9": resnet9, "resnet18": resnet18, "melnet": melnet}

__all__ = ["NETWORKS", "Standardize", "lenet", "melnet", "resnet9", "resnet18"]
