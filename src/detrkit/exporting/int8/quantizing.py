"""From files in float32 to files in INT8 that have passed the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from detrkit.exporting.int8.calibration import calibration_dataset, calibration_inputs
from detrkit.exporting.int8.layers import STAGES, Stage, layers_of, of_stages
from detrkit.exporting.int8.onnx import quantize_onnx
from detrkit.exporting.int8.openvino import quantize_openvino
from detrkit.exporting.reduced import AccuracyGate, ReducedSettings
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.metadata import ExportInfo, Format
from detrkit.runtimes.model import ExportedModel
from detrkit.runtimes.sessions import Arrays, require
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.visible import first_line

NEEDED: Mapping[Format, tuple[str, ...]] = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "nncf"), "torch": ()}


def check_format(kind: Format) -> None:
    """Check that there is INT8 for a format.

    Raises:
        SettingError: there is none.
        DetrkitError: a package is missing.
    """
    if not NEEDED[kind]:
        raise SettingError(f"INT8 is written for onnx and openvino, not for {kind}: name the file .onnx or .xml")
    require(*NEEDED[kind])


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
        settings: ReducedSettings,
    ) -> None:
        self.files, self.exported, self.spec, self.settings = files, exported, spec, settings
        self.layers = layers_of(graph)
        if not self.layers:
            raise DetrkitError(
                f"{spec.name}: there is no layer for INT8 in its parts called backbone and encoder: export it without"
            )
        stages = [stage for stage in STAGES if any(layer.stage == stage for layer in self.layers)]
        self.info = replace(info, int8=tuple(stages))
        dataset = calibration_dataset(settings.calibration, settings.split)
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

    def passed(self, folder: Path) -> tuple[Path, AccuracyGate, float]:
        """Write INT8 that passes the gate.

        Args:
            folder: empty, for what is written.

        Returns:
            The model's file, the gate and the file's AP in [0, 1].

        Raises:
            DetrkitError: INT8 costs more AP than it may; names the stages, the one that costs most first.
        """
        gate = AccuracyGate(self.exported, self.spec, self.settings)
        path = self.write(self.info.int8, folder / "all")
        ap = gate.ap(path)
        if not gate.passes(ap):
            costs = {stage: gate.float_ap - gate.ap(self.write([stage], folder / stage)) for stage in self.info.int8}
            raise gate.refusal(ap, {stage: 100 * cost for stage, cost in costs.items()})
        return path, gate, ap
