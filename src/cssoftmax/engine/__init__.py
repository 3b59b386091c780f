"""One loss, and the ways to run it, picked here.

Every engine is a module with a ``loss`` of the same signature; ``eager`` is the one that the others must agree with.
"""

from cssoftmax.engine import chunked, eager, triton

IMPLEMENTATIONS = {"auto": chunked.loss, "eager": eager.loss, "chunked": chunked.loss, "triton": triton.loss}
