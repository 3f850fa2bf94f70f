"""Memory that stays with the process between forward passes."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

# mallopt(3): the free memory at the top of the heap that is kept, and how many blocks may be mapped one by one
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
KEPT = 2**31 - 1  # bytes, the most that an int of mallopt can say


@cache
def keep_pages() -> bool:
    """Has glibc keep the memory of freed tensors, up to 2 GiB, for the next ones; once a process.

    By itself it maps every large block anew and gives it back when it is freed, and the system fills each page with
    zeros again: on a processor, half the time of a forward pass. Only the first call does anything; malloc_trim gives
    the memory back. Nothing is changed where the environment sets how malloc behaves (MALLOC_TRIM_THRESHOLD_,
    MALLOC_MMAP_MAX_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES), where DETRKIT_KEEP_PAGES is 0, or with another C library.

    Returns:
        Whether memory is kept from now on.
    """
    said = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if (
        sys.platform != "linux"
        or os.environ.get("DETRKIT_KEEP_PAGES") == "0"
        or any(name in os.environ for name in said)
    ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
