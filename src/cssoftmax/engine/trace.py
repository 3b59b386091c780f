"""A similarity's N(c, rows) and its slope in another language, from the one definition in PyTorch.

Both methods are run once on stand-in tensors; the elementwise operations that they call, recorded by ``make_fx`` and
reduced to PyTorch's core set, become one line each. A similarity of the user's own is translated like those of this
package. Its settings (numbers, flags) become constants of the source: one that changes from step to step should be a
tensor, lest each value be traced anew. Whatever differs between rows comes in through the row parameters.

A language is a dictionary of templates: "number" and "as_float" (of a truth value), "full" (a constant of the cosines'
shape), and one for each of the functions in ``FUNCTIONS``. Arithmetic is written alike in all.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from cssoftmax.similarity import Row, Similarity

aten = torch.ops.aten

Language = Mapping[str, str]


class NoTranslation(Exception):
    """The similarity does something that has no translation; the message says what."""


@dataclass(frozen=True)
class Key:
    """A similarity that counts as equal to another of the same type and settings."""

    similarity: Similarity = field(compare=False)
    kind: type
    settings: tuple[tuple[str, object], ...]
    num_rows: int

    @classmethod
    def of(cls, similarity: Similarity, num_rows: int) -> "Key":
        """For a similarity with ``num_rows`` row parameters."""
        settings: list[tuple[str, object]] = []
        for name, value in getattr(similarity, "__dict__", {"its attributes": similarity}).items():
            if isinstance(value, Tensor):  # matters only through the rows: reading it in a negative is refused below
                settings.append((name, "tensor"))
            elif value is None or isinstance(value, int | float | str):
                settings.append((name, value))
            else:
                raise NoTranslation(f"{name}: a setting can be a number, a flag, a string or a tensor")
        return cls(similarity, type(similarity), tuple(settings), num_rows)


class Line(NamedTuple):
    """``name = expression``: a float, or a truth value."""

    name: str
    expression: str
    is_truth: bool


class Function(NamedTuple):
    """Its lines, the row parameters ``row0``, ``row1``, ... that they use, and the result.

    ``spread`` says that the result, a name or a number, does not have the shape of the cosines, ``c``.
    """

    rows: list[int]
    lines: list[Line]
    result: str
    spread: bool


def function(key: Key, name: str, language: Language) -> Function:
    """``negative``, ``negative_slope``, ``positive`` or the slope of that, ``positive_slope``, of the similarity.

    Raises:
        NoTranslation: an operation is unknown here, or the result hangs on more than c, the rows and fixed settings.
    """
    method = getattr(key.similarity, name.replace("positive_slope", "positive"))

    def traced(c: Tensor, *rows: Row) -> Tensor:
        if name != "positive_slope":
            result: Tensor = method(c, rows)
            return result
        with torch.enable_grad():
            c = c.detach().requires_grad_()
            value = method(c, rows)
            return torch.autograd.grad(value, c, torch.ones_like(value))[0]

    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            graph = make_fx(traced, decomposition_table=_decompositions(), tracing_mode="fake")(
                torch.zeros(2, 3), *(torch.zeros(2, 1) for _ in range(key.num_rows))
            ).graph
    except Exception as error:  # whatever a user's method raises
        reason = str(error).split("\n")[0]
        raise NoTranslation(f"{name} does not run on stand-in tensors ({reason})") from error
    graph.eliminate_dead_code()

    lines: list[Line] = []
    inputs = list(graph.find_nodes(op="placeholder"))
    values: dict[Node, str] = dict(zip(inputs, ["c", *(f"row{k}" for k in range(key.num_rows))], strict=True))
    for node in graph.nodes:
        if node.op == "get_attr":
            raise NoTranslation(f"{name} uses a tensor other than the cosines and the row parameters")
        if node.op == "call_function":
            text = _expression(name, node, values, language)
            if text in values.values():  # a name or a number: nothing to compute
                values[node] = text
            else:
                values[node] = node.name
                lines.append(Line(node.name, text, node.meta["val"].dtype == torch.bool))
    (result,) = next(node for node in graph.nodes if node.op == "output").args
    value = _text(result, values, language, as_float=True)
    used = [k for k, node in enumerate(inputs[1:]) if node.users]
    return Function(used, lines, value, result.meta["val"].shape != (2, 3))


@cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Into core operations; PyTorch takes a tenth of a second to list them."""
    return dict(core_aten_decompositions())


