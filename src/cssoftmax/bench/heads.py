"""The heads that are measured: ours and all that is installed beside."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cssoftmax.engine import ENGINES, triton
from cssoftmax.losses import CosFaceLoss, CSSoftmaxLoss, SimilarityLoss, SoftmaxLoss

BASELINE = "Linear + CE"

Head = Callable[[Tensor, nn.Parameter, Tensor], Callable[[], Tensor]]


@dataclass(frozen=True)
class Shape:
    """N rows of D features, C classes."""

    rows: int
    features: int
    classes: int

    def __str__(self) -> str:
        return f"N = {self.rows}, D = {self.features}, C = {self.classes:,}"


def heads(device: str) -> dict[str, Head]:
    """Ours and all that is installed beside; each builds its loss from embeddings, class weights and labels."""
    found: dict[str, Head] = {BASELINE: _linear}
    if hasattr(F, "linear_cross_entropy"):
        found["F.linear_cross_entropy"] = _linear_cross_entropy
    found["torch.compile(Linear + CE)"] = _compiled
    if importlib.util.find_spec("pytorch_metric_learning"):
        found["pytorch-metric-learning CosFace"] = _metric_learning("CosFaceLoss")
        found["pytorch-metric-learning ArcFace"] = _metric_learning("ArcFaceLoss")
    if device.startswith("cuda"):
        if importlib.util.find_spec("liger_kernel"):
            found["liger-kernel"] = _liger
        if importlib.util.find_spec("cut_cross_entropy"):
            found["cut-cross-entropy"] = _cut_cross_entropy
    for engine in ENGINES:
        if engine != "triton" or (triton.INSTALLED and device.startswith("cuda")):
            found[f"CS-Softmax, {engine}"] = _ours(CSSoftmaxLoss, implementation=engine)
    found["CS-Softmax"] = _ours(CSSoftmaxLoss)
    found["CS-Softmax, bf16 products"] = _ours(CSSoftmaxLoss, precision="bf16")
    found["torch.compile(CS-Softmax)"] = _compiled_ours
    found["CosFace"] = _ours(CosFaceLoss)
    found["Softmax"] = _ours(SoftmaxLoss)
    return found


def _linear(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    bias = nn.Parameter(w.new_zeros(len(w)))
    return lambda: F.cross_entropy(F.linear(x, w, bias), y)


def _linear_cross_entropy(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    bias = nn.Parameter(w.new_zeros(len(w)))
    function: Any = F.linear_cross_entropy
    return lambda: function(x, w, y, linear_bias=bias)


def _compiled(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    bias = nn.Parameter(w.new_zeros(len(w)))
    function = torch.compile(lambda x, w, bias, y: F.cross_entropy(F.linear(x, w, bias), y), dynamic=False)
    return lambda: function(x, w, bias, y)


def _compiled_ours(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    step = torch.compile(_ours(CSSoftmaxLoss)(x, w, y), dynamic=False)
    return lambda: step()


def _metric_learning(name: str) -> Head:
    def build(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
        from pytorch_metric_learning import losses

        loss = getattr(losses, name)(len(w), w.shape[1]).to(x.device)
        loss.W = nn.Parameter(w.detach().T.contiguous())

        def step() -> Tensor:
            loss.W.grad = None
            value: Tensor = loss(x, y)
            return value

        return step

    return build


def _liger(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda: loss(w, x, y)


def _cut_cross_entropy(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
    from cut_cross_entropy import linear_cross_entropy

    return lambda: linear_cross_entropy(x, w, y)


def _ours(family: type[SimilarityLoss], **options: Any) -> Head:
    def build(x: Tensor, w: nn.Parameter, y: Tensor) -> Callable[[], Tensor]:
        linear = nn.Linear(w.shape[1], len(w), device="meta")
        linear.weight, linear.bias = w, nn.Parameter(w.new_zeros(len(w)))
        loss = family.from_linear(linear, **options)
        return lambda: loss(x, y)

    return build


def problem(shape: Shape, device: str, dtype: torch.dtype) -> tuple[Tensor, nn.Parameter, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": device}
    x = torch.randn(shape.rows, shape.features, dtype=dtype, **options).requires_grad_()
    w = nn.Parameter(torch.randn(shape.classes, shape.features, dtype=dtype, **options) * shape.features**-0.5)
    return x, w, torch.randint(shape.classes, (shape.rows,), **options)
