"""Losses whose scale or margin follows the batch: by its cosines, by the embeddings' lengths, or by chance."""

import math
from dataclasses import replace
from typing import Literal, Unpack, cast

import torch
from torch import Tensor

from cssoftmax import functional
from cssoftmax.losses.base import Margin, Options, SimilarityLoss, at_end, check_sizes, checked_margin, move_towards
from cssoftmax.similarity import (
    AdaFace,
    ArcFace,
    CosFace,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    MagFace,
    Similarity,
    clipped_norm,
    default_scale,
)


class AdaCosLoss(SimilarityLoss):
    """AdaCos: cross entropy of scale * cosine, with a scale that needs no search.

    Fixed: scale = sqrt(2) log(C - 1). Dynamic: it starts there, and each training forward sets it to ::

        log(B) / cos(min(pi / 4, theta)),    B = mean over rows of sum_{j != y} exp(scale c_j)

    with theta the median angle to the own class: the scale falls as the embeddings settle.

    Args:
        dynamic: False is the fixed scale.
        options: as in :class:`SimilarityLoss`, without ``scale``.

    Attributes:
        scale: a buffer () if dynamic. Evaluation never moves it.

    Source: Zhang et al., "AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face Representations",
    2019, arXiv:1905.00292, sections 4.1 and 4.2. Departures: both rules give a scale of 0 or less where C <= 2, so
    it never falls below sqrt(2) log 2, the first rule's value for C = 3; where embeddings lie on other classes than
    their own the second multiplies it step by step, so it never rises above 1000; with several processes theta is the
    mean of their medians. The dynamic scale costs a second (N, C) product.

    >>> loss = AdaCosLoss(4, 10)
    >>> before = loss.scale.item()
    >>> value = loss(torch.randn(8, 4), torch.arange(8))
    >>> f"{before:.2f}", loss.scale.item() != before
    ('3.11', True)
    """

    def __init__(self, in_features: int, num_classes: int, *, dynamic: bool = True, **options: Unpack[Options]) -> None:
        if "scale" in options:
            raise TypeError("scale: AdaCos finds its own; NormFaceLoss is the same loss with a given one")
        if not isinstance(dynamic, bool):
            raise TypeError(f"dynamic: True or False is needed, got {type(dynamic).__name__}")
        check_sizes(in_features, num_classes)
        scale = math.sqrt(2) * math.log(max(num_classes - 1, 2))
        options["scale"] = torch.tensor(scale) if dynamic else scale
        super().__init__(CosFace(), in_features, num_classes, **options)
        self.dynamic = dynamic

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """As :meth:`SimilarityLoss.forward`; in training the scale is moved first."""
        if self.training and self.dynamic:
            self._rescale(embeddings, target)
        return super().forward(embeddings, target)

    @torch.no_grad()
    def _rescale(self, embeddings: Tensor, target: Tensor) -> None:
        own, _, counts = self._own_cosines(embeddings, target)
        # Less the scale, so that no exponential overflows: log B = scale + log of the mean of these sums.
        others = (self._log_others(embeddings, target) - self.scale).exp()
        theta = torch.where(counts, own.clamp(-1, 1).acos(), math.nan).nanmedian()
        count = counts.sum()
        sums = torch.stack([count, torch.where(counts, others, 0).sum(), (count * theta).nan_to_num()])
        count, total, angles = self._over_processes(sums)
        scale = (self.scale + (total / count).log()) / (angles / count).clamp(max=math.pi / 4).cos()
        least = math.sqrt(2) * math.log(2)
        move_towards(cast(Tensor, self.scale), scale.clamp(least, 1000.0), 1.0, count > 0)


class CurricularFaceLoss(SimilarityLoss):
    """CurricularFace: ArcFace whose hard negatives, those with c_j > P, count the more the further training has come.

    With t the running mean of the cosines to the own class::

        P = cos(theta_y + margin),    N_j = c_j if c_j <= P, else c_j (t + c_j)

    Args:
        margin: radians in [0, pi / 2), one number, one per class (C,), or a Schedule. Default: the authors' 0.5.
        momentum: weight of the current batch in t, in [0, 1]. Default: the authors' 0.01 (their alpha is 1 - momentum).
        options: as in :class:`SimilarityLoss`.

    Attributes:
        t: a buffer (), 0 at first, moved by each training forward before its use.

    Source: Huang et al., "CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition", 2020,
    arXiv:2004.00288, section 3. Departures: past pi P is as in :class:`ArcFaceLoss` ("linear"), here also where
    it is compared with c_j (their code compares with cos(theta_y + margin)); ignored rows do not enter t.

    >>> loss = CurricularFaceLoss(4, 3)
    >>> value = loss(loss.weight.detach(), torch.arange(3))
    >>> f"{loss.t.item():.2f}"
    '0.01'
    """

    t: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        margin: Margin = 0.5,
        momentum: float = 0.01,
        **options: Unpack[Options],
    ) -> None:
        functional.check_unit_interval("momentum", momentum)
        similarity = CurricularFace(checked_margin(margin, num_classes, below=torch.pi / 2), t=torch.zeros(()))
        super().__init__(similarity, in_features, num_classes, **options)
        self.momentum = momentum

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """As :meth:`SimilarityLoss.forward`; in training t is moved first."""
        if self.training:
            own, _, counts = self._own_cosines(embeddings, target)
            count, total = self._over_processes(torch.stack([counts.sum(), own.sum()]))
            move_towards(self.t, total / count, self.momentum, count > 0)
        return super().forward(embeddings, target)