def _expression(name: str, node: Node, values: dict[Node, str], language: Language) -> str:
    """The expression for one operation."""
    result = node.meta["val"]
    if not isinstance(result, Tensor) or result.dtype not in (torch.float32, torch.bool):
        kind = result.dtype if isinstance(result, Tensor) else type(result).__name__
        raise NoTranslation(f"{name} computes in {kind} ({node.target}); only float32 and bool are translated")
    if result.ndim == 2 and node.target not in _FULL and result.shape not in ((2, 3), (2, 1), (1, 1)):
        raise NoTranslation(f"{name} changes the shape of its tensors ({node.target})")
    expression = _EXPRESSIONS.get(node.target)
    if expression is None:
        raise NoTranslation(f"{name}: {node.target} has no translation")
    as_float = result.dtype == torch.float32 and node.target is not aten.where.self
    arguments = [_text(argument, values, language, as_float) for argument in node.args]
    try:
        return expression(language, node, *arguments)
    except (TypeError, ValueError) as error:
        raise NoTranslation(f"{name}: {node.target} has no translation for these arguments ({error})") from error


def _text(argument: Any, values: dict[Node, str], language: Language, as_float: bool = False) -> str:
    """An argument as it stands in the source; a truth value counts as 0.0 or 1.0 where a float comes out."""
    if isinstance(argument, Node):
        truth = argument.meta["val"].dtype == torch.bool
        return language["as_float"].format(values[argument]) if truth and as_float else values[argument]
    if isinstance(argument, bool) or argument is None:
        return repr(argument)
    if isinstance(argument, int | float):
        text = repr(float(argument)) if math.isfinite(argument) else f'float("{argument}")'
        return language["number"].format(text)
    return ""


def _plain(template: str, places: int) -> Callable[..., str]:
    """An operation whose arguments fill a template, in order; more arguments than places have no translation."""

    def expression(language: Language, node: Node, *arguments: str) -> str:
        if len(arguments) != places or node.kwargs:  # alpha=, rounding_mode=
            raise ValueError(f"{', '.join(map(str, node.args))}, {dict(node.kwargs)}")
        return language.get(template, template).format(*arguments)

    return expression


def _relu(language: Language, node: Node, value: str) -> str:
    return language["maximum"].format(value, _text(0.0, {}, language))


def _clamp(language: Language, node: Node, value: str, low: str = "None", high: str = "None") -> str:
    low, high = (
        _text(node.kwargs[key], {}, language) if key in node.kwargs else given
        for key, given in (("min", low), ("max", high))
    )
    value = value if low == "None" else language["maximum"].format(value, low)
    return value if high == "None" else language["minimum"].format(value, high)


SMALLEST = torch.finfo(torch.float32).tiny


def _power(language: Language, node: Node, base: str, exponent: str) -> str:
    u = float(node.args[1])  # type: ignore[arg-type]
    if u == 0:
        return language["full"].format(_text(1.0, {}, language))
    if u in (1, 2, 3, 4):
        return " * ".join([base] * int(u))
    if u == 0.5:
        return language["sqrt"].format(base)
    if u == -1:
        return f"{_text(1.0, {}, language)} / {base}"
    if u == int(u):
        raise ValueError(exponent)
    if abs(u) < SMALLEST:  # which float32 would make 0, and the power of 0 not 0 but nan
        exponent = _text(math.copysign(SMALLEST, u), {}, language)
    # As torch: 0 at 0 for u > 0, nan below 0.
    return language["exp2"].format(f"{exponent} * {language['log2'].format(base)}")


def _cast(language: Language, node: Node, value: str, *_: str) -> str:
    return f"{value} != 0" if node.meta["val"].dtype == torch.bool else value


