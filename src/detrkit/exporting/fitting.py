"""How many images of an export fit into memory: one of DETR DC5 takes gigabytes, eight have killed the export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from detrkit.engine.memory import free_unused, peak_mib, reset_peak
from detrkit.utils.memory import available_memory

_CPU = torch.device("cpu")
_SHARE = 0.6  # of what is free; the rest is for what others take meanwhile, and what an estimate may be wrong by


class Room:
    """The number of images that fit, by the peak of the first ones. Until something is measured, any number does."""

    def __init__(self) -> None:
        self._each: float | None = None  # MiB of an image

    @contextmanager
    def measure(self, images: int) -> Iterator[None]:
        """Measure what so many images take within a `with` block."""
        free_unused()
        reset_peak(_CPU)
        before = peak_mib(_CPU)
        yield
        self._each = max(1.0, peak_mib(_CPU) - before) / images

    def fits(self, images: int) -> int:
        """Return how many of the images fit, one at least."""
        free_unused()
        free = available_memory()
        if self._each is None or free is None or self._each != self._each:  # NaN where the peak is not known
            return images
        return max(1, min(images, int(_SHARE * free / 2**20 / self._each)))
