"""Reduced precision (INT8, bf16, fp16): how it is asked for, and the gate of its AP beside the file in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrkit.data import Dataset
from detrkit.engine.evaluating import evaluate
from detrkit.exporting.measuring import Cost
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.metadata import Half
from detrkit.runtimes.model import ExportedModel, load_exported
from detrkit.utils.errors import DetrkitError


@dataclass(frozen=True, kw_only=True)
class ReducedSettings:
    """What a file of reduced precision is made and judged with.

    Attributes:
        calibration: of INT8, a dataset as `open_dataset` takes it, whose images set the ranges: its split "train", if
            there is one; None of half precision.
        calibration_images: number of them at most.
        half: bf16 or fp16; None of INT8.
        data: the dataset that AP is measured on.
        split: of it.
        images: number of its images at most, the first ones.
        max_drop: points of AP (hundredths) that the file may have less.
    """

    calibration: str | Path | Dataset | Any | None = None
    calibration_images: int = 0
    half: Half | None = None
    data: str | Path | Dataset | Any
    split: str | None
    images: int | None
    max_drop: float

    @property
    def word(self) -> str:
        """What the precision is called."""
        return "INT8" if self.half is None else self.half


@dataclass(frozen=True, kw_only=True)
class ReducedCheck:
    """What a file of reduced precision costs and is worth beside the same file in float32, in one runtime.

    Attributes:
        precision: "INT8", "bf16" or "fp16".
        computed: what has this precision, in words.
        data: name of the dataset.
        images: number of images that AP was measured on.
        calibration_images: number of images that the ranges of INT8 come from.
        float_ap, ap: AP of the boxes in [0, 1] in float32 and in this precision, -1 where there is no object.
        float_bytes: size of the files in float32.
        float_cost, cost: time and memory of an image in float32 and in this precision, or None.
    """

    precision: str
    computed: str
    data: str
    images: int
    calibration_images: int
    float_ap: float
    ap: float
    float_bytes: int
    float_cost: Cost | None
    cost: Cost | None

    @property
    def drop(self) -> float:
        """Points of AP (hundredths) that the file has less than the one in float32; negative if it has more."""
        return 100 * (self.float_ap - self.ap)


class AccuracyGate:
    """Compares files of reduced precision with the one in float32 on the same images.

    Args:
        exported: the file in float32.
        spec: of the model, with the resize rule of the file.
        settings: of the precision.

    Attributes:
        name: of the dataset.
        images: number of images.
        float_ap: AP in float32, in [0, 1].
    """

    def __init__(self, exported: ExportedModel, spec: ModelSpec, settings: ReducedSettings) -> None:
        data = settings.data
        self.spec, self.settings = spec, settings
        self.name = data.path.name if isinstance(data, Dataset) else Path(str(data)).name
        metrics = self._evaluate(exported)
        self.float_ap, self.images = metrics.AP, metrics.images

    def ap(self, path: Path) -> float:
        """Measure the AP of a file, in [0, 1]."""
        ap: float = self._evaluate(load_exported(path)[0]).AP
        return ap

    def passes(self, ap: float) -> bool:
        """Whether a file may have this AP."""
        return 100 * (self.float_ap - ap) <= self.settings.max_drop

    def refusal(self, ap: float, stages: Mapping[str, float] | None = None) -> DetrkitError:
        """Return the error of a file that costs too much.

        Args:
            ap: of the file, in [0, 1].
            stages: points of AP that each stage of the model costs alone, if that is known.
        """
        ranked = sorted(stages or {}, key=lambda stage: -(stages or {})[stage])
        blame = ", ".join(f"the {stage} alone {(stages or {})[stage]:.2f}" for stage in ranked)
        word = self.settings.word
        return DetrkitError(
            f"{word} costs {100 * (self.float_ap - ap):.2f} points of AP ({100 * self.float_ap:.2f} in float32, "
            f"{100 * ap:.2f} in {word}) on {self.images} images of {self.name}, at most {self.settings.max_drop:g} "
            f"pass; {blame + '; ' if blame else ''}no file was written"
        )

    def _evaluate(self, exported: ExportedModel) -> Any:
        rule: dict[str, Any] = {"split": self.settings.split, "limit": self.settings.images}
        return evaluate((exported, self.spec), self.settings.data, device="cpu", batch_size=2, masks=False, **rule)