def _sigmoid(language: Language, node: Node, value: str) -> str:
    one = _text(1.0, {}, language)
    return f"{one} / ({one} + {language['exp'].format(f'-{value}')})"


def _reciprocal(language: Language, node: Node, value: str) -> str:
    return f"{_text(1.0, {}, language)} / {value}"


def _constant(language: Language, node: Node, number: str) -> str:
    """It takes the shape of the cosines, which broadcasts against everything."""
    if node.meta["val"].dtype == torch.bool:
        raise ValueError("a constant truth value")
    return number if node.meta["val"].ndim == 0 else language["full"].format(number)


_FULL: dict[Any, Callable[..., str]] = {
    aten.full_like.default: lambda language, node, like, number, *_: _constant(language, node, number),
    aten.full.default: lambda language, node, size, number, *_: _constant(language, node, number),
    aten.ones_like.default: lambda language, node, *_: _constant(language, node, _text(1.0, {}, language)),
    aten.zeros_like.default: lambda language, node, *_: _constant(language, node, _text(0.0, {}, language)),
    aten.scalar_tensor.default: lambda language, node, number, *_: _constant(language, node, number),
}

FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "where": (aten.where.self,),
    "abs": (aten.abs.default,),
    "exp": (aten.exp.default,),
    "exp2": (aten.exp2.default,),
    "log": (aten.log.default,),
    "log2": (aten.log2.default,),
    "sqrt": (aten.sqrt.default,),
    "rsqrt": (aten.rsqrt.default,),
    "sin": (aten.sin.default,),
    "cos": (aten.cos.default,),
    "erf": (aten.erf.default,),
    "floor": (aten.floor.default,),
    "ceil": (aten.ceil.default,),
    "maximum": (aten.maximum.default, aten.clamp_min.default, aten.clamp_min.Tensor),
    "minimum": (aten.minimum.default, aten.clamp_max.default, aten.clamp_max.Tensor),
}
_ARITHMETIC: dict[str, tuple[Any, ...]] = {
    "{0}": (aten.alias.default, aten.detach.default, aten.clone.default),
    "-{0}": (aten.neg.default,),
    "{0} + {1}": (aten.add.Tensor, aten.add.Scalar),
    "{0} - {1}": (aten.sub.Tensor, aten.sub.Scalar),
    "{1} - {0}": (aten.rsub.Scalar, aten.rsub.Tensor),
    "{0} * {1}": (aten.mul.Tensor, aten.mul.Scalar),
    "{0} / {1}": (aten.div.Tensor, aten.div.Scalar),
    "{0} > {1}": (aten.gt.Tensor, aten.gt.Scalar),
    "{0} >= {1}": (aten.ge.Tensor, aten.ge.Scalar),
    "{0} < {1}": (aten.lt.Tensor, aten.lt.Scalar),
    "{0} <= {1}": (aten.le.Tensor, aten.le.Scalar),
    "{0} == {1}": (aten.eq.Tensor, aten.eq.Scalar),
    "{0} != {1}": (aten.ne.Tensor, aten.ne.Scalar),
    "{0} & {1}": (aten.logical_and.default, aten.bitwise_and.Tensor),
    "{0} | {1}": (aten.logical_or.default, aten.bitwise_or.Tensor),
    "{0} == 0": (aten.logical_not.default, aten.bitwise_not.default),
}
_PLACES = {"where": 3, "maximum": 2, "minimum": 2}

_EXPRESSIONS: dict[Any, Callable[..., str]] = _FULL | {
    operation: _plain(template, _PLACES.get(template, 2 if "{1}" in template else 1))
    for template, operations in (FUNCTIONS | _ARITHMETIC).items()
    for operation in operations
}
_EXPRESSIONS |= {
    aten.relu.default: _relu,
    aten.clamp.default: _clamp,
    aten.pow.Tensor_Scalar: _power,
    aten.sigmoid.default: _sigmoid,
    aten.reciprocal.default: _reciprocal,
    aten._to_copy.default: _cast,
}
