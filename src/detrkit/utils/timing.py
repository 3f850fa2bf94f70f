"""The seam for profilers: prediction and training enter a named part of a timer at each stage.

A profiler sets the `timer` of a `Detector` or a `TrainStep`; by default nothing is measured.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

# stages of prediction
READING, RESIZING, NORMALIZING = "reading and decoding", "resizing", "padding, normalizing"
POSTPROCESSING = "post-processing"
# stages of a training step
LOSSES, BACKWARD, CLIPPING, STEPPING = "losses", "backward", "clipping", "optimizer"


class PartTimer(Protocol):
    """What measures the time of named parts."""

    def part(self, name: str, /) -> AbstractContextManager[None]:
        """Return a context that a part of the work runs in."""
        ...


class NoTimer:
    """Timer that measures nothing; entering a part takes 0.2 microseconds."""

    def part(self, name: str, /) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()
