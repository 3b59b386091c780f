"""The losses as modules: each owns the class weights and says which similarity it uses."""

from cssoftmax.losses.adaptive import AdaCosLoss, AdaFaceLoss, CurricularFaceLoss, ElasticFaceLoss, MagFaceLoss
from cssoftmax.losses.base import SimilarityLoss
from cssoftmax.losses.catalogue import LOSSES, build, settings_of, warmed_up
from cssoftmax.losses.center import CenterLoss
from cssoftmax.losses.margins import (
    ArcFaceLoss,
    CircleLoss,
    CosFaceLoss,
    CSSoftmaxLoss,
    NormFaceLoss,
    SoftmaxLoss,
    SOSoftmaxLoss,
    SphereFaceLoss,
    SubCenterArcFaceLoss,
)

__all__ = [
    "LOSSES",
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
    "SimilarityLoss",
    "SoftmaxLoss",
    "SphereFaceLoss",
    "SubCenterArcFaceLoss",
    "build",
    "settings_of",
    "warmed_up",
]
