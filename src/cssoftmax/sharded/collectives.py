"""The ranks of a sharded loss, and exchanges between them, those of gradients among them.

Each says what it means when a rank no longer answers. The functions of autograd send gradients back the way that values
came.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

P = ParamSpec("P")
R = TypeVar("R")
Group = Any

# Bytes up to which all ranks' maxima and sums are gathered at once; beyond, two reductions move less.
ONE_EXCHANGE = 2**20


def answered(collective: Callable[P, R]) -> Callable[P, R]:
    """Says what it means when an exchange between ranks fails."""

    @wraps(collective)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return collective(*args, **kwargs)
        except RuntimeError as error:
            raise RuntimeError(
                "a rank of the sharded loss no longer answers; look at what the rank that stopped first has printed "
                f"({str(error).splitlines()[0]})"
            ) from error

    return run


@dataclass(frozen=True)
class Ranks:
    """The processes of a sharded loss: ``classes`` share out the classes; each group of ``data`` has the same ones."""

    mesh: DeviceMesh

    @property
    def classes(self) -> Group:
        return self.mesh.get_group(self.mesh.ndim - 1)

    @property
    def data(self) -> list[Group]:
        return [self.mesh.get_group(dimension) for dimension in range(self.mesh.ndim - 1)]

    @property
    def number(self) -> int:
        """Of those that share out the classes."""
        number: int = self.mesh.size(self.mesh.ndim - 1)
        return number

    @property
    def rank(self) -> int:
        """This process among them."""
        return self.mesh.get_local_rank(self.mesh.ndim - 1)

    def bounds(self, rows: int, rank: int | None = None) -> tuple[int, int]:
        """Of ``rows`` that ``torch.chunk`` shares out, the first that a rank has, and the first after those."""
        chunk, rank = -(-rows // self.number), self.rank if rank is None else rank
        return min(rank * chunk, rows), min((rank + 1) * chunk, rows)


@answered
def all_reduce(values: Tensor, group: Group, op: Any = distributed.ReduceOp.SUM) -> Tensor:
    """In place."""
    distributed.all_reduce(values, op, group=group)
    return values


@answered
def broadcast(values: Tensor, group: Group) -> Tensor:
    """In place, from the first of the group."""
    distributed.broadcast(values, group=group, group_src=0)
    return values


@answered
def all_gathered(values: Tensor, group: Group) -> Tensor:
    """Those of all ranks, as many on each, one after the other."""
    number = distributed.get_world_size(group)
    gathered = values.new_empty(number * len(values), *values.shape[1:])
    run = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor  # before PyTorch 2.13
    run(gathered, values.contiguous(), group=group)
    return gathered


@answered
def reduce_scattered(values: Tensor, group: Group) -> Tensor:
    """The sum of all ranks' values, of which each rank has an equal part."""
    part = values.new_empty(len(values) // distributed.get_world_size(group), *values.shape[1:])
    run = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor  # likewise
    run(part, values.contiguous(), group=group)
    return part


@answered
def exchanged(values: Tensor, sent: Sequence[int], received: Sequence[int], group: Group) -> Tensor:
    """To each rank, one after the other, ``sent`` numbers, and from each ``received``."""
    found = values.new_empty(sum(received))
    distributed.all_to_all_single(found, values.contiguous(), list(received), list(sent), group=group)
    return found


def gather(values: Tensor, sizes: Sequence[int], group: Group) -> Tensor:
    """The rows of all ranks, ``sizes`` of them, one after the other."""
    most = max(sizes)
    if min(sizes) == most:
        return all_gathered(values, group)
    padded = values.new_zeros(most, *values.shape[1:])
    padded[: len(values)] = values
    return torch.cat(
        [part[:size] for part, size in zip(torch.split(all_gathered(padded, group), most), sizes, strict=True)]
    )


class Gather(torch.autograd.Function):
    """:func:`gather`; its gradient, summed over the ranks, returns to the rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: Sequence[int], group: Group) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        return gather(values, sizes, group)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        found: Tensor = Scatter.apply(upstream, ctx.sizes, ctx.group)  # type: ignore[no-untyped-call]
        return found, None, None


class Scatter(torch.autograd.Function):
    """The sum over ranks, of which each gets its own rows."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: Sequence[int], group: Group) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        most = max(sizes)
        if min(sizes) < most:
            parts = torch.split(values, list(sizes))
            values = torch.cat([F.pad(part, (0, 0) * (part.ndim - 1) + (0, most - len(part))) for part in parts])
        return reduce_scattered(values, group)[: sizes[distributed.get_rank(group)]]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        found: Tensor = Gather.apply(upstream, ctx.sizes, ctx.group)  # type: ignore[no-untyped-call]
        return found, None, None


class Transpose(torch.autograd.Function):
    """From some columns of all ranks' rows to all columns of some rows; and the gradient back."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, sizes: list[int], widths: list[int], rank: int, group: Group) -> Tensor:
        ctx.sizes, ctx.widths, ctx.rank, ctx.group = sizes, widths, rank, group
        rows, width = sizes[rank], widths[rank]
        sent, received = [size * width for size in sizes], [rows * other for other in widths]
        found = exchanged(columns.flatten(), sent, received, group)
        return torch.cat(
            [part.view(rows, other) for part, other in zip(torch.split(found, received), widths, strict=True)], 1
        )

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, width = ctx.sizes[ctx.rank], ctx.widths[ctx.rank]
        sent, received = [rows * other for other in ctx.widths], [size * width for size in ctx.sizes]
        parts = torch.cat([part.flatten() for part in torch.split(upstream, ctx.widths, 1)])
        return exchanged(parts, sent, received, ctx.group).view(sum(ctx.sizes), width), None, None, None, None


class Sum(torch.autograd.Function):
    """The sum over ranks, on all of them; so are the gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, groups: list[Group]) -> Tensor:
        ctx.groups = groups
        values = values.clone()
        for group in groups:
            all_reduce(values, group)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        total: Tensor = Sum.apply(upstream.contiguous(), ctx.groups)  # type: ignore[no-untyped-call]
        return total, None


