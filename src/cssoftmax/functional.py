"""The losses as pure functions: arguments checked, autocast kept out, an engine called."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from cssoftmax.engine import IMPLEMENTATIONS, chunked, eager, pick, triton
from cssoftmax.similarity import CSSoftmax, Similarity, default_scale

Reduction = Literal["mean", "sum", "none"]
Implementation = Literal["auto", "eager", "fused", "compiled", "chunked", "triton"]
Precision = Literal["float32", "bf16"]


def cs_softmax_loss(
    embeddings: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    margin: float | Tensor,
    scale: float | Tensor | None = None,
    weight_update: float,
    detach_update: bool = True,
    class_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    implementation: Implementation = "auto",
    precision: Precision = "float32",
) -> Tensor:
    """The CS-Softmax loss; :class:`cssoftmax.CSSoftmaxLoss` without the parameter.

    Equals, with u = ``weight_update``, r = (1 - margin) / 2 and ``c = normalize(embeddings) @ normalize(weight).T``::

        P = (1 + r - c).clamp(min=0).pow(u).detach() * (c - (1 - r))
        N = (c + r).clamp(min=0).pow(u).detach() * (c - r)
        F.cross_entropy(scale * torch.where(F.one_hot(target, C).bool(), P, N), target)

    Args:
        embeddings: (N, D), float.
        weight: class weights, (C, D), float.
        target: class of each row, (N,), int64 in [0, C), or ``ignore_index``.
        margin: in [0, 1), one number or one per class, (C,).
        scale: > 0; None takes :func:`cssoftmax.similarity.default_scale`.
        weight_update: u in [0, 1].
        detach_update: the update weights are constants in the backward pass.
        class_weight: rescaling of each class's loss, (C,), as ``weight`` of ``F.cross_entropy``.
        reduction, ignore_index, label_smoothing: as in ``F.cross_entropy``.
        implementation: "auto" picks the fastest by device and sizes: "eager", plain PyTorch operations; "fused", few
            of them, for small N x C on a CPU, or "compiled", in C, where there is a compiler; "chunked", for large
            N x C; "triton", kernels for a GPU. All agree to rounding.
        precision: "bf16" lets chunked and triton round the factors of their products to bfloat16; the gradients then
            are within about 1 %. Only a processor with bfloat16 arithmetic gains by it.

    Returns:
        A scalar, or (N,) with ``reduction="none"``; float32, or float64 where an input is. Whatever autocast says,
        nothing here runs in half precision.

    Raises:
        TypeError, ValueError, IndexError: an argument of wrong type, shape or range, or a label outside 0..C-1, named
            with its value. (On a GPU the labels are checked by an assertion on the device, which costs no wait.)

    Source: Zhang et al. 2022, doi:10.7544/issn1000-1239.20200879, in the reading of docs/theory.md, equation 1.

    >>> x, w = torch.eye(3), torch.eye(3)
    >>> loss = cs_softmax_loss(x, w, torch.arange(3), margin=0.0, weight_update=0.0, scale=2.0)
    >>> bool(torch.isclose(loss, torch.nn.functional.cross_entropy(2 * x @ w.T, torch.arange(3))))
    True
    """
    if isinstance(weight, Tensor) and weight.ndim == 2:
        check_margin(margin, len(weight), below=1.0)
    check_unit_interval("weight_update", weight_update)
    similarity = CSSoftmax(margin, weight_update, detach_update)
    return similarity_loss(
        embeddings,
        weight,
        target,
        similarity,
        scale=default_scale(similarity, len(weight)) if scale is None else scale,
        class_weight=class_weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        implementation=implementation,
        precision=precision,
    )


def similarity_loss(
    embeddings: Tensor,
    weight: Tensor,
    target: Tensor,
    similarity: Similarity,
    *,
    scale: float | Tensor,
    bias: Tensor | None = None,
    class_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    implementation: Implementation = "auto",
    precision: Precision = "float32",
    sub_centers: int = 1,
) -> Tensor:
    """Cross entropy of the logits scale * P (own class) and scale * N (the others) of any ``similarity``.

    Every loss of the family is this with another similarity; arguments, shapes, dtypes and errors as in
    :func:`cs_softmax_loss`. ``bias`` (C,) belongs to the plain softmax alone, whose similarity has normalized="none".
    With ``sub_centers`` K > 1 each class has K rows of ``weight``, (C * K, D), and its cosine is the largest of the K;
    only the eager engine does that, and "auto" takes it.

    >>> from cssoftmax.similarity import CosFace
    >>> similarity_loss(torch.eye(2), torch.eye(2), torch.arange(2), CosFace(0.5), scale=1.0)
    tensor(0.4741)
    """
    check_embeddings(embeddings, weight)
    check_sub_centers(sub_centers, implementation)
    num_classes = weight.shape[0] // sub_centers
    check_target(embeddings, target, num_classes, ignore_index)
    check_scale(scale)
    check_class_weight(class_weight, num_classes)
    check_bias(bias, similarity, num_classes)
    check_unit_interval("label_smoothing", label_smoothing)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_choice("implementation", implementation, IMPLEMENTATIONS)
    check_choice("precision", precision, ("float32", "bf16"))
    if reduction == "mean" and embeddings.shape[0] == 0:
        raise ValueError('embeddings: an empty batch, (0, D), has no mean loss; skip it, or pass reduction="sum"')
    dtype = compute_dtype(embeddings, weight)
    engine = (
        pick(implementation, embeddings, weight.shape[0], precision)
        if sub_centers == 1
        else partial(eager.loss, sub_centers=sub_centers)
    )
    if precision != "float32" and engine in (chunked.loss, triton.loss):
        engine = partial(engine, precision=precision)
    with no_autocast(embeddings.device.type):
        if engine is not triton.loss:  # which reads half precision as it is, and computes in float32 all the same
            embeddings, weight = embeddings.to(dtype), weight.to(dtype)
        return engine(
            embeddings,
            weight,
            None if bias is None else bias.to(dtype),
            target,
            similarity,
            scale=scale,
            class_weight=None if class_weight is None else class_weight.to(embeddings.device, dtype),
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=float(label_smoothing),
        )


def logits(
    embeddings: Tensor,
    weight: Tensor,
    similarity: Similarity,
    scale: float | Tensor,
    bias: Tensor | None,
    sub_centers: int = 1,
) -> Tensor:
    """scale * c, no margin: what inference uses. (N, C)."""
    check_embeddings(embeddings, weight)
    dtype = compute_dtype(embeddings, weight)
    with torch.autocast(embeddings.device.type, enabled=False):
        bias = None if bias is None else bias.to(dtype)
        left, right, _ = eager.sides(embeddings.to(dtype), weight.to(dtype), similarity)
        return scale * eager.inner_products(left, right, bias, sub_centers)


def similarities(
    embeddings: Tensor,
    weight: Tensor,
    target: Tensor,
    similarity: Similarity,
    bias: Tensor | None = None,
    sub_centers: int = 1,
) -> tuple[Tensor, Tensor]:
    """P of each row's own class, (N,), and N of every other class, (N, C) with -inf in the target's column."""
    check_embeddings(embeddings, weight)
    check_target(embeddings, target, len(weight) // sub_centers, ignore_index=None)
    dtype = compute_dtype(embeddings, weight)
    with torch.autocast(embeddings.device.type, enabled=False):
        bias = None if bias is None else bias.to(dtype)
        left, right, norm = eager.sides(embeddings.to(dtype), weight.to(dtype), similarity)
        c = eager.inner_products(left, right, bias, sub_centers)
        positive, negative = eager.similarities(c, norm, target, similarity)
    return positive, negative.scatter(1, target[:, None], float("-inf"))


def own_cosines(
    embeddings: Tensor, weight: Tensor, target: Tensor, ignore_index: int = -100
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's cosine to its own class, its length, and whether it counts: what a loss's statistics are made of.

    All (N,), without gradient. A row that is ignored or not finite does not count; its cosine and length are then 0.

    >>> own_cosines(torch.tensor([[3.0, 4.0]]), torch.eye(2), torch.tensor([1]))
    (tensor([0.8000]), tensor([5.]), tensor([True]))
    """
    check_embeddings(embeddings, weight)
    check_target(embeddings, target, len(weight), ignore_index)
    dtype = compute_dtype(embeddings, weight)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        directions, norm = eager.normalize(embeddings.to(dtype))
        classes, _ = eager.normalize(weight[target.clamp(0, len(weight) - 1)].to(dtype))
        own = (directions * classes).sum(1)
        counts = (target != ignore_index) & own.isfinite() & norm.isfinite()
        return torch.where(counts, own, 0), torch.where(counts, norm, 0), counts