class MagFaceLoss(SimilarityLoss):
    """MagFace: ArcFace whose margin grows with the embedding's length a, so that length comes to say quality.

    ::

        P = cos(theta_y + m(a)),    N_j = c_j
        m(a) = margin + (upper_margin - margin) (a - lower_norm) / (upper_norm - lower_norm)
        loss = cross entropy + norm_weight * g(a),    g(a) = 1 / a + a / upper_norm^2

    Args:
        margin: at ``lower_norm`` and below, radians in [0, pi / 2), one number, one per class (C,), or a Schedule.
            Default: the authors' 0.45.
        upper_margin: likewise at ``upper_norm`` and above. Default: the authors' 0.8.
        lower_norm, upper_norm: lengths, 0 < lower < upper. Default: the authors' 10 and 110.
        norm_weight: lambda_g >= 0, of the term that pulls lengths towards ``upper_norm``. Default: the authors' 35.
        options: as in :class:`SimilarityLoss`. ``scale=None`` is ArcFace's for ``upper_margin``.

    The gradient flows through the length. Nothing here is state.

    Source: Meng et al., "MagFace: A Universal Representation for Face Recognition and Quality Assessment", 2021,
    arXiv:2103.06627, section 3. Departures: the paper takes lengths to lie between the two bounds; outside them
    m is constant, and g goes on as its tangent below ``lower_norm`` and unchanged above ``upper_norm``, so that lengths
    return (the authors' code clamps, and leaves them there). Past pi P is as in :class:`ArcFaceLoss`, "linear" (their
    code: easy margin).

    >>> MagFaceLoss(4, 3)(20 * torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        margin: Margin = 0.45,
        upper_margin: Margin = 0.8,
        lower_norm: float = 10.0,
        upper_norm: float = 110.0,
        norm_weight: float = 35.0,
        **options: Unpack[Options],
    ) -> None:
        functional.check_number("lower_norm", lower_norm, 1e-6, math.inf)
        functional.check_number("upper_norm", upper_norm, 1e-6, math.inf)
        if lower_norm >= upper_norm:
            raise ValueError(f"lower_norm: {lower_norm} is not below upper_norm, {upper_norm}")
        functional.check_number("norm_weight", norm_weight, 0.0, math.inf)
        similarity = MagFace(
            checked_margin(margin, num_classes, below=torch.pi / 2),
            upper_margin=checked_margin(upper_margin, num_classes, below=torch.pi / 2, name="upper_margin"),
            lower_norm=lower_norm,
            upper_norm=upper_norm,
        )
        if options.get("scale") is None:
            options["scale"] = default_scale(at_end(ArcFace(similarity.upper_margin)), num_classes)
        super().__init__(similarity, in_features, num_classes, **options)
        self.norm_weight = norm_weight

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """As :meth:`SimilarityLoss.forward`, with the term in the length."""
        functional.check_embeddings(embeddings, self.weight)
        # Both add to the gradient: in half precision, where one may have no room, inf - inf would be NaN.
        embeddings = embeddings.to(functional.compute_dtype(embeddings, self.weight))
        value = super().forward(embeddings, target)
        if self.norm_weight == 0:
            return value
        assert isinstance(self._similarity, MagFace)
        penalty = self._similarity.penalty(functional.norms(embeddings)).to(value.dtype)
        return value + self.norm_weight * functional.reduce(
            penalty, target, class_weight=self.class_weight, reduction=self.reduction, ignore_index=self.ignore_index
        )


class AdaFaceLoss(SimilarityLoss):
    """AdaFace: the longer an embedding, the better its image, the more its margin is one of cosine than of angle.

    With z = clamp(concentration * (a - mean) / std, -1, 1) for the length a, a constant in the backward pass, and mean
    and std running statistics of the lengths::

        P = cos(theta_y - margin z) - margin (1 + z),    N_j = c_j

    z = -1 is ArcFace, z = 0 is CosFace.

    Args:
        margin: in [0, pi / 2), one number, one per class (C,), or a Schedule. Default: the authors' 0.4.
        concentration: h > 0. Default: the authors' 0.333.
        momentum: weight of the current batch in mean and std, in [0, 1]. Default: the authors' 0.01 (their alpha is
            1 - momentum).
        options: as in :class:`SimilarityLoss`. ``scale=None`` is CosFace's.

    Attributes:
        norm_mean, norm_std: buffers (), 20 and 100 at first as in the authors' code, moved by each training forward
            before their use. Lengths are clamped to [0.001, 100] first.

    Source: Kim et al., "AdaFace: Quality Adaptive Margin for Face Recognition", 2022, arXiv:2204.00964, section 3.
    theta_y - margin z is held in [0, pi], as in the authors' code (which stops 0.001 short of the ends, and keeps
    every cosine 0.001 from +-1). A batch of one row moves the mean alone.

    >>> loss = AdaFaceLoss(4, 3)
    >>> value = loss(torch.randn(2, 4), torch.tensor([0, 2]))
    >>> bool(loss.norm_mean < 20), bool(loss.norm_std < 100)
    (True, True)
    """

    norm_mean: Tensor
    norm_std: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        margin: Margin = 0.4,
        concentration: float = 0.333,
        momentum: float = 0.01,
        **options: Unpack[Options],
    ) -> None:
        functional.check_number("concentration", concentration, 0.0, math.inf)
        functional.check_unit_interval("momentum", momentum)
        margin = checked_margin(margin, num_classes, below=torch.pi / 2)
        if options.get("scale") is None:
            options["scale"] = default_scale(at_end(CosFace(margin)), num_classes)
        similarity = AdaFace(margin, concentration, torch.tensor(20.0), torch.tensor(100.0))
        super().__init__(similarity, in_features, num_classes, **options)
        self.momentum = momentum

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """As :meth:`SimilarityLoss.forward`; in training the lengths' mean and deviation are moved first."""
        if self.training:
            _, norm, counts = self._own_cosines(embeddings, target)
            # Less the running mean, the same in all processes: the variance loses fewer digits.
            away = torch.where(counts, clipped_norm(norm) - self.norm_mean, 0)
            count, total, squares = self._over_processes(torch.stack([counts.sum(), away.sum(), away.square().sum()]))
            variance = (squares - total.square() / count) / (count - 1)
            mean = self.norm_mean + total / count
            move_towards(self.norm_std, variance.clamp(min=0).sqrt(), self.momentum, count > 1)
            move_towards(self.norm_mean, mean, self.momentum, count > 0)
        return super().forward(embeddings, target)


