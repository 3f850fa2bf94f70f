"""What an export costs and is worth: AP, latency and memory of the file beside the model in PyTorch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detrkit.data import Dataset
from detrkit.engine.evaluating import evaluate
from detrkit.engine.memory import free_unused, peak_mib, reset_peak
from detrkit.models.base import DetectionModel
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.model import ExportedModel
from detrkit.structures.batch import Batch
from detrkit.utils.errors import DetrkitError

REPEATS = 5  # of a latency, after one run that is not counted
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class AccuracyCheck:
    """AP of the model in PyTorch and of its file on the same images.

    Attributes:
        data: name of the dataset.
        images: number of images.
        model, exported: AP of the boxes in [0, 1], -1 where there is no object.
        drop: points (hundredths) that the file has less.
    """

    data: str
    images: int
    model: float
    exported: float

    @property
    def drop(self) -> float:
        """Points of AP that the file has less; negative if it has more."""
        return 100 * (self.model - self.exported)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time and memory of one image of the model's input size, one after the other, batch 1.

    Attributes:
        height, width: pixels of the input.
        seconds: median of `REPEATS` forward passes, without pre- and post-processing.
        slowest: of them, seconds.
        memory_mib: by which the resident memory of the process grows at most in a forward pass.
    """

    height: int
    width: int
    seconds: float
    slowest: float
    memory_mib: float


def check_accuracy(
    model: DetectionModel,
    exported: ExportedModel,
    spec: ModelSpec,
    data: str | Path | Dataset | Any,
    *,
    split: str | None,
    images: int | None,
    max_drop: float,
) -> AccuracyCheck:
    """Measure the AP of a model and of its file.

    Args:
        model: in PyTorch.
        exported: of its file.
        spec: of the model, with the resize rule of the file.
        data: a dataset, as `detrkit.evaluate` takes it.
        split: of the dataset.
        images: number of images at most, the first ones.
        max_drop: points of AP that the file may have less.

    Raises:
        DetrkitError: it has less.
    """
    settings: dict[str, Any] = {"split": split, "limit": images, "device": "cpu", "batch_size": 2, "masks": False}
    reference = evaluate((model, spec), data, **settings)
    metrics = evaluate((exported, spec), data, **settings)
    name = data.path.name if isinstance(data, Dataset) else Path(str(data)).name
    check = AccuracyCheck(data=name, images=metrics.images, model=reference.AP, exported=metrics.AP)
    if not check.drop <= max_drop:
        raise DetrkitError(
            f"AP falls by {check.drop:.2f} points ({100 * check.model:.2f} in PyTorch, {100 * check.exported:.2f} in "
            f"{exported.session.runtime}) on {check.images} images of {name}, at most {max_drop:g} pass; no file was "
            "written"
        )
    return check


@torch.no_grad()
def measure(model: DetectionModel, exported: ExportedModel, spec: ModelSpec) -> tuple[Cost, Cost]:
    """Measure model and file in turns, on one image of the input size that the spec asks for.

    Returns:
        The model's and the file's.
    """
    height, width = input_size(exported, spec)
    generator = torch.Generator().manual_seed(0)
    batch = Batch.from_images([torch.randn(3, height, width, generator=generator)])
    runs: list[Callable[[], object]] = [lambda: model(batch, defer_masks=False), lambda: exported.arrays(batch)]
    memory = [_memory(run) for run in runs]  # the first runs, which are not timed
    seconds: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for taken, run in zip(seconds, runs, strict=True):
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    model_cost, exported_cost = (
        Cost(height=height, width=width, seconds=statistics.median(s), slowest=max(s), memory_mib=m)
        for s, m in zip(seconds, memory, strict=True)
    )
    return model_cost, exported_cost


def input_size(exported: ExportedModel, spec: ModelSpec) -> tuple[int, int]:
    """Return the (height, width) in pixels of an image of 4 : 3 as the spec resizes it, or the graph's fixed size."""
    info = exported.info
    if info.fixed is not None:
        return info.fixed
    longest = info.largest_side or 10**6
    short = min(max(spec.size, info.least_side), longest)
    if spec.square:
        return short, short
    return short, max(short, min(round(short * 4 / 3), spec.max_size or longest, longest))


def _memory(run: Callable[[], object]) -> float:
    """Return by how many MiB the resident memory grows at most while something runs."""
    free_unused()
    reset_peak(_CPU)
    before = peak_mib(_CPU)
    run()
    return peak_mib(_CPU) - before