def norms(embeddings: Tensor) -> Tensor:
    """The rows' lengths, (N,), float32 or float64, as the losses see them: 0 below 1e-8."""
    with torch.autocast(embeddings.device.type, enabled=False):
        return eager.normalize(embeddings.to(compute_dtype(embeddings, embeddings)))[1]


def reduce(
    values: Tensor, target: Tensor, *, class_weight: Tensor | None, reduction: Reduction, ignore_index: int
) -> Tensor:
    """Values of rows (N,) rescaled, ignored and reduced as ``F.cross_entropy`` does it with its own.

    >>> values, target = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 1, -100])
    >>> reduce(values, target, class_weight=torch.tensor([1.0, 3.0]), reduction="mean", ignore_index=-100)
    tensor(1.7500)
    """
    counts = target != ignore_index
    share = counts.to(values)
    if class_weight is not None:
        share = share * class_weight.to(values)[target.clamp(0, len(class_weight) - 1)]
    values = torch.where(counts, values, 0) * share
    if reduction == "none":
        return values
    return values.sum() / share.sum() if reduction == "mean" else values.sum()


NOTHING = nullcontext()


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Keeps autocast out; a small batch feels what leaving it alone saves."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else NOTHING


def compute_dtype(embeddings: Tensor, weight: Tensor) -> torch.dtype:
    """float32, or float64 where an input is."""
    return torch.promote_types(torch.promote_types(embeddings.dtype, weight.dtype), torch.float32)


