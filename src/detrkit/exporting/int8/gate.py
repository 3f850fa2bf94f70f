"""The gate of INT8: AP of the quantized file beside the file in float32, and which stage costs what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrkit.data import Dataset
from detrkit.engine.evaluating import evaluate
from detrkit.exporting.int8.layers import STAGES, Layer, Stage
from detrkit.exporting.measuring import Cost
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.model import ExportedModel, load_exported
from detrkit.utils.errors import DetrkitError


@dataclass(frozen=True, kw_only=True)
class Int8Check:
    """What a file in INT8 costs and is worth beside the same file in float32, in one runtime.

    Attributes:
        data: name of the dataset.
        images: number of images that AP was measured on.
        calibration_images: number of images that the ranges come from.
        layers: number of layers in 8 bits.
        float_ap, int8_ap: AP of the boxes in [0, 1], -1 where there is no object.
        float_bytes: size of the files in float32.
        float_cost, int8_cost: time and memory of an image, or None.
    """

    data: str
    images: int
    calibration_images: int
    layers: int
    float_ap: float
    int8_ap: float
    float_bytes: int
    float_cost: Cost | None
    int8_cost: Cost | None

    @property
    def drop(self) -> float:
        """Points of AP (hundredths) that INT8 has less; negative if it has more."""
        return 100 * (self.float_ap - self.int8_ap)


class AccuracyGate:
    """Compares quantized files with the one in float32 on the same images.

    Args:
        exported: the file in float32.
        spec: of the model, with the resize rule of the file.
        data: a dataset, as `detrkit.evaluate` takes it.
        split: of the dataset.
        images: number of images at most, the first ones.
        max_drop: points of AP that a file may have less.
    """

    def __init__(
        self,
        exported: ExportedModel,
        spec: ModelSpec,
        data: str | Path | Dataset | Any,
        *,
        split: str | None,
        images: int | None,
        max_drop: float,
    ) -> None:
        self.spec, self.data, self.max_drop = spec, data, max_drop
        self.settings: dict[str, Any] = {"split": split, "limit": images, "device": "cpu", "batch_size": 2}
        self.settings["masks"] = False
        self.name = data.path.name if isinstance(data, Dataset) else Path(str(data)).name
        metrics = evaluate((exported, spec), data, **self.settings)
        self.float_ap, self.images = metrics.AP, metrics.images

    def ap(self, path: Path) -> float:
        """Measure the AP of a file, in [0, 1]."""
        exported, _ = load_exported(path)
        return evaluate((exported, self.spec), self.data, **self.settings).AP

    def check(self, ap: float, layers: Sequence[Layer], quantize: Callable[[Sequence[Stage]], Path]) -> None:
        """Check the AP of a file; where it is too low, find out which stage costs how much.

        Args:
            ap: of the file, in [0, 1].
            layers: that it computes in 8 bits.
            quantize: writes a file with these stages alone in 8 bits.

        Raises:
            DetrkitError: AP falls by more than `max_drop`; names the stages, the one that costs most first.
        """
        drop = 100 * (self.float_ap - ap)
        if drop <= self.max_drop:
            return
        stages = [stage for stage in STAGES if any(layer.stage == stage for layer in layers)]
        costs = {stage: 100 * (self.float_ap - self.ap(quantize([stage]))) for stage in stages}
        ranked = sorted(costs, key=lambda stage: -costs[stage])
        blame = ", ".join(f"the {stage} alone {costs[stage]:.2f}" for stage in ranked)
        raise DetrkitError(
            f"INT8 costs {drop:.2f} points of AP ({100 * self.float_ap:.2f} in float32, {100 * ap:.2f} in INT8) on "
            f"{self.images} images of {self.name}, at most {self.max_drop:g} pass; {blame}; no file was written"
        )
