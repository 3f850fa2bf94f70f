"""The least time a model could take on a device: its multiplications at the rate of the best matrix product there."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from detrkit.ops.dense import linear
from detrkit.profiling.timer import finished

_SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # of the square matrices: within caches, and beyond
_FIRST_TURNS = 6  # of each product, to find the fastest
_TURNS = 3  # of that product between two iterations


@dataclass(frozen=True)
class Floor:
    """What convolutions and matrix products must take if they are computed directly and nothing else takes time.

    Attributes:
        operations: floating-point operations of an iteration's convolutions, matrix products and attention; a
            multiplication and its addition are two. Deformable sampling has none of them.
        rate: operations a second of the fastest matrix product on the device, the median of measurements between the
            iterations.
        model_seconds: median of what the model took for them: its forward pass, in training the backward pass, too.
    """

    operations: float
    rate: float
    model_seconds: float

    @property
    def seconds(self) -> float:
        """The floor itself."""
        return self.operations / self.rate

    @property
    def share(self) -> float:
        """The floor as a share of the model's time: 1 is the best there is without another algorithm."""
        return self.seconds / self.model_seconds


class _Whole(ModuleTracker):
    """A tracker of modules that tracks none: everything belongs to the whole."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def count_operations(run: Callable[[], object]) -> int:
    """Count the floating-point operations of a run by PyTorch's formulas; detrkit's own kernels step aside for it."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Whole()  # its own hooks on modules fail in inference mode for modules that take parameters
    with counter:
        run()
    return int(counter.get_total_flops())


class RateMeter:
    """Measures the operations a second of matrix products between the iterations of a model.

    Between them, not before or after: what else the machine does then, and how fast it runs, is the same for both.

    Args:
        device: where to measure.
        dtype: of the matrices, such as torch.float32.

    Attributes:
        rates: measured so far.
        product: the fastest one, a call.
        operations: of it.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.rates: list[float] = []
        self.operations, self.product = 0, lambda: torch.empty(0)
        best = 0.0
        for side in _SIDES.get(device.type, _SIDES["cpu"]):
            a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
            for product in (torch.mm, linear):
                run = partial(product, a, b)
                rate = 2 * side**3 / _least_seconds(run, device, _FIRST_TURNS)
                if rate > best:
                    best, self.operations, self.product = rate, 2 * side**3, run

    @property
    def rate(self) -> float:
        """Median of the measured rates."""
        return statistics.median(self.rates)

    def measure(self) -> None:
        """Measure the product that was the fastest of PyTorch's and oneDNN's, of two sizes, at first."""
        self.rates.append(self.operations / _least_seconds(self.product, self.device, _TURNS))


def _least_seconds(run: Callable[[], object], device: torch.device, turns: int) -> float:
    """Return the time of the fastest of several runs, after one that is not counted."""
    times = []
    with torch.inference_mode():
        run()
        for _ in range(turns):
            began = finished(device)
            run()
            times.append(finished(device) - began)
    return min(times)