def check_embeddings(embeddings: Tensor, weight: Tensor) -> None:
    for name, value, shape in (("embeddings", embeddings, "(N, D)"), ("weight", weight, "(C, D)")):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: a tensor of shape {shape} is needed, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name}: a floating-point tensor is needed, got {value.dtype}")
        if value.ndim != 2:
            raise ValueError(f"{name}: shape {shape} is needed, got {tuple(value.shape)}")
    if embeddings.shape[1] != weight.shape[1]:
        raise ValueError(
            f"embeddings: {embeddings.shape[1]} features a row, but the class weights have {weight.shape[1]}"
        )
    if weight.shape[0] == 0:
        raise ValueError("weight: at least one class is needed, got shape (0, D)")


def check_target(embeddings: Tensor, target: Tensor, num_classes: int, ignore_index: int | None) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"target: a tensor of shape (N,) is needed, got {type(target).__name__}")
    if target.dtype != torch.int64:
        raise TypeError(f"target: int64 class numbers are needed, got {target.dtype}; use target.long()")
    if target.ndim != 1 or target.shape[0] != embeddings.shape[0]:
        raise ValueError(
            f"target: shape (N,) is needed, with N = {embeddings.shape[0]} as in embeddings, got {tuple(target.shape)}"
        )
    if target.device != embeddings.device:
        raise ValueError(f"target: is on {target.device}, but embeddings are on {embeddings.device}")
    if target.is_meta:
        return
    checked_here = target.device.type == "cpu" and not torch.compiler.is_compiling()
    if checked_here and target.numel():
        lowest, highest = target.aminmax()
        if int(lowest) >= 0 and int(highest) < num_classes:
            return
    wrong = (target < 0) | (target >= num_classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if checked_here:
        if wrong.any():
            row = int(wrong.nonzero()[0])
            allowed = f"0..{num_classes - 1}" + ("" if ignore_index is None else f" (or ignore_index {ignore_index})")
            raise IndexError(f"target: label {int(target[row])} in row {row} is outside {allowed}")
    else:  # an exception would have to wait for the device, or break the graph
        torch._assert_async(~wrong.any(), f"target: a label is outside 0..{num_classes - 1}")


def check_margin(
    margin: float | Tensor, num_classes: int, *, below: float, least: float = 0.0, name: str = "margin"
) -> None:
    """One number in [least, below), or a float tensor (C,) of such."""
    if isinstance(margin, Tensor):
        if not margin.is_floating_point():
            raise TypeError(f"{name}: a floating-point tensor is needed, got {margin.dtype}")
        if margin.shape != (num_classes,):
            raise ValueError(
                f"{name}: a tensor needs one number per class, shape ({num_classes},), got {tuple(margin.shape)}"
            )
        if margin.device.type == "cpu" and not torch.compiler.is_compiling():
            outside = ~((margin >= least) & (margin < below))
            if outside.any():
                worst = int(outside.nonzero()[0])
                raise ValueError(f"{name}: {float(margin[worst]):g} of class {worst} is outside [{least:g}, {below:g})")
    else:
        check_number(name, margin, least, below, f"a number or a tensor ({num_classes},)")


def check_number(name: str, value: float, least: float, below: float, needed: str = "a number") -> None:
    """A number in [least, below)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: {needed} is needed, got {type(value).__name__}")
    if not least <= value < below:
        raise ValueError(f"{name}: {value} is outside [{least:g}, {below:g})")


def check_unit_interval(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: a number in [0, 1] is needed, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: {value} is outside [0, 1]")


def check_scale(scale: float | Tensor) -> None:
    if isinstance(scale, Tensor):
        return
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"scale: a number > 0 is needed, got {type(scale).__name__}")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale: {scale} is not a finite number > 0")


def check_sub_centers(sub_centers: int, implementation: str) -> None:
    if isinstance(sub_centers, bool) or not isinstance(sub_centers, int):
        raise TypeError(f"sub_centers: an integer >= 1 is needed, got {type(sub_centers).__name__}")
    if sub_centers < 1:
        raise ValueError(f"sub_centers: {sub_centers} is below 1")
    if sub_centers > 1 and implementation not in ("auto", "eager"):
        raise ValueError(f"implementation: {implementation!r} has no sub-centers; take 'auto' or 'eager'")


def check_class_weight(class_weight: Tensor | None, num_classes: int) -> None:
    if class_weight is None:
        return
    if not isinstance(class_weight, Tensor) or not class_weight.is_floating_point():
        kind = class_weight.dtype if isinstance(class_weight, Tensor) else type(class_weight).__name__
        raise TypeError(
            f"weight: the rescaling of classes must be a floating-point tensor ({num_classes},), got {kind}"
        )
    if class_weight.shape != (num_classes,):
        raise ValueError(
            f"weight: the rescaling of classes needs shape ({num_classes},), got {tuple(class_weight.shape)}"
        )


def check_bias(bias: Tensor | None, similarity: Similarity, num_classes: int) -> None:
    if bias is None:
        return
    if bias.shape != (num_classes,):
        raise ValueError(f"bias: shape {tuple(bias.shape)} is not (C,) = ({num_classes},)")
    if similarity.normalized != "none":
        raise ValueError('bias: a cosine has none; leave it out, or take a similarity with normalized="none"')


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(map(repr, allowed))}")
