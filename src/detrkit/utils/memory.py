"""Available memory, and one-line errors in place of an allocator's when something cannot fit."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

from detrkit.utils.errors import SettingError

GIB = 2**30
# channels of a ResNet's first map, at half the image's resolution: as many bytes per image pixel in float32
CHANNELS = 64
# out-of-memory messages of torch, numpy, Python and the library loader; there is no common exception class
_USED_UP = re.compile(
    r"allocate memory|out of memory|unable to allocate|not enough memory|failed to map segment|start new thread",
    re.IGNORECASE,
)
MAPPING_FIX = ": there is no memory for it (ulimit -v), or its file system forbids it (noexec)"


@cache
def machine_memory() -> int | None:
    """Return the bytes that this process can have at most: memory and swap, or a lower limit; None if unknown."""
    limits = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        limits.append((sizes["MemTotal"] + sizes.get("SwapTotal", 0)) * 1024)
    with suppress(OSError, ValueError, AttributeError):
        if not limits:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # limit of a container; "max" where there is none
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            limits.append(limit)
    return min(limits) if limits else None


def available_memory() -> int | None:
    """Return the bytes that this process can still take without others having to give some up; None if unknown."""
    total = machine_memory()
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        return free if total is None else min(free, total)
    return total


def batch_pixels(device_memory: int | None = None) -> float:
    """Return the pixels of a padded batch that an eighth of the memory can hold, by the rule of `check_batch`.

    Args:
        device_memory: bytes of an accelerator that computes the batch; None: the CPU does.
    """
    available = machine_memory() if device_memory is None else device_memory
    return float("inf") if available is None else available / 8 / (4 * 3 + CHANNELS)


def check_memory(needed: int, what: str, *, fix: str) -> None:
    """Check that something fits into memory, before it is allocated.

    Args:
        needed: bytes that it takes at least.
        what: name of it, for the message.
        fix: advice for the message.

    Raises:
        SettingError: this machine has less; states the needed amount.
    """
    available = machine_memory()
    if available is not None and needed > available:
        raise SettingError(
            f"{what} would take about {_gib(needed)} of memory, this machine has {_gib(available)}: {fix}"
        )


def check_batch(size: int, max_size: int | None, batch_size: int, *, channels: int = CHANNELS) -> None:
    """Check that at least the first map of the backbone fits into memory for a batch of images.

    Args:
        size: short side of the images in pixels.
        max_size: longest side; None: no limit.
        batch_size: images at once.
        channels: of the map, at half the image's resolution.
    """
    side = size if max_size is None else min(size, max_size)
    bytes_per_pixel = 4 * 3 + channels  # RGB and the map, both float32
    least = batch_size * side * side * bytes_per_pixel // 4  # augmented or narrow images have a quarter of the pixels
    images = "an image" if batch_size == 1 else f"a batch of {batch_size} images"
    check_memory(least, f"{images} with a short side of {side} pixels", fix="make the images or the batch smaller")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory was used up."""
    may_be = isinstance(error, (RuntimeError, ImportError, OSError))
    return isinstance(error, MemoryError) or (may_be and bool(_USED_UP.search(str(error))))


def _gib(count: int) -> str:
    gib = count / GIB
    return f"{gib:,.0f} GiB" if gib >= 10 else f"{gib:.1f} GiB"
