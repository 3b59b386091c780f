"""CS-Softmax and the cosine-softmax losses for PyTorch."""

from cssoftmax import functional
from cssoftmax.losses import (
    ArcFaceLoss,
    CircleLoss,
    CosFaceLoss,
    CSSoftmaxLoss,
    NormFaceLoss,
    SimilarityLoss,
    SoftmaxLoss,
    SOSoftmaxLoss,
)
from cssoftmax.wiring import param_groups, split_head

__version__ = "0.1.0"

__all__ = [
    "ArcFaceLoss",
    "CSSoftmaxLoss",
    "CircleLoss",
    "CosFaceLoss",
    "NormFaceLoss",
    "SOSoftmaxLoss",
    "SimilarityLoss",
    "SoftmaxLoss",
    "functional",
    "param_groups",
    "split_head",
]