class ElasticFaceLoss(SimilarityLoss):
    """ElasticFace: ArcFace or CosFace with a margin drawn anew for every row and step, from Normal(margin, std).

    Args:
        kind: "arc" or "cos", whose margin it is.
        margin: the mean, radians in [0, pi / 2) for "arc", in [0, 2) for "cos": one number, one per class (C,), or a
            Schedule. Default: the authors' 0.5 for "arc"; theirs for "cos" is 0.35.
        std: >= 0. Default: the authors' 0.0125.
        generator: the random numbers' source; None is PyTorch's own. It is not part of ``state_dict``.
        options: as in :class:`SimilarityLoss`. ``scale=None`` is that of ArcFace or CosFace.

    In evaluation the margin is its mean: nothing is drawn.

    Source: Boutros et al., "ElasticFace: Elastic Margin Loss for Deep Face Recognition", 2022, arXiv:2109.09416,
    section 3. The variant that sorts the margins by difficulty (ElasticFace+) is not here. Past pi "arc" is as
    :class:`ArcFaceLoss`, "linear".

    >>> loss = ElasticFaceLoss(4, 3, generator=torch.Generator().manual_seed(0))
    >>> x, y = torch.randn(2, 4), torch.tensor([0, 2])
    >>> bool(loss(x, y) == loss(x, y)), bool(loss.eval()(x, y) == loss(x, y))
    (False, True)
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        kind: Literal["arc", "cos"] = "arc",
        margin: Margin = 0.5,
        std: float = 0.0125,
        generator: torch.Generator | None = None,
        **options: Unpack[Options],
    ) -> None:
        functional.check_choice("kind", kind, ("arc", "cos"))
        functional.check_number("std", std, 0.0, math.inf)
        if kind == "arc":
            similarity: Similarity = ElasticArcFace(checked_margin(margin, num_classes, below=torch.pi / 2))
        else:
            similarity = ElasticCosFace(checked_margin(margin, num_classes, below=2.0))
        super().__init__(similarity, in_features, num_classes, **options)
        self.kind = kind
        self.std = std
        self.generator = generator

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """As :meth:`SimilarityLoss.forward`; in training each row's margin is drawn."""
        if not self.training or self.std == 0:
            return super().forward(embeddings, target)
        functional.check_embeddings(embeddings, self.weight)
        device = embeddings.device if self.generator is None else self.generator.device
        deviation = self.std * torch.randn(len(embeddings), generator=self.generator, device=device)
        deviation = self._same_everywhere(deviation.to(embeddings.device, non_blocking=True))
        similarity = replace(self.similarity, deviation=deviation)  # type: ignore[type-var]
        return self._loss(embeddings, target, similarity)
