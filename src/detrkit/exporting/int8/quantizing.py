"""From files in float32 to files in INT8 that have passed the gate."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detrkit.data import Dataset
from detrkit.exporting.int8.calibration import calibration_dataset, calibration_inputs
from detrkit.exporting.int8.gate import AccuracyGate, Int8Check
from detrkit.exporting.int8.layers import STAGES, Stage, layers_of, of_stages
from detrkit.exporting.int8.onnx import quantize_onnx
from detrkit.exporting.int8.openvino import quantize_openvino
from detrkit.exporting.measuring import Cost, measure
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.metadata import ExportInfo, Format
from detrkit.runtimes.model import ExportedModel, load_exported
from detrkit.runtimes.sessions import Arrays
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.visible import first_line

MAX_DROP = 0.5  # points of AP, by default
NEEDED: Mapping[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "nncf"), "torch": ()}


@dataclass(frozen=True, kw_only=True)
class Int8Settings:
    """What INT8 is made and judged with.

    Attributes:
        data: a dataset whose images calibrate, as `open_dataset` takes it: its split "train", if there is one.
        calibration_images: number of them at most.
        evaluation: the dataset that AP is measured on.
        split: of it.
        images: number of its images at most.
        max_drop: points of AP (hundredths) that INT8 may cost.
    """

    data: str | Path | Dataset | Any
    calibration_images: int
    evaluation: str | Path | Dataset | Any
    split: str | None
    images: int | None
    max_drop: float


def check_format(kind: Format) -> None:
    """Check that there is INT8 for a format.

    Raises:
        SettingError: there is none.
    """
    if not NEEDED[kind]:
        raise SettingError(f"INT8 is written for onnx and openvino, not for {kind}: name the file .onnx or .xml")


class Quantizer:
    """Writes INT8 of the files of one export.

    Args:
        files: in float32, the model's first.
        graph: the .onnx file that they were made of.
        exported: of them.
        info: of the graph.
        spec: of the model.
        settings: of INT8.
    """

    def __init__(
        self,
        files: Sequence[Path],
        graph: Path,
        exported: ExportedModel,
        info: ExportInfo,
        spec: ModelSpec,
        settings: Int8Settings,
    ) -> None:
        self.files, self.exported, self.spec, self.settings = files, exported, spec, settings
        self.layers = layers_of(graph)
        if not self.layers:
            raise DetrkitError(
                f"{spec.name}: there is no layer for INT8 in its parts called backbone and encoder: export it without"
            )
        stages = [stage for stage in STAGES if any(layer.stage == stage for layer in self.layers)]
        self.info = replace(info, int8=tuple(stages))
        dataset = calibration_dataset(settings.data, settings.split)
        self.inputs: list[Arrays] = calibration_inputs(exported, spec, dataset, settings.calibration_images)

    def write(self, stages: Sequence[Stage], folder: Path) -> Path:
        """Write files of the same names with these stages in 8 bits; return the model's.

        Raises:
            DetrkitError: the runtime's tool fails.
        """
        folder.mkdir()
        source, nodes = self.files[0], of_stages(self.layers, stages)
        target = folder / source.name
        metadata = self.info.metadata(self.spec)
        try:
            if self.info.format == "onnx":
                quantize_onnx(source, target, self.inputs, nodes, metadata)
            else:
                quantize_openvino(source, target, self.inputs, nodes, metadata)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # both tools have exceptions of their own for every stage
            raise DetrkitError(f"the model cannot be quantized: {first_line(error)[:300]}") from error
        return target

    def passed(self, folder: Path, *, timing: bool) -> Int8Check:
        """Replace the files by INT8 that has passed the gate.

        Args:
            folder: empty, for what is written on the way.
            timing: measure latency and memory of both files.

        Raises:
            DetrkitError: INT8 costs more AP than it may; names the stages. The files are as they were.
        """
        settings = self.settings
        gate = AccuracyGate(
            self.exported,
            self.spec,
            settings.evaluation,
            split=settings.split,
            images=settings.images,
            max_drop=settings.max_drop,
        )
        stages: tuple[Any, ...] = self.info.int8
        path = self.write(stages, folder / "all")
        ap = gate.ap(path)
        gate.check(ap, self.layers, lambda some: self.write(some, folder / "-".join(some)))
        costs: tuple[Cost | None, Cost | None] = (None, None)
        if timing:
            costs = measure(self.exported, load_exported(path)[0], self.spec)
        check = Int8Check(
            data=gate.name,
            images=gate.images,
            calibration_images=len(self.inputs),
            layers=len(self.layers),
            float_ap=gate.float_ap,
            int8_ap=ap,
            float_bytes=sum(file.stat().st_size for file in self.files),
            float_cost=costs[0],
            int8_cost=costs[1],
        )
        for file in self.files:
            shutil.move(path.with_suffix(file.suffix), file)
        return check
