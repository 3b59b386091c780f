"""What all losses of the family share: class weights, reduction, scale, schedules, and the call of an engine.

State, where a loss has any (a scheduled margin, a running mean, ...), is in buffers: each training forward moves it and
evaluation does not. Statistics of a batch are summed over all processes of ``torch.distributed``, in one small
all-reduce, so every process must call the loss equally often.
"""

import math
import warnings
from dataclasses import replace
from typing import Any, Self, TypedDict, cast

import torch
from torch import Tensor, distributed, nn

from cssoftmax import functional
from cssoftmax.engine import IMPLEMENTATIONS
from cssoftmax.functional import Implementation, Precision, Reduction
from cssoftmax.schedule import Schedule
from cssoftmax.similarity import Similarity, default_scale

Margin = float | Tensor | Schedule

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
        check_sizes(in_features, num_classes)
        functional.check_class_weight(weight, num_classes)
        functional.check_unit_interval("label_smoothing", label_smoothing)
        functional.check_choice("reduction", reduction, ("mean", "sum", "none"))
        functional.check_choice("implementation", implementation, tuple(IMPLEMENTATIONS))
        functional.check_sub_centers(sub_centers, implementation)
        if scale is None:
            scale = default_scale(at_end(similarity), num_classes)
        for number in ends(scale):
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

        >>> from cssoftmax import CSSoftmaxLoss
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
        return over_processes(sums)

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


def check_sizes(in_features: int, num_classes: int) -> None:
    for name, value in (("in_features", in_features), ("num_classes", num_classes)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: an integer >= 1 is needed, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1")


def ends(factor: Any) -> tuple[Any, ...]:
    """The two ends of a schedule, or the factor itself: what has to be in range."""
    return (factor.start, factor.end) if isinstance(factor, Schedule) else (factor,)


def checked_margin(margin: Margin, num_classes: int, **bounds: Any) -> float | Tensor:
    """The margin, checked. A schedule goes into the similarity as it is: the module replaces it by its buffer."""
    for number in ends(margin):
        functional.check_margin(number, num_classes, **bounds)
    return cast(float | Tensor, margin)


def at_end(similarity: Similarity) -> Similarity:
    """The similarity as it is when all its schedules are through."""
    last = {name: value.end for name, value in vars(similarity).items() if isinstance(value, Schedule)}
    return replace(similarity, **last) if last else similarity  # type: ignore[type-var]


def over_processes(sums: Tensor) -> Tensor:
    """Summed over the processes of ``torch.distributed``, if it runs."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(sums)
    return sums


def move_towards(state: Tensor, value: Tensor, share: float, where: Tensor) -> None:
    """Moves a buffer ``share`` of the way to ``value``, if ``where`` and the value is finite; waits for no device."""
    moved = state + share * (value.to(state) - state)
    state.copy_(torch.where(where & value.isfinite(), moved, state))
