"""Memory for a large gradient, which a step asks the system for anew and writes once."""

import ctypes
import mmap
from functools import cache
from typing import Any

import torch
from torch import Tensor

PAGE = 2**21
"""Bytes of a huge page."""
LARGE = 16 * PAGE
"""Bytes from which on memory comes fresh from the system, with every page still to be found for it."""


def empty_like(tensor: Tensor) -> Tensor:
    """A contiguous tensor of the same shape and type, in huge pages where the system has them on request.

    To find fifty thousand small pages for 200 MB takes longer than to fill them.
    """
    made = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    advise = _madvise() if made.device.type == "cpu" and made.nbytes >= LARGE else None
    if advise is not None:
        start, stop = -(-made.data_ptr() // PAGE) * PAGE, (made.data_ptr() + made.nbytes) // PAGE * PAGE
        advise(start, stop - start, mmap.MADV_HUGEPAGE)  # a refusal costs nothing
    return made


@cache
def _madvise() -> Any:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
