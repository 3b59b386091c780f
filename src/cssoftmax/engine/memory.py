"""Memory that a step takes: kept for the next one, and in huge pages where it is large and comes fresh."""

import ctypes
import mmap
import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

PAGE = 2**21
"""Bytes of a huge page."""
LARGE = 16 * PAGE
"""Bytes from which on memory comes fresh from the system, with every page still to be found for it."""

# Parameters of glibc's mallopt, and the highest it takes.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
MOST_TRIMMED, MOST_FROM_HEAP = 2**31 - 1, 2**25


def keep_freed() -> bool:
    """Has this process keep what it frees, for its next step; whether it can: that takes glibc.

    Else every large block goes back to the system at once, and each of its pages must be found and cleared anew when
    the next step asks for the same. Blocks of 32 MiB or more still go back.

    >>> kept = keep_freed()  # before the first step
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    wanted = ((MMAP_THRESHOLD, MOST_FROM_HEAP), (TRIM_THRESHOLD, MOST_TRIMMED), (TOP_PAD, 2**26))
    return mallopt is not None and all(mallopt(*each) for each in wanted)


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
