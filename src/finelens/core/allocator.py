"""How much freed memory the C library keeps for the next allocation."""

from __future__ import annotations

import ctypes
import os
from functools import cache

# Parameters of glibc's mallopt. Blocks of up to so many bytes come from the heap, whose free end stays up to so large; the first is the largest value
# that it allows. By itself it lets that end grow to twice the largest block that was freed, and gives back what the next layers ask for.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
HEAP_BLOCK, HEAP_END = 32 << 20, 128 << 20
# What a user set is left alone.
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


@cache
def keep_freed_memory() -> bool:
    """Keep the memory of a tower's activations from one layer to the next, for the rest of the process.

    Otherwise the system takes it back and clears every page again before it is used: 500 faults of a page for a photograph in the embedded tower. At
    most :data:`HEAP_END` bytes stay for each thread that computes.

    Returns:
        Whether that could be set: with glibc, where the environment says nothing of it.
    """
    if any(name in os.environ for name in _CHOSEN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, HEAP_BLOCK)) and bool(mallopt(_M_TRIM_THRESHOLD, HEAP_END))
