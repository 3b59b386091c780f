"""The loss on a CPU: three matrix products, and of the (N, C) matrix only blocks that fit the cache.

Per row, the loss is a function of the similarity P to the row's own class and of ``others``, the logarithm of
sum_{j != y} exp(scale * N_ij). What is made of these, (N,) each, is left to autograd. Only ``_Rows`` sees the matrix.
Forward it goes through the classes in blocks, and keeps of each the exponentials times their slopes, in the memory that
the gradient of the class weights will take. Backward, those need one more factor per row, and are multiplied into the
gradients, block by block. The class weights are not copied: their lengths divide the blocks instead.
"""

import math
import operator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cssoftmax.engine import eager, memory, products, rowwise
from cssoftmax.engine.compiled import build
from cssoftmax.engine.rowwise import LOG2E, STEEP
from cssoftmax.similarity import Rows, Similarity

# Numbers at work at once, a block of products and its class weights: 8 MiB in float32.
BLOCK = 2**21
# Bytes for blocks that find no room in the gradient of the class weights; rows beyond are multiplied a second time.
SPARE = 32 * 2**20
# Most rows multiplied at once, but for those that are kept.
ROWS = 1024


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
    precision: str = "float32",
) -> Tensor:
    """The same as :func:`cssoftmax.engine.eager.loss`, which also takes over what does not suit this engine.

    With ``precision="bf16"`` the factors of the three products are rounded to bfloat16, and so are the products, which
    are added in float32; all else stays float32.
    """
    if not rowwise.suits(embeddings, weight, similarity, scale):
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
    index, ignored = rowwise.columns_of(target.contiguous(), ignore_index)
    shares = rowwise.shares(class_weight, weight, label_smoothing)
    positive, others, total = per_row(embeddings, weight, bias, index, similarity, scale, shares, precision=precision)
    smooth = None
    if total is None or shares is None:
        nll = F.softplus(torch.sub(others, positive, alpha=scale), threshold=STEEP)
    else:
        positive = scale * positive
        log_sum = torch.logaddexp(positive, others)
        nll = log_sum - positive
        smooth = shares.sum() * log_sum - shares[index] * positive - total
    return rowwise.reduce(nll, smooth, index, ignored, class_weight, reduction, label_smoothing)