class LogSumExp(torch.autograd.Function):
    """Logarithms of sums, (k, N), as one over the k and over all ranks, (N,)."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Group) -> Tensor:
        ctx.group = group
        top = parts.amax(0).clamp_(min=torch.finfo(parts.dtype).min)
        sums = (parts - top).exp_().sum(0)
        number = distributed.get_world_size(group)
        if number * 2 * top.nbytes <= ONE_EXCHANGE:
            tops, all_sums = all_gathered(torch.stack([top, sums])[None], group).unbind(1)
            top = tops.amax(0)
            sums = (all_sums * (tops - top).exp_()).sum(0)
        else:
            local = top.clone()
            top = all_reduce(top, group, distributed.ReduceOp.MAX)
            sums = all_reduce(sums.mul_((local - top).exp_()), group)
        total = top + sums.log()
        ctx.save_for_backward(parts, total)
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        parts, total = ctx.saved_tensors
        upstream = Sum.apply(upstream.contiguous(), [ctx.group])  # type: ignore[no-untyped-call]
        # Where nothing is summed, nothing is to be shared.
        share = torch.where(parts.isneginf(), 0, (parts - torch.where(total.isneginf(), 0, total)).exp())
        return share * upstream, None


class SumBackward(torch.autograd.Function):
    """Its argument, whose gradient is summed over ranks."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, groups: list[Group]) -> Tensor:
        ctx.groups = groups
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        total: Tensor = Sum.apply(upstream.contiguous(), ctx.groups)  # type: ignore[no-untyped-call]
        return total, None


class Scaled(torch.autograd.Function):
    """Its argument, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream * ctx.factor, None
