"""The least time a model could take on a device: its multiplications at the rate of the best matrix product there."""

from __future__ import annotations

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
_SECONDS = 0.3  # that each product is repeated
_TURNS = range(4, 200)  # but so often


@dataclass(frozen=True)
class Floor:
    """What convolutions and matrix products must take if they are computed directly and nothing else takes time.

    Attributes:
        operations: floating-point operations of an iteration's convolutions, matrix products and attention; a
            multiplication and its addition are two. Deformable sampling has none of them.
        rate: operations a second of the fastest matrix product measured on the device, in the same run.
        model_seconds: what the model took for them: its forward pass, in training the backward pass, too.
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


def best_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations a second of the fastest matrix product: PyTorch's or oneDNN's, of two sizes.

    Args:
        device: where to measure.
        dtype: of the matrices, such as torch.float32.
    """
    best = float("inf")
    for side in _SIDES.get(device.type, _SIDES["cpu"]):
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        for product in (torch.mm, linear):
            best = min(best, _least_seconds(partial(product, a, b), device) / side**3)
    return 2 / best


def _least_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the time of the fastest of several runs, after one that is not counted."""
    with torch.inference_mode():
        run()
        times: list[float] = []
        while len(times) < _TURNS.start or (sum(times) < _SECONDS and len(times) < _TURNS.stop):
            began = finished(device)
            run()
            times.append(finished(device) - began)
    return min(times)
