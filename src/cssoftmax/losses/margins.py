"""Losses whose margin is the same for every sample, and the plain softmax: each says which similarity it uses."""

import math
from dataclasses import replace
from typing import Unpack, cast, get_args

import torch
from torch import Tensor, nn

from cssoftmax import functional
from cssoftmax.functional import Implementation, Precision, Reduction
from cssoftmax.losses.base import Margin, Options, SimilarityLoss, checked_margin, ends
from cssoftmax.schedule import Schedule
from cssoftmax.similarity import ArcFace, CosFace, CSSoftmax, PastPi, SOSoftmax, SphereFace

# SphereFace's, of the authors' code: 1000 / (1 + 0.12 step), not below 5.
ANNEALING = Schedule(1000.0, 5.0, 1658, "inverse")


class CSSoftmaxLoss(SimilarityLoss):
    """CS-Softmax: cross entropy on positive and negative cosine similarities.

    With c the cosines between the embeddings and the class weights, r = (1 - margin) / 2 of the row's class y, and
    u = ``weight_update``::

        P = max(1 + r - c_y, 0)^u (c_y - (1 - r))        positive similarity
        N_j = max(c_j + r, 0)^u (c_j - r)                negative similarity, j != y
        loss = -log( exp(s P) / (exp(s P) + sum_j exp(s N_j)) )

    The factors in front, the update weights, are constants in the backward pass (``detach_update``). At u = 0 this is
    CosFace with the same margin; at u = 1 the class-level Circle loss with relaxation r.

    Args:
        in_features: embedding size D.
        num_classes: C.
        margin: margin factor in [0, 1), one number, one per class (C,), or a :class:`~cssoftmax.Schedule`: at u = 0, by
            how much c_y must pass c_j.
        scale: scale factor s > 0, or a Schedule; None picks it from the number of classes, the margin and u, so that a
            perfect embedding is given probability 1 - C^(-3/2) (:func:`~cssoftmax.similarity.default_scale`).
        weight_update: weight update factor u in [0, 1]: how much more a pair far from its goal pulls than one near it.
        detach_update: False differentiates through the update weights (SO-Softmax at u = 1).
        reduction, weight, ignore_index, label_smoothing, implementation, precision, device, dtype: as in
            :class:`SimilarityLoss`.

    Raises:
        TypeError, ValueError: an argument of wrong type or out of range; the message names it.

    Source: Zhang Qiang et al., "CS-Softmax: A Cosine Similarity-Based Softmax Loss Function", Journal of Computer
    Research and Development 59(4), 2022, doi:10.7544/issn1000-1239.20200879, in the reading of docs/theory.md.

    >>> network = nn.Linear(20, 8)
    >>> loss = CSSoftmaxLoss(in_features=8, num_classes=10)
    >>> value = loss(network(torch.randn(4, 20)), torch.tensor([1, 2, 3, 4]))
    >>> value.backward()
    >>> loss.logits(network(torch.randn(4, 20))).argmax(1).shape
    torch.Size([4])

    See also: :class:`CosFaceLoss`, :class:`CircleLoss`, :class:`SOSoftmaxLoss`.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        margin: Margin = 0.15,
        scale: float | Schedule | None = None,
        weight_update: float = 0.125,
        detach_update: bool = True,
        reduction: Reduction = "mean",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        implementation: Implementation = "auto",
        precision: Precision = "float32",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        functional.check_unit_interval("weight_update", weight_update)
        super().__init__(
            CSSoftmax(checked_margin(margin, num_classes, below=1.0), weight_update, detach_update),
            in_features,
            num_classes,
            scale=scale,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            implementation=implementation,
            precision=precision,
            device=device,
            dtype=dtype,
        )


class SoftmaxLoss(SimilarityLoss):
    """The plain softmax loss: ``nn.Linear(in_features, num_classes)`` and ``nn.CrossEntropyLoss`` in one module.

    Options as in :class:`SimilarityLoss`, without a scale; ``bias`` as in ``nn.Linear``.

    >>> linear = nn.Linear(4, 3)
    >>> x, y = torch.randn(2, 4), torch.tensor([0, 2])
    >>> bool(torch.isclose(SoftmaxLoss.from_linear(linear)(x, y), nn.functional.cross_entropy(linear(x), y)))
    True
    """

    def __init__(self, in_features: int, num_classes: int, *, bias: bool = True, **options: Unpack[Options]) -> None:
        if "scale" in options:
            raise TypeError("scale: the plain softmax has none; NormFaceLoss is the softmax of scaled cosines")
        options["scale"] = 1.0
        super().__init__(CosFace(normalized="none"), in_features, num_classes, **options)
        if bias:
            self.bias = nn.Parameter(self.weight.new_empty(num_classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights and biases as ``nn.Linear`` does."""
        bound = self.in_features**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)


