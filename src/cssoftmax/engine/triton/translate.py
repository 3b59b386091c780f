"""A similarity as Triton source."""

from functools import lru_cache

from cssoftmax.engine import trace
from cssoftmax.engine.trace import FUNCTIONS, Key, NoTranslation
from cssoftmax.similarity import Similarity

LANGUAGE = {name: f"tl.{name}({{0}})" for name in FUNCTIONS} | {
    "number": "{0}",
    "as_float": "{0}.to(tl.float32)",
    "full": "tl.full(c.shape, {0}, tl.float32)",
    "where": "tl.where({0}, {1}, {2})",
    "maximum": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
}


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
    result = _translate(Key.of(similarity, num_rows))
    if isinstance(result, NoTranslation):
        raise result
    return result


@lru_cache(maxsize=256)
def _translate(key: Key) -> str | NoTranslation:
    """The source, or why there is none: a failure costs a trace as well, so it is remembered too."""
    try:
        return "\n\n".join(_function(key, name) for name in ("negative", "negative_slope"))
    except NoTranslation as reason:
        return reason


def _function(key: Key, name: str) -> str:
    rows, lines, result, spread = trace.function(key, name, LANGUAGE)
    if spread:
        result = f"tl.broadcast_to({result}, c.shape)"
    body = [
        *(f"row{k} = tl.load(rows + {k} * N + i, mask=inside, other=0.0)[:, None]" for k in rows),
        *(f"{line.name} = {line.expression}" for line in lines),
        f"return {result}",
    ]
    return f"@triton.jit\ndef {name}(c, rows, i, inside, N):\n" + "".join(f"    {line}\n" for line in body)
