"""Settings of malloc that retain freed memory for the next tensors."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

# parameters of mallopt(3): free bytes at the top of the heap from which they are returned to the system, and the number
# of blocks that may be mapped individually
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
TRIM_THRESHOLD_BYTES = 2**31 - 1  # the largest int that mallopt takes
_SWITCHES = (
    "DETRKIT_RETAIN_FREED_MEMORY",
    "DETRKIT_KEEP_PAGES",
)  # environment variables; the second is the earlier name


@cache
def retain_freed_memory() -> bool:
    """Stop glibc from returning freed memory (up to 2 GiB) to the system; runs once per process.

    By default it maps every large block anew and returns it when it is freed, and the system fills each page with zeros
    again: on a CPU, half the time of a forward pass. Only the first call does anything; malloc_trim returns the memory.
    Nothing is changed where the environment sets how malloc behaves (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_MAX_,
    MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES), where DETRKIT_RETAIN_FREED_MEMORY (or DETRKIT_KEEP_PAGES, its earlier name)
    is 0, or with another C library.

    Returns:
        Whether memory is retained from now on.
    """
    malloc_variables = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if (
        sys.platform != "linux"
        or any(os.environ.get(name) == "0" for name in _SWITCHES)
        or any(name in os.environ for name in malloc_variables)
    ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))
