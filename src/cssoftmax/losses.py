"""The losses as modules: each owns the class weights and says which similarity it uses."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self, TypedDict, Unpack

import torch
from torch import Tensor, nn

from cssoftmax import functional
from cssoftmax.engine import IMPLEMENTATIONS
from cssoftmax.functional import Implementation, Reduction
from cssoftmax.similarity import ArcFace, CosFace, CSSoftmax, Similarity, SOSoftmax, default_scale

# Backward passes with unmoved class weights after which the user is told.
PATIENCE = 100


class Options(TypedDict, total=False):
    """What every loss of the family takes besides its own factors; see :class:`SimilarityLoss`."""

    scale: float | None
    reduction: Reduction
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    implementation: Implementation
    device: torch.device | str | None
    dtype: torch.dtype | None


class SimilarityLoss(nn.Module):
    """Class weights and one :class:`~cssoftmax.similarity.Similarity`, called like ``nn.CrossEntropyLoss``.

    The losses below are this module with a similarity filled in; use it directly for a similarity of your own.

    Args:
        similarity: maps cosines to logits.
        in_features: embedding size D.
        num_classes: C.
        scale: > 0; None picks it by :func:`~cssoftmax.similarity.default_scale`.
        reduction, ignore_index, label_smoothing: as in ``nn.CrossEntropyLoss``.
        weight: rescaling of each class's loss, (C,), as in ``nn.CrossEntropyLoss``. Not the class weights.
        implementation: "auto", or "eager" for plain PyTorch operations.
        device, dtype: of the class weights.

    Attributes:
        weight: the class weights, a parameter (C, D), like ``nn.Linear``. They start as random directions of about unit
            length. **Give them to the optimizer**; if they do not move for 100 steps, the loss warns once.
        similarity: the similarity in use.
        scale: the scale factor s.

    >>> from cssoftmax.similarity import CosFace
    >>> loss = SimilarityLoss(CosFace(0.1), 4, 3)
    >>> loss(torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    class_weight: Tensor | None
    margin: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        similarity: Similarity,
        in_features: int,
        num_classes: int,
        *,
        scale: float | None = None,
        reduction: Reduction = "mean",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        implementation: Implementation = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("num_classes", num_classes)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: an integer >= 1 is needed, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name}: {value} is below 1")
        functional.check_class_weight(weight, num_classes)
        functional.check_unit_interval("label_smoothing", label_smoothing)
        functional.check_choice("reduction", reduction, ("mean", "sum", "none"))
        functional.check_choice("implementation", implementation, tuple(IMPLEMENTATIONS))
        self.in_features = in_features
        self.num_classes = num_classes
        self.scale = default_scale(similarity, num_classes) if scale is None else scale
        functional.check_scale(self.scale)
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.implementation: Implementation = implementation
        self._similarity = similarity
        # A margin per class lives here, not in the similarity, so that .to(device) and state_dict take it along.
        margin = getattr(similarity, "margin", None)
        self.register_buffer("margin", margin.detach().to(device, copy=True) if isinstance(margin, Tensor) else None)
        self.register_buffer("class_weight", None if weight is None else weight.detach().to(device, copy=True))
        self.weight = nn.Parameter(torch.empty(num_classes, in_features, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()
        self._watch()

    def reset_parameters(self) -> None:
        """Draws new class weights: normal, of expected length one."""
        nn.init.normal_(self.weight, std=self.in_features**-0.5)

    @property
    def similarity(self) -> Similarity:
        return self._similarity if self.margin is None else replace(self._similarity, margin=self.margin)  # type: ignore[type-var]

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
        loss.weight = weight  # type: ignore[assignment]
        if loss.bias is not None:
            loss.bias = linear.bias
        loss._watch()
        return loss

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """The loss of ``embeddings`` (N, D) with labels ``target`` (N,): a scalar, or (N,) with reduction="none"."""
        return functional.similarity_loss(
            embeddings,
            self.weight,
            target,
            self.similarity,
            scale=self.scale,
            bias=self.bias,
            class_weight=self.class_weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            implementation=self.implementation,
        )

    def logits(self, embeddings: Tensor) -> Tensor:
        """scale * c for every class, no margin, (N, C): for inference, where its argmax is the class."""
        return functional.logits(embeddings, self.weight, self.similarity, self.scale, self.bias)

    def similarities(self, embeddings: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """P of each row's own class, (N,), and N of the others, (N, C) with -inf in the target's column; not scaled."""
        return functional.similarities(embeddings, self.weight, target, self.similarity, self.bias)

    def extra_repr(self) -> str:
        similarity = self._similarity
        settings = {
            name: "per class" if isinstance(value, Tensor) else value
            for name, value in vars(similarity).items()
            if name != "normalized"
        }
        shown = "".join(f", {name}={value}" for name, value in settings.items())
        scale = f", scale={self.scale:.4g}" if similarity.normalized != "none" else ""
        return f"in_features={self.in_features}, num_classes={self.num_classes}{shown}{scale}"

    def _watch(self) -> None:
        """Warns once if the class weights receive gradients but never move: they are not in the optimizer."""
        steps, before = 0, None

        def after_backward(weight: Tensor) -> None:
            nonlocal steps, before
            steps += 1
            if steps == 1:
                before = weight.detach().clone()
            elif steps == PATIENCE + 1:
                handle.remove()
                moved = before is None or not torch.equal(before, weight.detach())
                if not moved and weight.grad is not None and weight.grad.any():
                    warnings.warn(
                        f"{type(self).__name__}: its class weights received gradients in {PATIENCE} backward passes "
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
        margin: margin factor in [0, 1), one number or one per class (C,): at u = 0, by how much c_y must pass c_j.
        scale: scale factor s > 0; None picks it from the number of classes, the margin and u, so that a perfect
            embedding is given probability 0.999 (:func:`~cssoftmax.similarity.default_scale`).
        weight_update: weight update factor u in [0, 1]: how much more a pair far from its goal pulls than one near it.
        detach_update: False differentiates through the update weights (SO-Softmax at u = 1).
        reduction, weight, ignore_index, label_smoothing, implementation, device, dtype: as in :class:`SimilarityLoss`.

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
        margin: float | Tensor = 0.1,
        scale: float | None = None,
        weight_update: float = 0.25,
        detach_update: bool = True,
        reduction: Reduction = "mean",
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        implementation: Implementation = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        functional.check_margin(margin, num_classes, below=1.0)
        functional.check_unit_interval("weight_update", weight_update)
        super().__init__(
            CSSoftmax(margin, weight_update, detach_update),
            in_features,
            num_classes,
            scale=scale,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            implementation=implementation,
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
        margin: in [0, 2), one number or one per class (C,). Default: the authors' 0.35.
        options: as in :class:`SimilarityLoss`. The authors' scale for faces is 64; the default here depends on C.

    Source: Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", 2018, arXiv:1801.09414,
    equation 4.

    >>> CosFaceLoss(4, 3, margin=0.2)(torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    def __init__(
        self, in_features: int, num_classes: int, *, margin: float | Tensor = 0.35, **options: Unpack[Options]
    ) -> None:
        functional.check_margin(margin, num_classes, below=2.0)
        super().__init__(CosFace(margin), in_features, num_classes, **options)


class ArcFaceLoss(SimilarityLoss):
    """ArcFace: the margin is added to the angle of the own class, P = cos(theta_y + margin), N = c_j.

    Where theta_y + margin passes pi, P = c_y - margin * sin(margin), as in the authors' code, so that the penalty never
    becomes a bonus; P falls by a step there unless margin is small.

    Args:
        margin: radians in [0, pi / 2), one number or one per class (C,). Default: the authors' 0.5.
        options: as in :class:`SimilarityLoss`. The authors' scale for faces is 64; the default here depends on C.

    Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", 2019, arXiv:1801.07698,
    equation 3.

    >>> ArcFaceLoss(4, 3, margin=0.2)(torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    def __init__(
        self, in_features: int, num_classes: int, *, margin: float | Tensor = 0.5, **options: Unpack[Options]
    ) -> None:
        functional.check_margin(margin, num_classes, below=torch.pi / 2)
        super().__init__(ArcFace(margin), in_features, num_classes, **options)


class CircleLoss(SimilarityLoss):
    """Circle loss with class labels: CS-Softmax at u = 1 with relaxation r = (1 - margin) / 2.

    Args:
        relaxation: m of the paper, in (0, 0.5]: P's goal is 1 + m, N's is -m, and the boundary at u = 1 is the circle
            (1 - c_y)^2 + c_j^2 = 2 m^2. Default: the authors' 0.25.
        options: as in :class:`SimilarityLoss`; the authors' gamma, here ``scale``, is 256 for faces.

    Source: Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", 2020, arXiv:2002.10857,
    equations 5 to 8.

    >>> CircleLoss(4, 3)(torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    def __init__(
        self, in_features: int, num_classes: int, *, relaxation: float = 0.25, **options: Unpack[Options]
    ) -> None:
        if not 0 < relaxation <= 0.5:
            raise ValueError(f"relaxation: {relaxation} is outside (0, 0.5]")
        super().__init__(CSSoftmax(1 - 2 * relaxation, 1.0), in_features, num_classes, **options)


class SOSoftmaxLoss(SimilarityLoss):
    """SO-Softmax: P = r^2 - (1 - c_y)^2, N = c_j^2 - r^2, with r = (1 - margin) / 2.

    Args:
        margin: in [0, 1), one number or one per class (C,).
        options: as in :class:`SimilarityLoss`.

    Source: Zhang et al., "SO-Softmax loss for discriminable embedding learning in CNNs", Pattern Recognition 131, 2022,
    108877, with the margin stated as for :class:`CSSoftmaxLoss`.

    >>> SOSoftmaxLoss(4, 3, margin=0.2)(torch.randn(2, 4), torch.tensor([0, 2])).shape
    torch.Size([])
    """

    def __init__(
        self, in_features: int, num_classes: int, *, margin: float | Tensor = 0.5, **options: Unpack[Options]
    ) -> None:
        functional.check_margin(margin, num_classes, below=1.0)
        super().__init__(SOSoftmax(margin), in_features, num_classes, **options)


LOSSES: dict[str, Callable[..., SimilarityLoss]] = {
    "cs-softmax": CSSoftmaxLoss,
    "softmax": SoftmaxLoss,
    "normface": NormFaceLoss,
    "cosface": CosFaceLoss,
    "arcface": ArcFaceLoss,
    "circle": CircleLoss,
    "so-softmax": SOSoftmaxLoss,
}


def build(name: str, in_features: int, num_classes: int, **settings: Any) -> SimilarityLoss:
    """The loss of that name, as the command line spells it, with its own settings (margin, scale, ...).

    Raises:
        ValueError: no loss of that name, or it has no such setting; the message lists those there are.

    >>> build("cosface", 8, 3, margin=0.2)
    CosFaceLoss(in_features=8, num_classes=3, margin=0.2, scale=9.5)
    """
    if name not in LOSSES:
        raise ValueError(f"loss: {name!r} is not one of {', '.join(LOSSES)}")
    own = inspect.signature(LOSSES[name]).parameters
    allowed = {key for key in ("margin", "relaxation", "weight_update", "detach_update") if key in own}
    allowed |= {"label_smoothing"} | (set() if name == "softmax" else {"scale"})
    for key in settings:
        if key not in allowed:
            raise ValueError(f"{key}: {name} has no such setting; it has {', '.join(sorted(allowed))}")
    return LOSSES[name](in_features, num_classes, **settings)
