"""Transfer of batches from the loading processes: large tensors through shared memory, the rest through a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from detrkit.data.collate import PixelBatch, collate
from detrkit.structures.outputs import Target
from detrkit.utils.errors import DetrkitError

T = TypeVar("T")
SHARED_MEMORY = "/dev/shm"
# A tensor in shared memory takes a file handle at each end: two per image for labels and boxes of a few bytes.
SHARED_FROM_BYTES = 2**16
NEVER_SHARED = sys.maxsize
_HANDLES_FOR_OTHERS = 128  # files, pipes, sockets
_LEAST_FREE_BYTES = 2**19
_MIB = 2**20


@dataclass
class Packed:
    """A batch on its way between processes.

    Attributes:
        pixels: the images; their tensor may be an array.
        targets: their objects, likewise.
    """

    pixels: PixelBatch
    targets: list[Target]

    @classmethod
    def of(cls, pixels: PixelBatch, targets: Sequence[Target], shared_from: int) -> Packed:
        """Pack a batch: tensors of fewer bytes than `shared_from` become arrays, which are copied through the pipe."""
        pack = partial(_packed, shared_from=shared_from)
        return cls(_each(pixels, pack), [_each(target, pack) for target in targets])

    def unpacked(self) -> tuple[PixelBatch, list[Target]]:
        """Return the batch as it was, of tensors."""
        return _each(self.pixels, _unpacked), [_each(target, _unpacked) for target in self.targets]

    def pin_memory(self) -> tuple[PixelBatch, list[Target]]:
        """Return the batch as it was, in page-locked memory; DataLoader calls this."""
        pixels, targets = self.unpacked()
        return pixels.pin_memory(), [target.pin_memory() for target in targets]


@dataclass(frozen=True)
class Collate:
    """`collate` for the loader; in a loading process the batch is also packed for its way to the main process.

    Args:
        shared_from: bytes from which a tensor travels in shared memory.
    """

    shared_from: int

    def __call__(
        self, pairs: Sequence[tuple[Tensor, Target] | DetrkitError]
    ) -> tuple[PixelBatch, list[Target]] | Packed | DetrkitError:
        """Collate single samples to a batch, or return the first error among them."""
        made = collate(pairs)
        if isinstance(made, DetrkitError) or get_worker_info() is None:
            return made
        return Packed.of(*made, self.shared_from)


def shared_from(batch_bytes: int, *, batches: int, handles: int) -> tuple[int, str | None]:
    """Return the size in bytes from which tensors travel in shared memory; and why none do, or None.

    Args:
        batch_bytes: of the largest batch.
        batches: number that exist at once, over all processes of this machine.
        handles: file handles that the batches take in one process.
    """
    needed, free = batch_bytes * batches, shared_memory_free()
    if free is not None and needed > free:
        return NEVER_SHARED, (
            f"{SHARED_MEMORY} has {free // _MIB} MiB free, the batches that are loaded ahead may take "
            f"{-(-needed // _MIB)} MiB: they are copied instead; more of it is faster (docker run --shm-size=2g)"
        )
    limit = handle_limit(handles + _HANDLES_FOR_OTHERS)
    if limit is not None and handles + _HANDLES_FOR_OTHERS > limit:
        return NEVER_SHARED, (
            f"this process may open {limit} files, the batches that are loaded ahead may take {handles}: they are "
            "copied instead; more is faster (ulimit -n)"
        )
    return SHARED_FROM_BYTES, None


def usable_workers(workers: int) -> tuple[int, str | None]:
    """Return how many loading processes there can be, and why not as many as requested, or None.

    Their locks are in shared memory, a few dozen of a page each.
    """
    free = shared_memory_free()
    if not workers or free is None or free >= _LEAST_FREE_BYTES:
        return workers, None
    return 0, f"{SHARED_MEMORY} has {free // 1024} KiB free, too little for processes that load images: there are none"


def shared_memory_free() -> int | None:
    """Return the free bytes of shared memory; None where the system does not say."""
    if sys.platform != "linux":
        return None
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def handle_limit(needed: int) -> int | None:
    """Return how many files this process may open, after raising the limit towards `needed`; None if unknown."""
    try:
        import resource
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return soft


def _packed(value: Any, shared_from: int) -> Any:
    return value.numpy() if isinstance(value, Tensor) and value.nbytes < shared_from else value


def _unpacked(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _each(record: T, change: Callable[[Any], Any]) -> T:
    """Return a copy of a dataclass with `change` applied to every field."""
    return replace(record, **{f.name: change(getattr(record, f.name)) for f in fields(record)})  # type: ignore
