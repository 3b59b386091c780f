"""The losses as modules: each owns the class weights and says which similarity it uses.

State, where a loss has any (a scheduled margin, a running mean, ...), is in buffers: each training forward moves it and
evaluation does not. Statistics of a batch are summed over all processes of ``torch.distributed``, in one small
all-reduce, so every process must call the loss equally often.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Literal, Self, TypedDict, Unpack, cast, get_args

import torch
from torch import Tensor, distributed, nn

from cssoftmax import functional
from cssoftmax.engine import IMPLEMENTATIONS
from cssoftmax.functional import Implementation, Precision, Reduction
from cssoftmax.schedule import Schedule
from cssoftmax.similarity import (
    AdaFace,
    ArcFace,
    CosFace,
    CSSoftmax,
    CurricularFace,
    ElasticArcFace,
    ElasticCosFace,
    MagFace,
    PastPi,
    Similarity,
    SOSoftmax,
    SphereFace,
    clipped_norm,
    default_scale,
)

Margin = float | Tensor | Schedule

# SphereFace's, of the authors' code: 1000 / (1 + 0.12 step), not below 5.
ANNEALING = Schedule(1000.0, 5.0, 1658, "inverse")

# Backward passes with unmoved class weights after which the user is told.
PATIENCE = 100


class Options(TypedDict, total=False):
    """What every loss of the family takes besides its own factors; see :class:`SimilarityLoss`."""

    scale: float | Tensor | Schedule | None
    reduction: Reduction
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    implementation: Implementation
    precision: Precision
    device: torch.device | str | None
    dtype: torch.dtype | None


class SimilarityLoss(nn.Module):
    """Class weights and one :class:`~cssoftmax.similarity.Similarity`, called like ``nn.CrossEntropyLoss``.

    The losses below are this module with a similarity filled in; use it directly for a similarity of your own.

    Args:
        similarity: maps cosines to logits. Its tensors become buffers of this module; a
            :class:`~cssoftmax.Schedule` in place of one of its numbers becomes a buffer that moves.
        in_features: embedding size D.
        num_classes: C.
        scale: > 0: a number, a tensor (), which becomes a buffer, or a Schedule; None picks it by
            :func:`~cssoftmax.similarity.default_scale`, for the margin at its schedule's end.
        reduction, ignore_index, label_smoothing: as in ``nn.CrossEntropyLoss``.
        weight: rescaling of each class's loss, (C,), as in ``nn.CrossEntropyLoss``. Not the class weights.
        implementation, precision: as in :func:`cssoftmax.functional.cs_softmax_loss`; "auto" and "float32" suit most.
        sub_centers: K class weights for each class, whose cosine is the largest of the K.
        device, dtype: of the class weights.

    Attributes:
        weight: the class weights, a parameter (C, D), like ``nn.Linear``, or (C * K, D). They start as random
            directions of about unit length. **Give them to the optimizer**; if they do not move for 100 steps, the loss
            warns once.
        similarity: the similarity in use.
        scale: the scale factor s, a buffer () where it changes in training.
        step: training forwards so far, a buffer (), if anything is scheduled.

    >>> from cssoftmax.similarity import CosFace
    >>> loss = SimilarityLoss(CosFace(0.1), 4, 3)
    >>> loss(torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    class_weight: Tensor | None
    bias: Tensor | None
    scale: float | Tensor
    step: Tensor

    def __init__(
        self,
        similarity: Similarity,
        in_features: int,
        num_classes: int,
        *,
        scale: float | Tensor | Schedule | None = None,
        reduction: Reduction = "mean",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        implementation: Implementation = "auto",
        precision: Precision = "float32",
        sub_centers: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(in_features, num_classes)
        functional.check_class_weight(weight, num_classes)
        functional.check_unit_interval("label_smoothing", label_smoothing)
        functional.check_choice("reduction", reduction, ("mean", "sum", "none"))
        functional.check_choice("implementation", implementation, tuple(IMPLEMENTATIONS))
        functional.check_sub_centers(sub_centers, implementation)
        if scale is None:
            scale = default_scale(_at_end(similarity), num_classes)
        for number in _numbers(scale):
            functional.check_scale(number)
        self.in_features = in_features
        self.num_classes = num_classes
        self.sub_centers = sub_centers
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        functional.check_choice("precision", precision, ("float32", "bf16"))
        self.implementation: Implementation = implementation
        self.precision: Precision = precision
        self._similarity = similarity
        self._schedules: dict[str, Schedule] = {}
        # What is a tensor or moves lives here, not in the similarity, so that .to(device) and state_dict take it along.
        self._state = [name for name, value in vars(similarity).items() if self._hold(name, value, device)]
        if not self._hold("scale", scale, device):
            self.scale = scale  # type: ignore[assignment]
        if self._schedules:
            self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("class_weight", None if weight is None else weight.detach().to(device, copy=True))
        self.weight = nn.Parameter(torch.empty(num_classes * sub_centers, in_features, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()
        self._watch()

    def _hold(self, name: str, value: object, device: torch.device | str | None) -> bool:
        """Whether the factor is a tensor or moves, and so has become a buffer."""
        if isinstance(value, Schedule):
            self._schedules[name] = value
            value = value.at(torch.zeros((), dtype=torch.int64))
        if isinstance(value, Tensor):
            self.register_buffer(name, value.detach().to(device, copy=True))
        return isinstance(value, Tensor)

    def reset_parameters(self) -> None:
        """Draws new class weights: normal, of expected length one."""
        nn.init.normal_(self.weight, std=self.in_features**-0.5)

    @property
    def similarity(self) -> Similarity:
        if not self._state:
            return self._similarity
        # Copies: a buffer that moves must not move under a backward pass that is yet to come.
        return replace(self._similarity, **{name: getattr(self, name).clone() for name in self._state})  # type: ignore[type-var]

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """A loss on the weights of an existing ``nn.Linear``, shared, not copied; its bias plays no part in a cosine.

        >>> linear = nn.Linear(8, 3)
        >>> CSSoftmaxLoss.from_linear(linear, margin=0.1).weight is linear.weight
        True
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear: an nn.Linear is needed, got {type(linear).__name__}")
        weight = linear.weight
        loss = cls(linear.in_features, linear.out_features, device=weight.device, dtype=weight.dtype, **options)  # type: ignore[arg-type]
        if loss.weight.shape != weight.shape:
            needed = tuple(loss.weight.shape)
            raise ValueError(f"linear: its weights are {tuple(weight.shape)}, {cls.__name__} needs {needed}")
        loss.weight = weight  # type: ignore[assignment]
        if loss.bias is not None:
            loss.bias = linear.bias
        loss._watch()
        return loss

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """The loss of ``embeddings`` (N, D) with labels ``target`` (N,): a scalar, or (N,) with reduction="none"."""
        return self._loss(embeddings, target, self.similarity)

    def _loss(self, embeddings: Tensor, target: Tensor, similarity: Similarity) -> Tensor:
        """The loss, after which what is scheduled moves."""
        scale = self.scale.clone() if isinstance(self.scale, Tensor) else self.scale
        value = self._similarity_loss(embeddings, target, similarity, scale)
        if self.training and self._schedules:
            self.step.add_(1)
            for name, schedule in self._schedules.items():
                getattr(self, name).copy_(schedule.at(self.step))
        return value

    # What meets the class weights, and what is summed over processes: where the sharded head differs.

    def _similarity_loss(
        self, embeddings: Tensor, target: Tensor, similarity: Similarity, scale: float | Tensor
    ) -> Tensor:
        return functional.similarity_loss(
            embeddings,
            self.weight,
            target,
            similarity,
            scale=scale,
            bias=self.bias,
            class_weight=self.class_weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            implementation=self.implementation,
            precision=self.precision,
            sub_centers=self.sub_centers,
        )

    def _own_cosines(self, embeddings: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return functional.own_cosines(embeddings, self.weight, target, self.ignore_index)

    def _log_others(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """log sum_{j != y} exp(scale c_j), (N,)."""
        index = target.clamp(0, self.num_classes - 1)[:, None]
        return self.logits(embeddings).scatter(1, index, -math.inf).logsumexp(1)

    def _over_processes(self, sums: Tensor) -> Tensor:
        return _over_processes(sums)

    def _same_everywhere(self, random: Tensor) -> Tensor:
        """Random numbers for the rows, (N,), as all processes that work on these rows must have them."""
        return random

    def logits(self, embeddings: Tensor) -> Tensor:
        """scale * c for every class, no margin, (N, C): for inference, where its argmax is the class."""
        return functional.logits(embeddings, self.weight, self.similarity, self.scale, self.bias, self.sub_centers)

    def classify(self, embeddings: Tensor) -> Tensor:
        """The class of the largest logit of each row, (N,)."""
        with torch.no_grad():
            return self.logits(embeddings).argmax(1)

    def similarities(self, embeddings: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """P of each row's own class, (N,), and N of the others, (N, C) with -inf in the target's column; not scaled."""
        return functional.similarities(embeddings, self.weight, target, self.similarity, self.bias, self.sub_centers)

    def extra_repr(self) -> str:
        settings = {
            name: "per class" if isinstance(value, Tensor) else value
            for name, value in vars(self._similarity).items()
            if name not in ("normalized", "deviation") and not (isinstance(value, Tensor) and value.ndim == 0)
        }
        if self.sub_centers > 1:
            settings["sub_centers"] = self.sub_centers
        shown = "".join(f", {name}={value}" for name, value in settings.items())
        if self._similarity.normalized != "none":
            shown += f", scale={self._schedules['scale'] if 'scale' in self._schedules else f'{float(self.scale):.4g}'}"
        return f"in_features={self.in_features}, num_classes={self.num_classes}{shown}"

    def _watch(self) -> None:
        """Warns once if the class weights receive gradients but never move: they are not in the optimizer."""
        # The weight holds the hook where no garbage collector sees it: the hook must not hold the loss.
        steps, before, kind = 0, None, type(self).__name__

        def here(weight: Tensor) -> Tensor:
            """Of a sharded loss, what this process has."""
            rows: Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
            return rows

        def some(weight: Tensor) -> Tensor:
            """A thousand classes will do: a copy of all would cost as much memory as the class weights."""
            rows = here(weight.detach())
            return rows[:: max(1, -(-len(rows) // 1000))]

        def after_backward(weight: Tensor) -> None:
            nonlocal steps, before
            steps += 1
            if steps == 1:
                before = some(weight).clone()
            elif steps == PATIENCE + 1:
                handle.remove()
                moved = before is None or not torch.equal(before, some(weight))
                if not moved and weight.grad is not None and here(weight.grad).any():
                    warnings.warn(
                        f"{kind}: its class weights received gradients in {PATIENCE} backward passes "
                        "and did not change. Are they in the optimizer? Give it cssoftmax.param_groups(network, loss, "
                        "lr=...), or network.parameters() and loss.parameters().",
                        stacklevel=2,
                    )
                before = None

        handle = self.weight.register_post_accumulate_grad_hook(after_backward)  # type: ignore[no-untyped-call]


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
            perfect embedding is given probability 0.999 (:func:`~cssoftmax.similarity.default_scale`).
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
        margin: Margin = 0.1,
        scale: float | Schedule | None = None,
        weight_update: float = 0.25,
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
            CSSoftmax(_margin(margin, num_classes, below=1.0), weight_update, detach_update),
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
        super().__init__(CosFace(_margin(margin, num_classes, below=2.0)), in_features, num_classes, **options)


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
        similarity = ArcFace(_margin(margin, num_classes, below=torch.pi / 2), past_pi)
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
        similarity = ArcFace(_margin(margin, num_classes, below=torch.pi / 2), past_pi)
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
        for number in _numbers(annealing):
            functional.check_number("annealing", number, 0.0, math.inf)
        if options.get("scale") is None:
            options["scale"] = 1.0
        similarity = SphereFace(
            _margin(margin, num_classes, below=math.inf, least=1.0), cast(float | Tensor, annealing)
        )
        super().__init__(similarity, in_features, num_classes, **options)


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
        _check_sizes(in_features, num_classes)
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
        _move(cast(Tensor, self.scale), scale.clamp(least, 1000.0), 1.0, count > 0)


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
        similarity = CurricularFace(_margin(margin, num_classes, below=torch.pi / 2), t=torch.zeros(()))
        super().__init__(similarity, in_features, num_classes, **options)
        self.momentum = momentum

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """As :meth:`SimilarityLoss.forward`; in training t is moved first."""
        if self.training:
            own, _, counts = self._own_cosines(embeddings, target)
            count, total = self._over_processes(torch.stack([counts.sum(), own.sum()]))
            _move(self.t, total / count, self.momentum, count > 0)
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
            _margin(margin, num_classes, below=torch.pi / 2),
            upper_margin=_margin(upper_margin, num_classes, below=torch.pi / 2, name="upper_margin"),
            lower_norm=lower_norm,
            upper_norm=upper_norm,
        )
        if options.get("scale") is None:
            options["scale"] = default_scale(_at_end(ArcFace(similarity.upper_margin)), num_classes)
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
        margin = _margin(margin, num_classes, below=torch.pi / 2)
        if options.get("scale") is None:
            options["scale"] = default_scale(_at_end(CosFace(margin)), num_classes)
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
            _move(self.norm_std, variance.clamp(min=0).sqrt(), self.momentum, count > 1)
            _move(self.norm_mean, mean, self.momentum, count > 0)
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
            similarity: Similarity = ElasticArcFace(_margin(margin, num_classes, below=torch.pi / 2))
        else:
            similarity = ElasticCosFace(_margin(margin, num_classes, below=2.0))
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
        for number in _numbers(relaxation):
            if not 0 < number <= 0.5:
                raise ValueError(f"relaxation: {number} is outside (0, 0.5]")
        margin: Margin
        if isinstance(relaxation, Schedule):
            margin = replace(relaxation, start=1 - 2 * relaxation.start, end=1 - 2 * relaxation.end)
        else:
            margin = 1 - 2 * relaxation
        super().__init__(CSSoftmax(_margin(margin, num_classes, below=1.0), 1.0), in_features, num_classes, **options)
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
        super().__init__(SOSoftmax(_margin(margin, num_classes, below=1.0)), in_features, num_classes, **options)


class CenterLoss(nn.Module):
    """Center loss: half the squared distance of each embedding to its class's center; a term to add to another loss.

    Centers are a buffer, not a parameter: no optimizer moves them. Each training forward moves them, after the loss was
    computed, by the paper's rule, with n_j the number of rows of class j::

        center_j <- center_j - alpha * sum_{i: y_i = j} (center_j - x_i) / (1 + n_j)

    Args:
        in_features: embedding size D.
        num_classes: C.
        alpha: in [0, 1]. Default: the authors' 0.5.
        reduction: "mean", "sum" (the paper's) or "none", over rows.
        ignore_index: rows with this label have no loss and move no center.
        device, dtype: of the centers.

    Attributes:
        centers: (C, D), zero at first (the paper does not say). With several processes their rows count together, in
            one all-reduce of (C, D + 1) numbers.

    Source: Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016, equations 2
    to 4. The authors' weight in the sum with softmax is 0.003 on faces.

    >>> from cssoftmax import CenterLoss, CSSoftmaxLoss
    >>> loss, center = CSSoftmaxLoss(8, 3), CenterLoss(8, 3)
    >>> x, y = torch.randn(4, 8, requires_grad=True), torch.tensor([0, 1, 2, 0])
    >>> (loss(x, y) + 0.01 * center(x, y)).backward()
    """

    centers: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        alpha: float = 0.5,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(in_features, num_classes)
        functional.check_unit_interval("alpha", alpha)
        functional.check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.alpha = alpha
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index
        self.register_buffer("centers", torch.zeros(num_classes, in_features, device=device, dtype=dtype))

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """The loss of ``embeddings`` (N, D) with labels ``target`` (N,): a scalar, or (N,) with reduction="none".

        float32, or float64 where an input is, whatever autocast says.
        """
        functional.check_embeddings(embeddings, self.centers)
        functional.check_target(embeddings, target, len(self.centers), self.ignore_index)
        if self.reduction == "mean" and len(embeddings) == 0:
            raise ValueError('embeddings: an empty batch, (0, D), has no mean loss; skip it, or pass reduction="sum"')
        dtype = functional.compute_dtype(embeddings, self.centers)
        index = target.clamp(0, len(self.centers) - 1)
        with torch.autocast(embeddings.device.type, enabled=False):
            away = embeddings.to(dtype) - self.centers.to(dtype)[index]
            value = functional.reduce(
                away.square().sum(1) / 2,
                target,
                class_weight=None,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
            )
            if self.training:
                self._move_centers(away.detach(), target, index)
        return value

    def _move_centers(self, away: Tensor, target: Tensor, index: Tensor) -> None:
        counts = (target != self.ignore_index) & away.isfinite().all(1)
        rows = torch.cat([torch.where(counts[:, None], away, 0), counts[:, None].to(away)], 1)
        sums = _over_processes(rows.new_zeros(len(self.centers), rows.shape[1]).index_add_(0, index, rows))
        self.centers.add_((self.alpha * sums[:, :-1] / (1 + sums[:, -1:])).to(self.centers.dtype))

    def extra_repr(self) -> str:
        num_classes, in_features = self.centers.shape
        return f"in_features={in_features}, num_classes={num_classes}, alpha={self.alpha}"


LOSSES: dict[str, Callable[..., SimilarityLoss]] = {
    "cs-softmax": CSSoftmaxLoss,
    "softmax": SoftmaxLoss,
    "normface": NormFaceLoss,
    "cosface": CosFaceLoss,
    "arcface": ArcFaceLoss,
    "subcenter-arcface": SubCenterArcFaceLoss,
    "sphereface": SphereFaceLoss,
    "adacos": AdaCosLoss,
    "curricularface": CurricularFaceLoss,
    "magface": MagFaceLoss,
    "adaface": AdaFaceLoss,
    "elasticface": ElasticFaceLoss,
    "circle": CircleLoss,
    "so-softmax": SOSoftmaxLoss,
}


def build(name: str, in_features: int, num_classes: int, **settings: Any) -> SimilarityLoss:
    """The loss of that name, as the command line spells it, with its own settings (margin, scale, ...).

    So that settings can be read from JSON, a mapping stands for a :class:`~cssoftmax.Schedule` with these arguments and
    a list for a tensor.

    Raises:
        ValueError: no loss of that name, or it has no such setting (the message lists those there are), or not with
            such a value.

    >>> build("cosface", 8, 3, margin=0.2)
    CosFaceLoss(in_features=8, num_classes=3, margin=0.2, scale=9.5)
    """
    if name not in LOSSES:
        raise ValueError(f"loss: {name!r} is not one of {', '.join(LOSSES)}")
    allowed = _factors(LOSSES[name])
    for key, value in settings.items():
        if key not in allowed:
            raise ValueError(f"{key}: {name} has no such setting; it has {', '.join(sorted(allowed))}")
        if isinstance(value, Mapping):
            try:
                settings[key] = Schedule(**value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{key}: {dict(value)} is no schedule: {error}") from None
        elif isinstance(value, list):
            settings[key] = torch.tensor(value, dtype=torch.float32)
    try:
        return LOSSES[name](in_features, num_classes, **settings)
    except TypeError as error:
        raise ValueError(str(error)) from error


def settings_of(loss: SimilarityLoss) -> dict[str, Any]:
    """The loss's own settings, defaults filled in, as :func:`build` takes them, ready for JSON.

    >>> settings_of(ElasticFaceLoss(8, 3, kind="cos", scale=20.0))
    {'kind': 'cos', 'label_smoothing': 0.0, 'margin': 0.5, 'scale': 20.0, 'std': 0.0125}
    """
    known = vars(loss) | vars(loss._similarity) | loss._schedules | {"scale": loss._schedules.get("scale", loss.scale)}
    settings = {}
    for name in sorted(_factors(type(loss))):
        value = known[name]
        if isinstance(value, Schedule):
            value = asdict(value)
        settings[name] = value.tolist() if isinstance(value, Tensor) else value
    return settings


def _factors(loss: Callable[..., SimilarityLoss]) -> set[str]:
    """What sets a loss apart, without what is the same for all or cannot be written as JSON."""
    own = set(inspect.signature(loss).parameters)
    if loss not in (SoftmaxLoss, AdaCosLoss):
        own |= {"scale"}
    shared = Options.__annotations__.keys() - {"scale"}
    return own - shared - {"in_features", "num_classes", "bias", "generator", "options"} | {"label_smoothing"}


def _check_sizes(in_features: int, num_classes: int) -> None:
    for name, value in (("in_features", in_features), ("num_classes", num_classes)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: an integer >= 1 is needed, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1")


def _numbers(factor: Any) -> tuple[Any, ...]:
    """The two ends of a schedule, or the factor itself: what has to be in range."""
    return (factor.start, factor.end) if isinstance(factor, Schedule) else (factor,)


def _margin(margin: Margin, num_classes: int, **bounds: Any) -> float | Tensor:
    """The margin, checked. A schedule goes into the similarity as it is: the module replaces it by its buffer."""
    for number in _numbers(margin):
        functional.check_margin(number, num_classes, **bounds)
    return cast(float | Tensor, margin)


def _at_end(similarity: Similarity) -> Similarity:
    """The similarity as it is when all its schedules are through."""
    ends = {name: value.end for name, value in vars(similarity).items() if isinstance(value, Schedule)}
    return replace(similarity, **ends) if ends else similarity  # type: ignore[type-var]


def _over_processes(sums: Tensor) -> Tensor:
    """Summed over the processes of ``torch.distributed``, if it runs."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(sums)
    return sums


def _move(state: Tensor, value: Tensor, share: float, where: Tensor) -> None:
    """Moves a buffer ``share`` of the way to ``value``, if ``where`` and the value is finite; waits for no device."""
    moved = state + share * (value.to(state) - state)
    state.copy_(torch.where(where & value.isfinite(), moved, state))
