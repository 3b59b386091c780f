"""CS-Softmax and the cosine-softmax losses for PyTorch."""

from cssoftmax import functional
from cssoftmax.losses import (
    AdaCosLoss,
    AdaFaceLoss,
    ArcFaceLoss,
    CenterLoss,
    CircleLoss,
    CosFaceLoss,
    CSSoftmaxLoss,
    CurricularFaceLoss,
    ElasticFaceLoss,
    MagFaceLoss,
    NormFaceLoss,
    SimilarityLoss,
    SoftmaxLoss,
    SOSoftmaxLoss,
    SphereFaceLoss,
    SubCenterArcFaceLoss,
)
from cssoftmax.schedule import Schedule
from cssoftmax.wiring import param_groups, split_head

__version__ = "0.1.0"

__all__ = [
    "AdaCosLoss",
    "AdaFaceLoss",
    "ArcFaceLoss",
    "CSSoftmaxLoss",
    "CenterLoss",
    "CircleLoss",
    "CosFaceLoss",
    "CurricularFaceLoss",
    "ElasticFaceLoss",
    "MagFaceLoss",
    "NormFaceLoss",
    "SOSoftmaxLoss",
    "Schedule",
    "SimilarityLoss",
    "SoftmaxLoss",
    "SphereFaceLoss",
    "SubCenterArcFaceLoss",
    "functional",
    "param_groups",
    "split_head",
]