class NormFaceLoss(SimilarityLoss):
    """NormFace: cross entropy of scale * cosine, no margin. Options as in :class:`SimilarityLoss`.

    Source: Wang et al., "NormFace: L2 Hypersphere Embedding for Face Verification", 2017, arXiv:1704.06369,
    equation 10. The scale is a constant here, not learned.

    >>> NormFaceLoss(4, 3)(torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    def __init__(self, in_features: int, num_classes: int, **options: Unpack[Options]) -> None:
        super().__init__(CosFace(), in_features, num_classes, **options)


class CosFaceLoss(SimilarityLoss):
    """CosFace (AM-Softmax): the margin is taken off the own class's cosine, P = c_y - margin, N = c_j.

    Args:
        margin: in [0, 2), one number, one per class (C,), or a Schedule. Default: the authors' 0.35.
        options: as in :class:`SimilarityLoss`. The authors' scale for faces is 64; the default here depends on C.

    Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", 2018, arXiv:1801.09414,
    equation 4.

    >>> CosFaceLoss(4, 3, margin=0.2)(torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    def __init__(
        self, in_features: int, num_classes: int, *, margin: Margin = 0.35, **options: Unpack[Options]
    ) -> None:
        super().__init__(CosFace(checked_margin(margin, num_classes, below=2.0)), in_features, num_classes, **options)


class ArcFaceLoss(SimilarityLoss):
    """ArcFace: the margin is added to the angle of the own class, P = cos(theta_y + margin), N = c_j.

    Args:
        margin: radians in [0, pi / 2), one number, one per class (C,), or a Schedule. Default: the authors' 0.5.
        past_pi: what P is where theta_y + margin would pass pi and the penalty turn into a bonus. "linear": P = c_y -
            margin * sin(margin), as in the authors' first code and in pytorch-metric-learning; P falls by a step there
            unless the margin is small. "easy_margin": P = c_y wherever theta_y > pi / 2, a switch of the same code.
            "none": cos(theta_y + margin) all the same, as in the authors' later code.
        options: as in :class:`SimilarityLoss`. The authors' scale for faces is 64; the default here depends on C.

    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", 2019, arXiv:1801.07698,
    equation 3, which says nothing about pi.

    >>> ArcFaceLoss(4, 3, margin=0.2)(torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        margin: Margin = 0.5,
        past_pi: PastPi = "linear",
        **options: Unpack[Options],
    ) -> None:
        functional.check_choice("past_pi", past_pi, get_args(PastPi))
        similarity = ArcFace(checked_margin(margin, num_classes, below=torch.pi / 2), past_pi)
        super().__init__(similarity, in_features, num_classes, **options)


class SubCenterArcFaceLoss(SimilarityLoss):
    """Sub-center ArcFace: K class weights a class; its cosine is the largest of the K, then as :class:`ArcFaceLoss`.

    Meant for noisy labels and classes of several kinds: the wrongly labelled gather around sub-centers of their own.

    Args:
        margin, past_pi: as in :class:`ArcFaceLoss`.
        sub_centers: K >= 1; 1 is ArcFace. Default: the authors' 3.
        options: as in :class:`SimilarityLoss`. With K > 1, ``implementation="auto"`` runs the eager engine: the others
            hold no (N, C * K) cosines to take the largest from, and naming one is an error.

    ``weight`` is (C * K, D), the K of a class one after the other.

    Source: Deng et al., "Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy Web Faces", ECCV 2020,
    section 3. Among equal cosines one sub-center, not all, gets the gradient.

    >>> loss = SubCenterArcFaceLoss(4, 3, sub_centers=2)
    >>> loss(torch.randn(2, 4), torch.tensor([0, 2])).shape, loss.weight.shape
    (torch.Size([]), torch.Size([6, 4]))
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        margin: Margin = 0.5,
        sub_centers: int = 3,
        past_pi: PastPi = "linear",
        **options: Unpack[Options],
    ) -> None:
        functional.check_choice("past_pi", past_pi, get_args(PastPi))
        similarity = ArcFace(checked_margin(margin, num_classes, below=torch.pi / 2), past_pi)
        super().__init__(similarity, in_features, num_classes, sub_centers=sub_centers, **options)

    def dominant_centers(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """The sub-center of each class that is nearest to most of its embeddings, (C, D): what the paper keeps.

        The first one for a class without embeddings.

        >>> loss = SubCenterArcFaceLoss(2, 1, sub_centers=2)
        >>> loss.weight.data = torch.eye(2)
        >>> loss.dominant_centers(torch.tensor([[0.1, 1.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 0]))
        tensor([[0., 1.]])
        """
        functional.check_embeddings(embeddings, self.weight)
        functional.check_target(embeddings, target, self.num_classes, self.ignore_index)
        with torch.no_grad():
            cosines = functional.logits(embeddings, self.weight, self.similarity, 1.0, None)
            index = target.clamp(0, self.num_classes - 1)
            nearest = cosines.reshape(len(index), -1, self.sub_centers)[torch.arange(len(index)), index].argmax(1)
            counts = torch.zeros(len(self.weight), dtype=torch.int64, device=index.device)
            counts.index_add_(0, index * self.sub_centers + nearest, (target != self.ignore_index).long())
            dominant = counts.view(-1, self.sub_centers).argmax(1)
            return self.weight[torch.arange(self.num_classes, device=dominant.device) * self.sub_centers + dominant]


class SphereFaceLoss(SimilarityLoss):
    """SphereFace (A-Softmax): the angle to the own class is multiplied by the margin; embeddings keep their length.

    With |x| the embedding's length, theta_j its angle to class j, k = floor(margin * theta_y / pi)::

        psi = (-1)^k cos(margin * theta_y) - 2 k
        P = |x| (lambda cos(theta_y) + psi) / (1 + lambda),    N_j = |x| cos(theta_j)

    Args:
        margin: >= 1, one number, one per class (C,), or a Schedule; need not be whole. Default: the authors' 4.
        annealing: lambda >= 0, a number or a Schedule. Default: the authors' 1000 / (1 + 0.12 step), down to 5, which
            leaves psi a sixth of the weight. 0 is the paper's equation as it stands, which they could not train.
        scale: of all logits; the paper has none.
        options: as in :class:`SimilarityLoss`.

    Source: Liu et al., "SphereFace: Deep Hypersphere Embedding for Face Recognition", 2017, arXiv:1704.08063,
    equations 6 and 7; the annealing is that of the authors' code. At margin 1 P = N. A zero embedding, which has no
    angle, is treated as at margin 1.

    >>> loss = SphereFaceLoss(4, 3, margin=2)
    >>> value = loss(torch.randn(2, 4), torch.tensor([0, 2]))
    >>> f"{loss.annealing.item():.0f}"
    '893'
    """

    annealing: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        margin: Margin = 4.0,
        annealing: float | Schedule = ANNEALING,
        **options: Unpack[Options],
    ) -> None:
        for number in ends(annealing):
            functional.check_number("annealing", number, 0.0, math.inf)
        if options.get("scale") is None:
            options["scale"] = 1.0
        similarity = SphereFace(
            checked_margin(margin, num_classes, below=math.inf, least=1.0), cast(float | Tensor, annealing)
        )
        super().__init__(similarity, in_features, num_classes, **options)


