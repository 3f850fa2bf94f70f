"""`ProfileConfig` and `ProfileResult`: what is measured, and what it took."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from detrkit.profiling.floor import Floor
from detrkit.weights.checkpoint import ModelSpec


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Settings of a measurement.

    Attributes:
        spec: of the model, with the size of the input.
        files: images; batches cycle through them.
        batch_size: images per iteration.
        device: where to run; None chooses as `detrkit predict` and `detrkit train` do.
        precision: "bf16": predicting by weights in bfloat16, training by autocast; where the device has it.
        repeats: iterations with the timer, and as many without.
        random_weights: whether the weights are random, so that scores have no meaning.
    """

    spec: ModelSpec
    files: Sequence[Path]
    batch_size: int = 1
    device: torch.device | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    repeats: int = 7
    random_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class ProfileResult:
    """Results of a measurement.

    Attributes:
        work: "predicting" or "training".
        parts: name -> seconds in every iteration with the timer, in the order of execution.
        totals: seconds of every iteration without the timer.
        batch_size: images per iteration.
        memory: peak memory in MiB: allocated on a GPU, resident on a CPU.
        device: where the model ran.
        input_sizes: (height, width) in pixels of the iterations' inputs with the smallest and the largest area.
        objects_per_image: detected objects or segments, on average; None for training.
        workers: number of processes that load images for `rate_with_workers`.
        rate_with_workers: images per second with processes that load images, as `detrkit train` uses them on this
            device; None if it uses none there.
        precision: that was computed in: "fp32" where the device has no instructions for bfloat16.
        floor: what the model's operations take at least on this device; None if they were not counted.
    """

    work: Literal["predicting", "training"]
    parts: dict[str, list[float]]
    totals: list[float]
    batch_size: int
    memory: float
    device: torch.device
    input_sizes: tuple[tuple[int, int], tuple[int, int]]
    objects_per_image: float | None = None
    workers: int = 0
    rate_with_workers: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    floor: Floor | None = None

    @property
    def medians(self) -> dict[str, float]:
        """Seconds of every part: the median over the iterations."""
        return {name: statistics.median(seconds) for name, seconds in self.parts.items()}

    @property
    def parts_together(self) -> float:
        """Seconds of all parts together: the median over the iterations."""
        return statistics.median(sum(iteration) for iteration in zip(*self.parts.values(), strict=True))

    @property
    def total(self) -> float:
        """Seconds of an iteration without the timer: the median."""
        return statistics.median(self.totals)

    @property
    def rate(self) -> float:
        """Images per second over all iterations without the timer: sizes differ, and slow iterations count, too."""
        return self.batch_size * len(self.totals) / sum(self.totals)
