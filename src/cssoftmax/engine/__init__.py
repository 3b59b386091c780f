"""One loss, and the ways to run it, picked here.

Every engine is a module with a ``loss`` of the same signature; ``eager`` is the one that the others must agree with.
"""

from collections.abc import Callable

from torch import Tensor

from cssoftmax.engine import chunked, compiled, eager, fused, triton

Engine = Callable[..., Tensor]

ENGINES: dict[str, Engine] = {
    "eager": eager.loss,
    "fused": fused.loss,
    "compiled": compiled.loss,
    "chunked": chunked.loss,
    "triton": triton.loss,
}
IMPLEMENTATIONS = ("auto", *ENGINES)

# Entries of the (N, C) matrix up to which it is rather kept whole; see docs/performance.md.
SMALL = 2**20


def pick(implementation: str, embeddings: Tensor, num_classes: int) -> Engine:
    """The engine of that name; for "auto" the fastest, by device and sizes."""
    if implementation != "auto":
        return ENGINES[implementation]
    small = embeddings.shape[0] * num_classes <= SMALL
    if embeddings.device.type == "cpu":
        return compiled.loss if small else chunked.loss
    if embeddings.device.type == "cuda" and triton.INSTALLED and not small:
        return triton.loss
    return eager.loss