class CircleLoss(SimilarityLoss):
    """Circle loss with class labels: CS-Softmax at u = 1 with relaxation r = (1 - margin) / 2.

    Args:
        relaxation: m of the paper, in (0, 0.5], or a Schedule: P's goal is 1 + m, N's is -m, and the boundary at u = 1
            is the circle (1 - c_y)^2 + c_j^2 = 2 m^2. Default: the authors' 0.25.
        options: as in :class:`SimilarityLoss`; the authors' gamma, here ``scale``, is 256 for faces.

    Source: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", 2020, arXiv:2002.10857,
    equations 5 to 8.

    >>> CircleLoss(4, 3)(torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    def __init__(
        self, in_features: int, num_classes: int, *, relaxation: float | Schedule = 0.25, **options: Unpack[Options]
    ) -> None:
        for number in ends(relaxation):
            if not 0 < number <= 0.5:
                raise ValueError(f"relaxation: {number} is outside (0, 0.5]")
        margin: Margin
        if isinstance(relaxation, Schedule):
            margin = replace(relaxation, start=1 - 2 * relaxation.start, end=1 - 2 * relaxation.end)
        else:
            margin = 1 - 2 * relaxation
        super().__init__(
            CSSoftmax(checked_margin(margin, num_classes, below=1.0), 1.0), in_features, num_classes, **options
        )
        self.relaxation = relaxation


class SOSoftmaxLoss(SimilarityLoss):
    """SO-Softmax: P = r^2 - (1 - c_y)^2, N = c_j^2 - r^2, with r = (1 - margin) / 2.

    Args:
        margin: in [0, 1), one number, one per class (C,), or a Schedule.
        options: as in :class:`SimilarityLoss`.

    Source: Zhang et al., "SO-Softmax loss for discriminable embedding learning in CNNs", Pattern Recognition 131, 2022,
    108877, with the margin stated as for :class:`CSSoftmaxLoss`.

    >>> SOSoftmaxLoss(4, 3, margin=0.2)(torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    def __init__(self, in_features: int, num_classes: int, *, margin: Margin = 0.5, **options: Unpack[Options]) -> None:
        super().__init__(SOSoftmax(checked_margin(margin, num_classes, below=1.0)), in_features, num_classes, **options)
