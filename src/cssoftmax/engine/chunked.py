"""The loss on a CPU: three matrix products, and of the (N, C) matrix only blocks that fit the cache.

Per row, the loss is a function of the cosine to the row's own class, ``own``, and of ``others``, the logarithm of
sum_{j != y} exp(scale * N_ij). These (N,)-sized parts are left to autograd. One operator, ``_Rows``, sees the matrix.
Forward it goes through the classes in blocks, and keeps of each the exponentials times their slopes, in the memory that
the gradient of the class weights will take. Backward, those need one more factor per row, and are multiplied into the
gradients, block by block. The class weights are not copied: their lengths divide the blocks instead.
"""

import ctypes
import math
import mmap
import sys
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from cssoftmax.engine import eager, products
from cssoftmax.similarity import Rows, Similarity

# Numbers at work at once, a block of products and its class weights: 8 MiB in float32.
BLOCK = 2**21
# Bytes for blocks that find no room in the gradient of the class weights; rows beyond are multiplied a second time.
SPARE = 32 * 2**20
# Most rows multiplied at once.
ROWS = 512

LOG2E = math.log2(math.e)
# Above it, log(1 + exp(z)) is z in float64 too.
STEEP = 40.0


def loss(
    embeddings: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    similarity: Similarity,
    *,
    scale: float | Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """The same as :func:`cssoftmax.engine.eager.loss`, which also takes over what does not suit this engine."""
    if not _suits(embeddings, weight, similarity, scale):
        return eager.loss(
            embeddings,
            weight,
            bias,
            target,
            similarity,
            scale=scale,
            class_weight=class_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    scale = float(scale)
    # Labels are in 0..C-1 or ``ignore_index``, which usually is negative.
    ignored = None
    if len(target) and (ignore_index >= 0 or int(target.min()) < 0):
        ignored = target == ignore_index
    index = target if ignored is None else target.masked_fill(ignored, 0)
    share = label_smoothing / len(weight)
    smooth = (weight.new_ones(len(weight)) if class_weight is None else class_weight) if share else None

    own, norm, others, total = _Rows.apply(embeddings, weight, bias, index, similarity, scale, smooth)  # type: ignore[no-untyped-call]
    positive = similarity.positive(own, similarity.rows(own, norm, index))
    rescale = None if class_weight is None else class_weight[index]
    if smooth is None:
        value = F.softplus(torch.sub(others, positive, alpha=scale), threshold=STEEP)
        if rescale is not None:
            value = value * rescale
    else:
        positive = scale * positive
        log_sum = torch.logaddexp(positive, others)
        value = log_sum - positive
        if rescale is not None:
            value, positive = value * rescale, positive * rescale
        value = (1 - label_smoothing) * value + share * (smooth.sum() * log_sum - positive - total)

    if ignored is not None:
        value = value.masked_fill(ignored, 0)
        rescale = None if rescale is None else rescale.masked_fill(ignored, 0)
    if reduction == "none":
        return value
    if reduction == "sum":
        return value.sum()
    if rescale is not None:
        return value.sum() / rescale.sum()
    return value.mean() if ignored is None else value.sum() / (~ignored).sum()


def _suits(embeddings: Tensor, weight: Tensor, similarity: Similarity, scale: float | Tensor) -> bool:
    """Whether ``_Rows`` can do it: plain tensors, constant factors, no transform at work."""
    plain = (Tensor, torch.nn.Parameter)
    return (
        not torch.compiler.is_compiling()
        and type(embeddings) in plain
        and type(weight) in plain
        and not embeddings.is_meta
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not (isinstance(scale, Tensor) and (scale.requires_grad or scale.numel() > 1))
        and not any(isinstance(value, Tensor) and value.requires_grad for value in vars(similarity).values())
    )


class _Rows(torch.autograd.Function):
    """What the loss of each row needs, (N,): own, the embedding's length, others, and with ``smooth``, (C,), also
    sum_{j != y} smooth_j * scale * N_ij."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        index: Tensor,
        similarity: Similarity,
        scale: float,
        smooth: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        keep = any(ctx.needs_input_grad)
        (num_rows, size), num_classes = x.shape, len(w)
        length = _length(x)
        inverse_x = length.reciprocal()
        left = x / length[:, None] if similarity.normalized == "both" else x
        inverse_w = None if similarity.normalized == "none" else w.new_empty(num_classes)
        grad_w = _empty(w) if ctx.needs_input_grad[1] else None
        edges = _edges(num_rows, size, num_classes)
        groups = _groups(x, w, grad_w, index, edges, keep)
        tops, sums = x.new_empty(2, len(edges) - 1, num_rows)
        total = None if smooth is None else x.new_zeros(num_rows)

        own = (left * w[index]).sum(1)
        if inverse_w is not None:
            own /= _length(w[index])
        if bias is not None:
            own += bias[index]
        norm = length.masked_fill(inverse_x == 0, 0)
        rows = similarity.rows(own, norm, index)

        with products.best(num_rows * size * num_classes):
            for number, (start, stop) in enumerate(pairwise(edges)):
                wb = w[start:stop]
                if inverse_w is not None:
                    torch.reciprocal(_length(wb), out=inverse_w[start:stop])
                for group in groups:
                    c = group.block(start, stop, x)
                    products.multiply(left[group.rows], wb.T, out=c)
                    if inverse_w is not None:
                        c *= inverse_w[start:stop]
                    if bias is not None:
                        c += bias[start:stop]
                    parameters = _columns(rows, group)
                    negative = similarity.negative(c, parameters)
                    place = group.places[number]
                    if total is not None and smooth is not None:
                        smoothed = negative * (smooth[start:stop] * scale)
                        total[group.rows] += smoothed.view(-1).index_fill_(0, place, 0).view_as(c).sum(1)
                    z = negative * (scale * LOG2E)
                    z.view(-1).index_fill_(0, place, -math.inf)
                    top = z.amax(1).clamp_(min=torch.finfo(z.dtype).min)
                    z.sub_(top[:, None]).exp2_()
                    tops[number, group.rows] = top
                    sums[number, group.rows] = z.sum(1)
                    if group.room is not None and smooth is None:
                        slope = similarity.negative_slope(c, parameters)
                        z *= slope
                        torch.mul(z, 1 if inverse_w is None else inverse_w[start:stop], out=c)

        top = tops.amax(0)
        others = top + (sums * (tops - top).exp2_()).sum(0).log2_()
        ctx.save_for_backward(x, w, bias, index, smooth)
        ctx.set_materialize_grads(False)
        if keep:
            ctx.similarity, ctx.scale = similarity, scale
            ctx.kept = (inverse_x, inverse_w, rows, edges, groups, grad_w, tops, others)
        return own, norm, others / LOG2E, total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or ctx.kept is None:
            return _once_more(ctx, upstream)
        x, w, bias, index, smooth = ctx.saved_tensors
        similarity, scale = ctx.similarity, ctx.scale
        inverse_x, inverse_w, rows, edges, groups, grad_w, tops, others = ctx.kept
        ctx.kept = None  # the blocks are consumed
        needs_x, _, needs_bias = ctx.needs_input_grad[:3]
        zeros = torch.zeros_like(inverse_x)
        grad_own, grad_norm, grad_others, grad_total = (zeros if grad is None else grad for grad in upstream)

        others.clamp_(min=torch.finfo(others.dtype).min)  # of a single class
        # The length of an embedding divides its row here, once for both gradients.
        by_row = inverse_x if similarity.normalized == "both" else torch.ones_like(inverse_x)
        grad_others, grad_total = grad_others * by_row * scale, grad_total * by_row * scale
        factors = (tops - others).exp2_() * grad_others
        grad_own = grad_own * by_row
        if inverse_w is not None:
            grad_own *= inverse_w[index]
        grad_x = torch.zeros_like(x) if needs_x else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        if grad_w is not None and not groups:
            grad_w.zero_()

        with torch.autocast(x.device.type, enabled=False), products.best(x.numel() * len(w)):
            for number, (start, stop) in enumerate(pairwise(edges)):
                wb = w[start:stop]
                for group in groups:
                    if group.room is not None and smooth is None:
                        g = group.block(start, stop, x) * factors[number, group.rows, None]
                    else:
                        c = group.block(start, stop, x)
                        if group.room is None:
                            products.multiply(x[group.rows] * by_row[group.rows, None], wb.T, out=c)
                            if inverse_w is not None:
                                c *= inverse_w[start:stop]
                            if bias is not None:
                                c += bias[start:stop]
                        parameters = _columns(rows, group)
                        g = similarity.negative(c, parameters) * (scale * LOG2E)
                        g.sub_(others[group.rows, None]).exp2_().mul_(grad_others[group.rows, None])
                        if smooth is not None:
                            g.addcmul_(grad_total[group.rows, None], smooth[start:stop])
                        g *= similarity.negative_slope(c, parameters)
                        if inverse_w is not None:
                            g *= inverse_w[start:stop]
                    place = group.places[number]
                    columns = stop - start
                    g.view(-1)[place] = grad_own[group.rows][place // columns]
                    if grad_x is not None:
                        products.multiply(g, wb, out=grad_x[group.rows], add=True)
                    if grad_w is not None:
                        products.multiply(g.T, x[group.rows], out=grad_w[start:stop], add=group is not groups[0])
                    if grad_bias is not None:
                        grad_bias[start:stop] += g.sum(0)
                if grad_w is not None and inverse_w is not None:
                    _project(grad_w[start:stop], wb, inverse_w[start:stop])

        if grad_x is not None and similarity.normalized == "both":
            _project(grad_x, x, inverse_x)
        if grad_x is not None and upstream[1] is not None:
            grad_x.addcmul_(x, (grad_norm * inverse_x)[:, None])
        return grad_x, grad_w, grad_bias, None, None, None, None


class _Group(NamedTuple):
    """Rows multiplied at once, and the memory that keeps their blocks from forward to backward, if any.

    The block of the classes [start, stop) lies at ``room[start * width:]``. ``places`` says, for each block, where in
    it the rows' own classes are.
    """

    rows: slice
    room: Tensor | None
    width: int
    places: list[Tensor]

    def block(self, start: int, stop: int, like: Tensor) -> Tensor:
        """Memory for the products of these rows with the classes [start, stop): (rows, stop - start)."""
        rows, columns = self.rows.stop - self.rows.start, stop - start
        if self.room is None:
            return like.new_empty(rows, columns)
        return self.room[start * self.width :][: rows * columns].view(rows, columns)


def _edges(num_rows: int, size: int, num_classes: int) -> list[int]:
    """Where the blocks of classes begin, and where the last one ends."""
    columns = max(1, BLOCK // (min(num_rows, ROWS) + size))
    if columns > 64:
        columns -= columns % 64
    return [*range(0, num_classes, columns), num_classes]


def _groups(x: Tensor, w: Tensor, grad_w: Tensor | None, index: Tensor, edges: list[int], keep: bool) -> list[_Group]:
    """All rows: kept in spare memory or, where that is short, in the gradient to come, then those not kept."""
    num_rows, num_classes, size = len(x), len(w), w.shape[1]
    spare = SPARE // (num_classes * x.element_size()) if keep else 0
    groups, start = [], 0

    def add(stop: int, room: Tensor | None, width: int) -> None:
        nonlocal start
        groups.append(_Group(slice(start, stop), room, width, _places(index[start:stop], edges)))
        start = stop

    if num_rows > spare and grad_w is not None:
        add(min(num_rows, size), grad_w.view(-1), size)
    if start < num_rows and spare:
        stop = min(num_rows, start + spare)
        add(stop, x.new_empty(num_classes * (stop - start)), stop - start)
    while start < num_rows:
        add(min(start + ROWS, num_rows), None, 0)
    return groups


def _places(index: Tensor, edges: list[int]) -> list[Tensor]:
    """Where in each block, read row by row, the rows' own classes are."""
    row = torch.arange(len(index), device=index.device)
    if len(edges) == 2:
        return [row * edges[1] + index]
    index, row = index.sort()
    first = torch.searchsorted(index, torch.tensor(edges, device=index.device)).tolist()
    return [
        row[a:b] * (stop - start) + (index[a:b] - start)
        for (a, b), (start, stop) in zip(pairwise(first), pairwise(edges), strict=True)
    ]


def _columns(rows: Rows, group: _Group) -> Rows:
    return tuple(row[group.rows, None] if isinstance(row, Tensor) else row for row in rows)


def _length(vectors: Tensor) -> Tensor:
    """Infinite for a vector too short to have a direction, so that what it divides is zero."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=1)
    return length.masked_fill_(length <= eager.SHORTEST, math.inf)


def _project(gradient: Tensor, vectors: Tensor, inverse: Tensor) -> None:
    """From the gradient in directions, divided by the vectors' lengths, to that in the vectors; in place."""
    along = (gradient * vectors).sum(1).mul_(inverse.square())
    gradient.addcmul_(vectors, along[:, None], value=-1)


def _empty(like: Tensor) -> Tensor:
    """Memory for a gradient. Of a large one Linux is asked to give it in large pages, several times as quickly."""
    empty = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    size = empty.numel() * empty.element_size()
    if size > 2**22 and empty.device.type == "cpu" and sys.platform == "linux":
        start = -(-empty.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (empty.data_ptr() + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return empty


def _once_more(ctx: Any, upstream: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """A second backward pass, which finds no blocks; or one whose result is differentiated again, by plain PyTorch."""
    create_graph = torch.is_grad_enabled()
    *inputs, index, smooth = ctx.saved_tensors
    needed = ctx.needs_input_grad[:3]
    if not create_graph:
        inputs = [
            value.detach().requires_grad_() if need else value for value, need in zip(inputs, needed, strict=True)
        ]
    with torch.enable_grad(), torch.autocast(index.device.type, enabled=False):
        run: Any = _eager_rows if create_graph else _Rows.apply
        outputs = run(*inputs, index, ctx.similarity, ctx.scale, smooth)
        pairs = [(output, grad) for output, grad in zip(outputs, upstream, strict=True) if grad is not None]
        gradients = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                [value for value, need in zip(inputs, needed, strict=True) if need],
                [grad for _, grad in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return *(next(gradients) if need else None for need in needed), None, None, None, None


def _eager_rows(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    index: Tensor,
    similarity: Similarity,
    scale: float,
    smooth: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    left, right, norm = eager.sides(x, w, similarity)
    c = F.linear(left, right, bias)
    column = index[:, None]
    own = c.gather(1, column).squeeze(1)
    rows = similarity.rows(own.detach(), norm.detach(), index)
    z = scale * similarity.negative(c, eager.columns(rows))
    others = z.scatter(1, column, torch.finfo(z.dtype).min).logsumexp(1)
    return own, norm, others, None if smooth is None else (z * smooth).scatter(1, column, 0).sum(1)
