"""Matrix products on a CPU, by whichever library is the fastest at float32 accuracy on the processor at hand."""

import math
import os
import time
from functools import cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

# "blas" or "onednn"; None measures once per process.
LIBRARY: str | None = os.environ.get("CSSOFTMAX_MATMUL")

MATMUL: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
# What its ``fp32_precision`` must say. oneDNN is reached by allowing it bfloat16, of which it
# makes no use on most processors; where it does, its error shows and rules it out.
SETTING = {"blas": "ieee", "onednn": "bf16"}

# Multiply-adds below which a choice is not worth its measurement.
SMALL = 2**18


@cache
def fastest() -> str:
    """The library that multiplies float32 matrices fastest, among those with float32 accuracy; takes about 20 ms."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(256, 512, generator=generator)
    b = torch.randn(512, 512, generator=generator)
    exact = a.double() @ b.double().T
    seconds, error = dict.fromkeys(SETTING, math.inf), {}
    for _ in range(8):  # in turns, so that whatever else the processor does meets all
        for name in SETTING:
            with using(name):
                c = a @ b.T
                error[name] = float((c - exact).abs().max())
                start = time.perf_counter()
                torch.mm(a, b.T, out=c)
                torch.mm(c, b)
                torch.mm(c.T, a)
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    accurate = [name for name in SETTING if error[name] <= 4 * error["blas"]]
    return min(accurate, key=seconds.__getitem__)


class using:
    """Sends the float32 products of a ``with`` block to a library, and keeps autocast out of them.

    What the process had set before is put back in the end.
    """

    def __init__(self, library: str) -> None:
        if library not in SETTING:
            raise ValueError(f"CSSOFTMAX_MATMUL: {library!r} is not one of {', '.join(map(repr, SETTING))}")
        self.precision = SETTING[library]

    def __enter__(self) -> None:
        self.autocast = torch.is_autocast_enabled("cpu")
        if self.autocast:
            torch.set_autocast_enabled("cpu", False)
        self.before = MATMUL.fp32_precision
        MATMUL.fp32_precision = self.precision

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        MATMUL.fp32_precision = self.before
        if self.autocast:
            torch.set_autocast_enabled("cpu", True)


def best(multiply_adds: int) -> using:
    """The context for products of this size."""
    return using(LIBRARY or (fastest() if multiply_adds > SMALL else "blas"))


class Factors:
    """Products whose factors are of another type than the rest, block after block.

    Memory for the factors and the product is taken once: to ask the system for it anew each time takes long.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.rooms: dict[str, Tensor] = {}

    def of(self, values: Tensor, role: str) -> Tensor:
        """The values in the type of factors, until the next ones of this role."""
        return values if values.dtype == self.dtype else self.room(role, values).copy_(values)

    def multiply(self, a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
        """out = a @ b, or out += a @ b, in the type of ``out``."""
        if add and self.dtype == out.dtype:
            out.addmm_(a, b)
            return
        product = self.product(a, b, out)
        if add:
            out.add_(product)
        elif product is not out:
            out.copy_(product)

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """a @ b in ``out``, or, in the factors' type, in memory that the next product takes."""
        return torch.mm(a, b, out=self.room("product", out))

    def room(self, role: str, like: Tensor) -> Tensor:
        """Memory for as many factors, until the next time it is asked for; ``like`` itself if it is of their type."""
        if like.dtype == self.dtype:
            return like
        room = self.rooms.get(role)
        if room is None or room.numel() < like.numel():
            room = self.rooms[role] = like.new_empty(like.numel(), dtype=self.dtype)
        return room[: like.numel()].view(like.shape)
