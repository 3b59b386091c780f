"""A similarity's N(c, rows) and its slope as Triton source, from the one definition in PyTorch.

Both methods are run once on stand-in tensors; the elementwise operations that they call, recorded by ``make_fx`` and
reduced to PyTorch's core set, become one line of Triton each. A similarity of the user's own is translated like those
of this package. Its settings (numbers, flags) become constants of the source: one that changes from step to step should
be a tensor, lest each value be traced anew. Whatever differs between rows comes in through the row parameters.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from cssoftmax.similarity import Row, Rows, Similarity

aten = torch.ops.aten


class NoTranslation(Exception):
    """The similarity does something that has no translation; the message says what."""


def translate(similarity: Similarity, num_rows: int) -> str:
    """Source of two functions, ``negative`` and ``negative_slope``, for a similarity with ``num_rows`` row parameters.

    Both take the tile of cosines ``c``, a pointer ``rows`` to the row parameters (num_rows, N), the numbers ``i`` of
    the tile's rows, ``inside`` (which of them are below N) and ``N``.

    Raises:
        NoTranslation: an operation is unknown here, or the result hangs on more than c, the rows and fixed settings.

    >>> from cssoftmax.similarity import SOSoftmax
    >>> print(translate(SOSoftmax(0.5), num_rows=1).split("\\n\\n\\n")[0])
    @triton.jit
    def negative(c, rows, i, inside, N):
        row0 = tl.load(rows + 0 * N + i, mask=inside, other=0.0)[:, None]
        pow_1 = c * c
        pow_2 = row0 * row0
        sub = pow_1 - pow_2
        return sub
    """
    settings: list[tuple[str, object]] = []
    for name, value in sorted(getattr(similarity, "__dict__", {"its attributes": similarity}).items()):
        if isinstance(value, Tensor):  # matters only through the rows: reading it in a negative is refused below
            settings.append((name, "tensor"))
        elif value is None or isinstance(value, int | float | str):
            settings.append((name, value))
        else:
            raise NoTranslation(f"{name}: a setting can be a number, a flag, a string or a tensor")
    result = _translate(_Key(similarity, (type(similarity), tuple(settings), num_rows)))
    if isinstance(result, NoTranslation):
        raise result
    return result


class _Key:
    """A similarity that counts as equal to another of the same type and settings."""

    def __init__(self, similarity: Similarity, settings: tuple[type, tuple[tuple[str, object], ...], int]) -> None:
        self.similarity, self.settings = similarity, settings

    def __hash__(self) -> int:
        return hash(self.settings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.settings == other.settings


@lru_cache(maxsize=256)
def _translate(key: _Key) -> str | NoTranslation:
    """The source, or why there is none: a failure costs a trace as well, so it is remembered too."""
    num_rows = key.settings[-1]
    methods = {name: getattr(key.similarity, name) for name in ("negative", "negative_slope")}
    try:
        return "\n\n".join(_function(name, method, num_rows) for name, method in methods.items())
    except NoTranslation as reason:
        return reason


def _function(name: str, method: Callable[[Tensor, Rows], Tensor], num_rows: int) -> str:
    def traced(c: Tensor, *rows: Row) -> Tensor:
        return method(c, rows)

    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            graph = make_fx(traced, decomposition_table=dict(core_aten_decompositions()), tracing_mode="fake")(
                torch.zeros(2, 3), *(torch.zeros(2, 1) for _ in range(num_rows))
            ).graph
    except Exception as error:  # whatever a user's method raises
        reason = str(error).split("\n")[0]
        raise NoTranslation(f"{name} does not run on stand-in tensors ({reason})") from error
    graph.eliminate_dead_code()

    lines = []
    inputs = dict(zip(graph.find_nodes(op="placeholder"), ["c", *(f"row{k}" for k in range(num_rows))], strict=True))
    for index, node in enumerate(inputs):
        if index and node.users:
            lines.append(f"{inputs[node]} = tl.load(rows + {index - 1} * N + i, mask=inside, other=0.0)[:, None]")
    values: dict[Node, str] = dict(inputs)
    for node in graph.nodes:
        if node.op == "get_attr":
            raise NoTranslation(f"{name} uses a tensor other than the cosines and the row parameters")
        if node.op == "call_function":
            line = _line(name, node, values)
            if line in values.values():  # a name or a number: nothing to compute
                values[node] = line
            else:
                values[node] = node.name
                lines.append(f"{node.name} = {line}")
    (result,) = next(node for node in graph.nodes if node.op == "output").args
    value = _text(result, values)
    if result.meta["val"].dtype == torch.bool:
        value = f"{value}.to(tl.float32)"
    if result.meta["val"].shape != (2, 3):
        value = f"tl.broadcast_to({value}, c.shape)"
    body = "".join(f"    {line}\n" for line in (*lines, f"return {value}"))
    return f"@triton.jit\ndef {name}(c, rows, i, inside, N):\n{body}"


def _line(name: str, node: Node, values: dict[Node, str]) -> str:
    """The Triton expression for one operation."""
    result = node.meta["val"]
    if not isinstance(result, Tensor) or result.dtype not in (torch.float32, torch.bool):
        kind = result.dtype if isinstance(result, Tensor) else type(result).__name__
        raise NoTranslation(f"{name} computes in {kind} ({node.target}); only float32 and bool are translated")
    if result.ndim == 2 and node.target not in _CONSTANTS and result.shape not in ((2, 3), (2, 1), (1, 1)):
        raise NoTranslation(f"{name} changes the shape of its tensors ({node.target})")
    expression = _EXPRESSIONS.get(node.target)
    if expression is None:
        raise NoTranslation(f"{name}: {node.target} has no translation")
    as_float = result.dtype == torch.float32 and node.target is not aten.where.self
    arguments = [_text(argument, values, as_float) for argument in node.args]
    try:
        return expression(node, *arguments)
    except (TypeError, ValueError) as error:
        raise NoTranslation(f"{name}: {node.target} has no translation for these arguments ({error})") from error


def _text(argument: Any, values: dict[Node, str], as_float: bool = False) -> str:
    """An argument as it stands in the source; a truth value counts as 0.0 or 1.0 where a float comes out."""
    if isinstance(argument, Node):
        boolean = argument.meta["val"].dtype == torch.bool
        return f"{values[argument]}.to(tl.float32)" if boolean and as_float else values[argument]
    if isinstance(argument, bool) or argument is None:
        return repr(argument)
    if isinstance(argument, int | float):
        return repr(float(argument)) if math.isfinite(argument) else f'float("{argument}")'
    return ""


def _plain(template: str) -> Callable[..., str]:
    """An operation whose arguments fill a template, in order; more arguments than places have no translation."""
    places = sum(f"{{{k}}}" in template for k in range(3))

    def expression(node: Node, *arguments: str) -> str:
        if len(arguments) != places or node.kwargs:  # alpha=, rounding_mode=
            raise ValueError(f"{', '.join(map(str, node.args))}, {dict(node.kwargs)}")
        return template.format(*arguments)

    return expression


def _maximum(a: str, b: str) -> str:
    return f"tl.maximum({a}, {b}, propagate_nan=tl.PropagateNan.ALL)"


def _minimum(a: str, b: str) -> str:
    return f"tl.minimum({a}, {b}, propagate_nan=tl.PropagateNan.ALL)"


def _clamp(node: Node, value: str, low: str = "None", high: str = "None") -> str:
    low, high = (_text(node.kwargs[key], {}) if key in node.kwargs else v for key, v in (("min", low), ("max", high)))
    value = value if low == "None" else _maximum(value, low)
    return value if high == "None" else _minimum(value, high)


def _power(node: Node, base: str, exponent: str) -> str:
    u = float(exponent)
    if u == 0:
        return f"tl.full({base}.shape, 1.0, tl.float32)"
    if u in (1, 2, 3, 4):
        return " * ".join([base] * int(u))
    if u == 0.5:
        return f"tl.sqrt({base})"
    if u == -1:
        return f"1.0 / {base}"
    if u == int(u):
        raise ValueError(exponent)
    return f"tl.exp2({u!r} * tl.log2({base}))"  # as torch: 0 at 0 for u > 0, nan below 0


def _cast(node: Node, value: str, *_: str) -> str:
    return f"{value} != 0" if node.meta["val"].dtype == torch.bool else value


def _full(node: Node, number: str) -> str:
    """A constant takes the shape of the cosines, which broadcasts against everything."""
    if node.meta["val"].dtype == torch.bool:
        raise ValueError("a constant truth value")
    return number if node.meta["val"].ndim == 0 else f"tl.full(c.shape, {number}, tl.float32)"


_CONSTANTS: dict[Any, Callable[..., str]] = {
    aten.full_like.default: lambda node, like, number, *_: _full(node, number),
    aten.full.default: lambda node, size, number, *_: _full(node, number),
    aten.ones_like.default: lambda node, *_: _full(node, "1.0"),
    aten.zeros_like.default: lambda node, *_: _full(node, "0.0"),
    aten.scalar_tensor.default: lambda node, number, *_: _full(node, number),
}

_EXPRESSIONS: dict[Any, Callable[..., str]] = _CONSTANTS | {
    operation: _plain(template)
    for template, operations in {
        "{0}": (aten.alias.default, aten.detach.default, aten.clone.default),
        "-{0}": (aten.neg.default,),
        "{0} + {1}": (aten.add.Tensor, aten.add.Scalar),
        "{0} - {1}": (aten.sub.Tensor, aten.sub.Scalar),
        "{1} - {0}": (aten.rsub.Scalar, aten.rsub.Tensor),
        "{0} * {1}": (aten.mul.Tensor, aten.mul.Scalar),
        "{0} / {1}": (aten.div.Tensor, aten.div.Scalar),
        "1.0 / {0}": (aten.reciprocal.default,),
        "{0} > {1}": (aten.gt.Tensor, aten.gt.Scalar),
        "{0} >= {1}": (aten.ge.Tensor, aten.ge.Scalar),
        "{0} < {1}": (aten.lt.Tensor, aten.lt.Scalar),
        "{0} <= {1}": (aten.le.Tensor, aten.le.Scalar),
        "{0} == {1}": (aten.eq.Tensor, aten.eq.Scalar),
        "{0} != {1}": (aten.ne.Tensor, aten.ne.Scalar),
        "{0} & {1}": (aten.logical_and.default, aten.bitwise_and.Tensor),
        "{0} | {1}": (aten.logical_or.default, aten.bitwise_or.Tensor),
        "{0} == 0": (aten.logical_not.default, aten.bitwise_not.default),
        "tl.where({0}, {1}, {2})": (aten.where.self,),
        "tl.abs({0})": (aten.abs.default,),
        "tl.exp({0})": (aten.exp.default,),
        "tl.exp2({0})": (aten.exp2.default,),
        "tl.log({0})": (aten.log.default,),
        "tl.log2({0})": (aten.log2.default,),
        "tl.sqrt({0})": (aten.sqrt.default,),
        "tl.rsqrt({0})": (aten.rsqrt.default,),
        "tl.sin({0})": (aten.sin.default,),
        "tl.cos({0})": (aten.cos.default,),
        "tl.erf({0})": (aten.erf.default,),
        "tl.floor({0})": (aten.floor.default,),
        "tl.ceil({0})": (aten.ceil.default,),
        "1.0 / (1.0 + tl.exp(-{0}))": (aten.sigmoid.default,),
        _maximum("{0}", "0.0"): (aten.relu.default,),
        _maximum("{0}", "{1}"): (aten.maximum.default, aten.clamp_min.default, aten.clamp_min.Tensor),
        _minimum("{0}", "{1}"): (aten.minimum.default, aten.clamp_max.default, aten.clamp_max.Tensor),
    }.items()
    for operation in operations
}
_EXPRESSIONS |= {
    aten.clamp.default: _clamp,
    aten.pow.Tensor_Scalar: _power,
    aten._to_copy.default: _cast,
}