def per_row(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    index: Tensor,
    similarity: Similarity,
    scale: float | Tensor,
    shares: Tensor | None,
    part: eager.Part | None = None,
    precision: str = "float32",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What the loss of each row needs, (N,): P, others, and with ``shares``, (C,), sum_{j != y} shares_j scale N_ij.

    ``index`` is each row's class, (N,). With a ``part``, C is the number of its classes, ``index`` is -1 for a row
    whose class is elsewhere, and the sums are over the part's classes; only P is over all.
    """
    found: tuple[Tensor, Tensor, Tensor | None] = _Rows.apply(  # type: ignore[no-untyped-call]
        x, w, bias, index, similarity, float(scale), shares, precision, part
    )
    return found


class _Rows(torch.autograd.Function):
    """:func:`per_row`, and its backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        index: Tensor,
        similarity: Similarity,
        scale: float,
        shares: Tensor | None,
        precision: str,
        part: eager.Part | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        norm, left = _left(x, similarity)
        here = slice(None) if part is None else (index >= 0).nonzero().squeeze(1)
        wy = w[index[here]]
        own = (left[here] * wy).sum(1)
        if similarity.normalized != "none":
            own /= rowwise.lengths(wy)[1]
        if bias is not None:
            own += bias[index[here]]
        target = index
        if part is not None:
            local = torch.zeros_like(norm)
            local[here] = own
            own, target = part.add_up(local), part.target
        ctx.similarity, ctx.scale, ctx.part = similarity, scale, part
        ctx.factors = products.Factors(torch.bfloat16 if precision == "bf16" else x.dtype)
        ctx.parts = rowwise.own_class(own, norm, target, similarity, any(ctx.needs_input_grad))
        ctx.save_for_backward(x, w, bias, index, shares)
        ctx.set_materialize_grads(False)
        swept = _sweep(ctx, left, w, bias, index, shares)
        ctx.swept = swept if any(ctx.needs_input_grad) else None
        return ctx.parts.positive.detach(), swept.others, swept.total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            if ctx.part is not None:
                raise RuntimeError('implementation: a sharded head has gradients of gradients with "eager" only')
            return rowwise.differentiably(ctx, _rows_eagerly, upstream)
        x, w, bias, index, shares = ctx.saved_tensors
        similarity, scale, rows = ctx.similarity, ctx.scale, ctx.parts.constants()
        needs_x, _, needs_bias = ctx.needs_input_grad[:3]
        # A second pass through the same graph finds the blocks consumed.
        swept = ctx.swept or _sweep(ctx, _left(x, similarity)[1], w, bias, index, shares)
        ctx.swept = None
        inverse_w, edges, batches, grad_w = swept.inverse_w, swept.edges, swept.batches, swept.grad_w
        kernels, factored = swept.kernels, ctx.factors
        scratch = x.new_empty(_largest(batches, edges), dtype=factored.dtype)
        inverse_x = rowwise.lengths(x)[1].reciprocal_()

        zeros = torch.zeros_like(inverse_x)
        grad_positive, grad_others, grad_total = (zeros if grad is None else grad for grad in upstream)
        grad_own, grad_norm = ctx.parts.gradients(grad_positive)
        if ctx.part is not None:
            grad_own = ctx.part.add_up(grad_own)
        # An embedding's length divides its row of the blocks, which serves both gradients.
        by_row = inverse_x if similarity.normalized == "both" else torch.ones_like(inverse_x)
        grad_own = grad_own * by_row
        if inverse_w is not None:
            grad_own *= inverse_w[index]
        grad_others, grad_total = grad_others * by_row * scale / swept.sums, grad_total * by_row * scale
        factors = (swept.tops - swept.top).exp2_() * grad_others
        grad_x = torch.zeros_like(x) if needs_x else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        if grad_w is not None and not batches:
            grad_w.zero_()

        project = _project if kernels is None or not x.is_contiguous() else kernels.project
        x_factors = x.to(factored.dtype)
        left = {
            group.rows.start: (x[group.rows] * by_row[group.rows, None]).to(factored.dtype)
            for batch in batches
            for group in batch
            if group.room is None
        }

        def differentiate(group: _Group, number: int, start: int, stop: int, right: Tensor, out: Tensor) -> None:
            """Puts the gradient in the products of the group's rows with the classes [start, stop) in ``out``."""
            kept = group.room is not None and shares is None
            block, own = group.block(start, stop), grad_own[group.rows]
            if block is None:
                block = out if out.dtype == x.dtype else torch.empty_like(out, dtype=x.dtype)
                factored.multiply(left[group.rows.start], right.T, out=block)
            if kernels is not None:
                if kept:
                    kernels.finished(block, out, index[group.rows], start, factors[number, group.rows], own)
                    return
                kernels.again(
                    block,
                    _part(inverse_w, start, stop),
                    _part(bias, start, stop),
                    index[group.rows],
                    start,
                    scale * LOG2E,
                    _of(group, rows),
                    swept.top[group.rows],
                    grad_others[group.rows],
                    own,
                )
                if out is not block:
                    out.copy_(block)
                return
            if kept:
                torch.mul(block, factors[number, group.rows, None], out=out)
            else:
                if group.room is None:
                    _finish(block, bias, inverse_w, start, stop)
                negative, slope = rowwise.negative_and_slope(similarity, block, _of(group, rows))
                g = torch.add(-swept.top[group.rows, None], negative, alpha=scale * LOG2E)
                g.exp2_().mul_(grad_others[group.rows, None])
                if shares is not None:
                    g.addcmul_(grad_total[group.rows, None], shares[start:stop])
                if slope is not None:
                    g *= slope
                torch.mul(g, 1 if inverse_w is None else inverse_w[start:stop], out=out)
            place = group.places[number]
            out.view(-1).scatter_(0, place, own[place // (stop - start)].to(out.dtype))

        with products.best(x.numel() * len(w)):
            for number, (start, stop) in enumerate(pairwise(edges)):
                wb = w[start:stop]
                right = factored.of(wb, "weights")
                for batch in batches:
                    g, in_batch = _all_of(batch, start, stop, scratch), _rows_of_all(batch)
                    for group in batch:
                        differentiate(group, number, start, stop, right, _rows_of(group, batch, g))
                    if grad_bias is not None:
                        grad_bias[start:stop] += g.sum(0, dtype=bias.dtype)
                    if grad_x is not None:
                        factored.multiply(g, right, out=grad_x[in_batch], add=True)
                    if grad_w is None:
                        continue
                    if len(batches) == 1 and kernels is not None and inverse_w is not None:
                        product = factored.product(g.T, x_factors, out=grad_w[start:stop])
                        kernels.project(grad_w[start:stop], wb, inverse_w[start:stop], products=product)
                        continue
                    added = batch is not batches[0]
                    factored.multiply(g.T, x_factors[in_batch], out=grad_w[start:stop], add=added)
                    if batch is batches[-1] and inverse_w is not None:
                        project(grad_w[start:stop], wb, inverse_w[start:stop])
            if grad_x is not None and similarity.normalized == "both":
                project(grad_x, x, inverse_x)
        if grad_x is not None and grad_norm is not None:
            grad_x.addcmul_(x, (grad_norm * inverse_x)[:, None])
        return grad_x, grad_w, grad_bias, None, None, None, None, None, None


class _Swept(NamedTuple):
    """What a sweep over the blocks finds, and what the backward pass goes on from.

    ``others`` and ``total`` are as in ``_Rows``. Exponentials are relative to the largest logits: those kept, to the
    rows' in their block, ``tops`` (blocks, N); ``sums``, (N,), to those in all, ``top``. Logits are in powers of 2.
    """

    others: Tensor
    total: Tensor | None
    tops: Tensor
    top: Tensor
    sums: Tensor
    inverse_w: Tensor | None
    grad_w: Tensor | None
    edges: list[int]
    batches: list[list["_Group"]]
    kernels: build.Kernels | None


def _sweep(ctx: Any, left: Tensor, w: Tensor, bias: Tensor | None, index: Tensor, shares: Tensor | None) -> _Swept:
    similarity, scale, rows = ctx.similarity, ctx.scale, ctx.parts.constants()
    (num_rows, size), num_classes = left.shape, len(w)
    inverse_w = None if similarity.normalized == "none" else w.new_empty(num_classes)
    grad_w = memory.empty_like(w) if ctx.needs_input_grad[1] else None
    edges = _edges(num_rows, size, num_classes)
    kernels = None
    if shares is None and build.suits(left, w):
        kernels = build.kernels(similarity, rows)
    batches = _batches(left, w, grad_w, index, edges, keep=any(ctx.needs_input_grad), places=kernels is None)
    scratch = w.new_empty(_largest([batch for batch in batches if not _alone(batch)], edges))
    tops, sums = left.new_empty(2, len(edges) - 1, num_rows)
    total = None if shares is None else left.new_zeros(num_rows)

    factored: products.Factors = ctx.factors
    left = left.to(factored.dtype)
    with products.best(left.numel() * num_classes):
        for number, (start, stop) in enumerate(pairwise(edges)):
            wb = w[start:stop]
            if inverse_w is not None and kernels is not None:
                factors = factored.room("weights", wb)
                kernels.lengths(wb, None, inverse_w[start:stop], None if factors is wb else factors)
            else:
                factors = factored.of(wb, "weights")
                if inverse_w is not None:
                    torch.reciprocal(rowwise.lengths(wb)[1], out=inverse_w[start:stop])
            for batch in batches:
                together = batch[0].block(start, stop) if _alone(batch) else None
                if together is None:
                    together = _all_of(batch, start, stop, scratch)
                product = factored.product(left[_rows_of_all(batch)], factors.T, out=together)
                for group in batch:
                    part, c = _rows_of(group, batch, product), group.block(start, stop)
                    if c is None:
                        c = _rows_of(group, batch, together)
                    if kernels is not None:
                        kernels.forward(
                            c,
                            part,
                            _part(inverse_w, start, stop),
                            _part(bias, start, stop),
                            index[group.rows],
                            start,
                            scale * LOG2E,
                            _of(group, rows),
                            tops[number, group.rows],
                            sums[number, group.rows],
                            keep=group.room is not None,
                        )
                        continue
                    if c.data_ptr() != part.data_ptr():
                        c.copy_(part)
                    _finish(c, bias, inverse_w, start, stop)
                    negative, slope = rowwise.negative_and_slope(similarity, c, _of(group, rows))
                    place = group.places[number]
                    if total is not None and shares is not None:
                        shared = negative * (shares[start:stop] * scale)
                        total[group.rows] += shared.view(-1).index_fill_(0, place, 0).view_as(c).sum(1)
                    # N is not needed again, unless it is c itself and c is kept.
                    z = negative if negative is not c or shares is None else negative.clone()
                    z.view(-1).index_fill_(0, place, -math.inf)
                    top = z.amax(1).mul_(scale * LOG2E).clamp_(min=torch.finfo(z.dtype).min)
                    torch.add(-top[:, None], z, alpha=scale * LOG2E, out=z).exp2_()
                    tops[number, group.rows] = top
                    sums[number, group.rows] = z.sum(1)
                    if group.room is not None and shares is None:
                        if slope is not None:
                            z *= slope
                        torch.mul(z, 1 if inverse_w is None else inverse_w[start:stop], out=c)

    top = tops.amax(0)
    sums = (sums * (tops - top).exp2_()).sum(0)
    others = (top + sums.log2()) / LOG2E
    sums.clamp_(min=torch.finfo(sums.dtype).tiny)  # 0 if there is a single class
    return _Swept(others, total, tops, top, sums, inverse_w, grad_w, edges, batches, kernels)


def _left(x: Tensor, similarity: Similarity) -> tuple[Tensor, Tensor]:
    """The embeddings' lengths, (N,), and what is multiplied with the class weights, (N, D)."""
    norm, length = rowwise.lengths(x)
    return norm, x / length[:, None] if similarity.normalized == "both" else x


def _finish(block: Tensor, bias: Tensor | None, inverse_w: Tensor | None, start: int, stop: int) -> None:
    """From products with the classes [start, stop) to cosines; in place."""
    if inverse_w is not None:
        block *= inverse_w[start:stop]
    if bias is not None:
        block += bias[start:stop]


def _part(by_class: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if by_class is None else by_class[start:stop]


def _of(group: "_Group", rows: Rows) -> Rows:
    """The row parameters of a group, to broadcast against its blocks."""
    return tuple(row[group.rows, None] if isinstance(row, Tensor) and row.ndim else row for row in rows)


class _Group(NamedTuple):
    """Rows, and the memory that keeps their blocks from forward to backward, if any.

    The block of the classes [start, stop) lies at ``room[start * width:]``. ``places`` says, for each block, where in
    it the rows' own classes are; compiled kernels look for themselves.
    """

    rows: slice
    room: Tensor | None
    width: int
    places: list[Tensor]

    def block(self, start: int, stop: int) -> Tensor | None:
        """Memory that keeps what is made of these rows and the classes [start, stop): (rows, stop - start)."""
        if self.room is None:
            return None
        rows, columns = self.rows.stop - self.rows.start, stop - start
        return self.room[start * self.width :][: rows * columns].view(rows, columns)


def _alone(batch: list[_Group]) -> bool:
    """Whether the products of the batch may be made where they are kept."""
    return len(batch) == 1 and batch[0].room is not None


def _largest(batches: list[list[_Group]], edges: list[int]) -> int:
    """Numbers in the largest block of a batch."""
    rows = max((_rows_of_all(batch).stop - _rows_of_all(batch).start for batch in batches), default=0)
    return int(rows * max(map(operator.sub, edges[1:], edges)))


def _all_of(batch: list[_Group], start: int, stop: int, scratch: Tensor) -> Tensor:
    """Memory for what is made of the batch and the classes [start, stop)."""
    rows, columns = _rows_of_all(batch).stop - _rows_of_all(batch).start, stop - start
    return scratch[: rows * columns].view(rows, columns)


def _rows_of_all(batch: list[_Group]) -> slice:
    return slice(batch[0].rows.start, batch[-1].rows.stop)


def _rows_of(group: _Group, batch: list[_Group], block: Tensor) -> Tensor:
    """The group's rows of a block of its batch."""
    first = batch[0].rows.start
    return block[group.rows.start - first : group.rows.stop - first]


def _edges(num_rows: int, size: int, num_classes: int) -> list[int]:
    """Where the blocks of classes begin, and where the last one ends."""
    columns = max(1, BLOCK // (min(num_rows, ROWS) + size))
    if columns > 64:
        columns -= columns % 64
    return [*range(0, num_classes, columns), num_classes]


def _batches(
    x: Tensor, w: Tensor, grad_w: Tensor | None, index: Tensor, edges: list[int], keep: bool, places: bool
) -> list[list[_Group]]:
    """All rows, in batches multiplied at once, made of groups.

    First come those kept in the gradient to come, or in spare memory where that does for all, then those kept in spare
    memory, then those not kept. The first batch's product takes the place of what is kept in the gradient.
    """
    num_rows, num_classes, size = len(x), len(w), w.shape[1]
    spare = SPARE // (num_classes * x.element_size()) if keep else 0
    batches: list[list[_Group]] = []
    start = 0

    def add(stop: int, room: Tensor | None, width: int) -> None:
        nonlocal start
        group = _Group(slice(start, stop), room, width, _places(index[start:stop], edges) if places else [])
        if batches and stop - batches[-1][0].rows.start <= ROWS:
            batches[-1].append(group)
        else:
            batches.append([group])
        start = stop

    if num_rows > spare and grad_w is not None:
        add(min(num_rows, size), grad_w.view(-1), size)
    if start < num_rows and spare:
        stop = min(num_rows, start + spare)
        add(stop, x.new_empty(num_classes * (stop - start)), stop - start)
    while start < num_rows:
        add(min(num_rows, (start // ROWS + 1) * ROWS), None, 0)
    return batches


def _places(index: Tensor, edges: list[int]) -> list[Tensor]:
    """Where in each block, read row by row, the rows' own classes are; one of -1 is in none."""
    row = torch.arange(len(index), device=index.device)
    if len(edges) == 2 and (len(index) == 0 or int(index.min()) >= 0):
        return [row * edges[1] + index]
    index, row = index.sort()
    first = torch.searchsorted(index, torch.tensor(edges, device=index.device)).tolist()
    return [
        row[a:b] * (stop - start) + (index[a:b] - start)
        for (a, b), (start, stop) in zip(pairwise(first), pairwise(edges), strict=True)
    ]


def _project(gradient: Tensor, vectors: Tensor, inverse: Tensor) -> None:
    """From the gradient in directions, divided by the vectors' lengths, to that in the vectors; in place."""
    along = torch.linalg.vecdot(gradient, vectors).mul_(inverse.square())
    gradient.addcmul_(vectors, along[:, None], value=-1)


def _rows_eagerly(
    ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, index: Tensor, shares: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    positive, negative = rowwise.eagerly(x, w, bias, index, ctx.similarity, ctx.parts)
    z, column = ctx.scale * negative, index[:, None]
    others = z.scatter(1, column, torch.finfo(z.dtype).min).logsumexp(1)
    return positive, others, None if shares is None else (z * shares).scatter(1, column, 0).sum(1)
