"""One loss, and the ways to run it, picked here.

Every engine is a module with a ``loss`` of the same signature; ``eager`` is the one that the others must agree with.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cssoftmax.engine import chunked, compiled, eager, fused, rowwise, triton
from cssoftmax.engine.compiled import build

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
SMALL = rowwise.SMALL
# The same where one pass of compiled code makes it a gradient: 32 MiB in float32.
MEDIUM = 2**23


def pick(implementation: str, embeddings: Tensor, num_classes: int, precision: str = "float32") -> Engine:
    """The engine of that name; for "auto" the fastest, by device and sizes."""
    if implementation != "auto":
        return ENGINES[implementation]
    entries = embeddings.shape[0] * num_classes
    small = entries <= SMALL
    if embeddings.device.type == "cpu" and torch.compiler.is_compiling():
        return eager.loss  # the others would only tell it so after a look that the compiler warns of
    if embeddings.device.type == "cpu":
        whole = small or (entries <= MEDIUM and precision == "float32" and build.suits(embeddings))
        return compiled.loss if whole else chunked.loss
    if embeddings.device.type == "cuda" and triton.INSTALLED and not small:
        return triton.loss
    return eager.loss
