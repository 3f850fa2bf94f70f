"""Peak memory of this process: on a GPU what torch allocated there, on a CPU the resident size."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch

_MIB = 2**20


def reset_peak(device: torch.device) -> None:
    """Reset the peak to the memory that is in use now.

    On a CPU this needs Linux: elsewhere, and where the system forbids it, the peak is that of the whole process so far.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): VmHWM becomes VmRSS


def peak_mib(device: torch.device) -> float:
    """Return the peak memory since `reset_peak`, in MiB: allocated by torch on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return _largest_resident_mib()


def free_unused() -> None:
    """Free memory that nothing refers to any more, so that the next peak is that of the next work."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory for itself otherwise


def _largest_resident_mib() -> float:
    """Return the peak in MiB since the process began, for systems without /proc; NaN on Windows (no getrusage)."""
    try:
        import resource
    except ImportError:
        return float("nan")
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / _MIB if sys.platform == "darwin" else largest / 1024
