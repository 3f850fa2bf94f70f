"""malloc settings that keep freed memory in the process between forward passes."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

# mallopt(3): the free memory kept at the top of the heap, and the number of blocks that may be mapped individually
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
TRIM_THRESHOLD_BYTES = 2**31 - 1  # bytes, the largest int that mallopt takes


@cache
def keep_pages() -> bool:
    """Stop glibc from returning freed memory (up to 2 GiB) to the system; runs once per process.

    By default it maps every large block anew and returns it when it is freed, and the system fills each page with zeros
    again: on a CPU, half the time of a forward pass. Only the first call does anything; malloc_trim returns the memory.
    Nothing is changed where the environment sets how malloc behaves (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_MAX_,
    MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES), where DETRKIT_KEEP_PAGES is 0, or with another C library.

    Returns:
        Whether memory is kept from now on.
    """
    malloc_variables = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if (
        sys.platform != "linux"
        or os.environ.get("DETRKIT_KEEP_PAGES") == "0"
        or any(name in os.environ for name in malloc_variables)
    ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES))
