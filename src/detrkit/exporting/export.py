"""`export`: the whole way from a checkpoint to a file that has passed the gates."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detrkit.data import Dataset
from detrkit.detector import Detector
from detrkit.engine.memory import free_unused, peak_mib, reset_peak
from detrkit.exporting.gates import Gate, check_outputs
from detrkit.exporting.graph import Recorded, record
from detrkit.exporting.measuring import AccuracyCheck, Cost, check_accuracy, measure
from detrkit.exporting.reduced import ReducedCheck, ReducedSettings
from detrkit.exporting.reducing import reduce_files, reduced_settings
from detrkit.exporting.report import ExportReport
from detrkit.exporting.writers import NEEDED, SUFFIX, write
from detrkit.models.base import DetectionModel
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.metadata import FORMATS, SUFFIXES, Format, Half
from detrkit.runtimes.model import ExportedModel, load_exported
from detrkit.runtimes.sessions import require
from detrkit.utils.atomic import locked_temporary, make_folder, sweep, write_atomic, write_errors
from detrkit.utils.console import console
from detrkit.utils.download import sha256 as file_sha256
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.machine import machine
from detrkit.utils.names import real_path
from detrkit.utils.ranges import BatchSize, Count, Pixels, Points, check_arguments
from detrkit.utils.torch_defaults import own_defaults
from detrkit.weights.checkpoint import load_model, located
from detrkit.weights.files import find_weights

_CPU = torch.device("cpu")
MAX_DROP = 0.1  # points of AP, by default, in float32

Model = str | Path | Detector | tuple[DetectionModel, ModelSpec]


def export(
    model: Model,
    path: str | Path,
    *,
    format: Format | None = None,
    name: str | None = None,
    fixed: tuple[Pixels, Pixels] | None = None,
    batch: BatchSize | None = None,
    postprocess: bool = False,
    data: str | Path | Dataset | Any | None = None,
    split: str | None = "val",
    images: Count | None = 500,
    int8: str | Path | Dataset | Any | None = None,
    half: Half | None = None,
    calibration_images: Count = 100,
    max_drop: Points | None = None,
    timing: bool = True,
    force: bool = False,
    quiet: bool = True,
) -> ExportReport:
    """Export a model to a file that computes the same numbers, or to none.

    The file is written under a temporary name. Its outputs are compared with those of the model in PyTorch for 1, 2
    and 8 images, square and not, padded and not, and for an image alone and in a batch; then, if there is a dataset,
    its AP. It gets its name when all of it has passed, and beside it a report, `FILE.report.md` and
    `FILE.report.json`.

    Number, height and width of the images stay free unless they are fixed.

    Args:
        model: a checkpoint, a run directory, a model name (its published weights), a Detector, or a model with its
            spec. It runs on the CPU in float32 and is not changed.
        path: the file: .onnx, .xml for OpenVINO (with a .bin beside it) or .pt2 for `torch.export`.
        format: "onnx", "openvino" or "torch"; by default as the suffix of `path` says.
        name: the model of an official file, if the file does not hold it.
        fixed: (height, width) in pixels of the only input size, for runtimes that need one. Images are then resized to
            fit into it and padded; square models take one side.
        batch: the only number of images, for runtimes that need one.
        postprocess: let the graph compute detections, too: scores, labels and boxes in pixels of the original images.
        data: a dataset to compare AP on, as `detrkit.evaluate` takes it.
        split: of the dataset.
        images: of it at most, the first ones.
        int8: a dataset whose images calibrate INT8, of its split "train" if there is one: layers of backbone and
            encoder then compute in 8-bit integers. AP in INT8 is compared with AP in float32, on `split` of `data` or,
            without it, of this dataset. For ONNX and OpenVINO.
        half: let the file compute in "bf16" or "fp16" where that keeps its AP, which `data` is needed for: OpenVINO in
            what this CPU computes, ONNX in fp16. The file in float32 passes the gates before.
        calibration_images: images that calibrate INT8, at most.
        max_drop: points of AP (hundredths) that the file may have less; by default 0.1, in half precision 0.2, in INT8
            0.5.
        timing: measure latency and memory of both, at the model's input size.
        force: replace files that are there already.
        quiet: print no progress.

    Returns:
        The report.

    Raises:
        DetrkitError: a file that is missing, exists already or cannot be written, a package that is not installed, a
            model that cannot be exported, or a gate that is not passed (then no file is written).
        ValueError: a number out of range.
    """
    ranged = {"fixed": fixed, "batch": batch, "half": half, "images": images}
    check_arguments(export, {**ranged, "calibration_images": calibration_images, "max_drop": max_drop})
    path = Path(path)
    kind = checked_format(path, format)
    require(*NEEDED[kind])
    rule: dict[str, Any] = {"split": split, "images": images, "max_drop": max_drop}
    settings = reduced_settings(kind, int8=int8, half=half, calibration_images=calibration_images, data=data, **rule)
    _check_target(path, force=force)
    net, spec, source, digest = _resolve(model, name)
    options: dict[str, Any] = {"fixed": fixed, "batch": batch, "postprocess": postprocess}
    target = real_path(path)
    make_folder(target.parent)
    sweep(target.parent)
    with (
        own_defaults(),
        torch.inference_mode(False),
        torch.no_grad(),
        write_errors(path),
        locked_temporary(target, folder=True) as folder,
    ):
        _say(f"recording {spec.name} and writing {path.name}", quiet)
        written = _written(net, spec, folder, target.stem, format=kind, source=source, sha256=digest, **options)
        exported, _ = load_exported(written.files[0])
        _say(f"comparing its outputs in {exported.session.runtime} with PyTorch's", quiet)
        gates = passed_gates(net, exported, written.recorded.spec)
        accuracy = None
        if data is not None and settings is None:
            _say("measuring AP of both", quiet)
            rule["max_drop"] = MAX_DROP if max_drop is None else max_drop
            accuracy = check_accuracy(net, exported, written.recorded.spec, data, **rule)
        costs: tuple[Cost | None, Cost | None] = (None, None)
        check, written = _reduced(written, exported, settings, timing=timing, quiet=quiet)
        if timing and settings is None:
            _say("measuring time and memory of both", quiet)
            costs = measure(net, exported, written.recorded.spec)
        report = _report(written, target, exported.session.runtime, gates, accuracy, costs, check)
        del exported  # it may have the files open
        _publish(written.files, target)
        _write_report(report, target)
    return report


def _report(
    written: _Written,
    target: Path,
    runtime: str,
    gates: Sequence[Gate],
    accuracy: AccuracyCheck | None,
    costs: tuple[Cost | None, Cost | None],
    reduced: ReducedCheck | None,
) -> ExportReport:
    """Put the report together."""
    return ExportReport(
        files=tuple(target.with_suffix(file.suffix).name for file in written.files),
        size=sum(file.stat().st_size for file in written.files),
        spec=written.recorded.spec,
        info=written.recorded.info,
        runtime=runtime,
        machine=machine(_CPU),
        gates=gates,
        accuracy=accuracy,
        model_cost=costs[0],
        exported_cost=costs[1],
        reduced=reduced,
        seconds=written.seconds,
        memory_mib=written.memory_mib,
    )


class _Written(NamedTuple):
    """A graph and its files, with what recording and writing took."""

    recorded: Recorded
    files: list[Path]
    seconds: float
    memory_mib: float


def _written(net: DetectionModel, spec: ModelSpec, folder: Path, stem: str, **options: Any) -> _Written:
    """Record a model and write its files into a folder; the options are those of `record`."""
    free_unused()
    reset_peak(_CPU)
    before, began = peak_mib(_CPU), time.perf_counter()
    recorded = record(net, spec, **options)
    files = write(recorded, folder, stem)
    return _Written(recorded, files, time.perf_counter() - began, peak_mib(_CPU) - before)


def _reduced(
    written: _Written, exported: ExportedModel, settings: ReducedSettings | None, *, timing: bool, quiet: bool
) -> tuple[ReducedCheck | None, _Written]:
    """Replace the files by those of reduced precision, if there are settings for it.

    Raises:
        DetrkitError: they cost too much AP.
    """
    if settings is None:
        return None, written
    recorded = written.recorded
    say = lambda text: _say(text, quiet)  # noqa: E731
    check, info = reduce_files(recorded, written.files, exported, settings, timing=timing, say=say)
    return check, written._replace(recorded=replace(recorded, info=info))


def _say(text: str, quiet: bool) -> None:
    """Print a line of progress."""
    if not quiet:
        console.print(text, markup=False)


def passed_gates(model: DetectionModel, exported: ExportedModel, spec: ModelSpec, *, scale: float = 1.0) -> list[Gate]:
    """Compare a file's outputs with the model's: the gates, all passed.

    Args: as of `check_outputs`.

    Raises:
        DetrkitError: one is not passed; names output, batch and difference.
    """
    gates = []
    for gate in check_outputs(model, exported, spec, scale=scale):
        if gate.failure is not None:
            raise DetrkitError(f"the exported file computes other numbers: {gate.failure}; no file was written")
        gates.append(gate)
    return gates


def checked_format(path: Path, format: Format | None) -> Format:
    """Return the format of a file that is written, by its suffix or as it was asked for.

    Raises:
        SettingError: no such format, or a suffix of another one.
    """
    if format is not None and format not in FORMATS:
        raise SettingError(f"format is {format!r}: choose one of {', '.join(FORMATS)}")
    by_suffix = SUFFIXES.get(path.suffix)
    if by_suffix is None or (format is not None and by_suffix != format):
        wanted = " or ".join(SUFFIX.values()) if format is None else SUFFIX[format]
        raise SettingError(f"{path}: the name of the file must end with {wanted}")
    return by_suffix


def report_paths(path: Path) -> tuple[Path, Path]:
    """Return the paths of the report of a file, Markdown and JSON."""
    return path.with_name(f"{path.name}.report.md"), path.with_name(f"{path.name}.report.json")


def _check_target(path: Path, *, force: bool) -> None:
    """Check that nothing is replaced without `force`, before anything takes time.

    Raises:
        DetrkitError: a file is there, or something that is no file.
    """
    files = [path, *([path.with_suffix(".bin")] if path.suffix == ".xml" else []), *report_paths(path)]
    for file in files:
        if os.path.lexists(file) and not (force and file.is_file()):
            if file.is_file():
                raise DetrkitError(f"{file} exists already: name another file, or pass force (--force) to replace it")
            raise DetrkitError(f"{file} is there and is no file: name another one")


def _resolve(model: Model, name: str | None) -> tuple[DetectionModel, ModelSpec, str, str]:
    """Return the model on the CPU in float32, its spec, and name and SHA-256 of its weights.

    Raises:
        DetrkitError: missing, damaged or unknown weights, or a model of another precision.
    """
    source, digest = "", ""
    if isinstance(model, Detector):
        net, spec = model.model, model.spec
    elif isinstance(model, tuple):
        net, spec = model
    else:
        weights, published = located(model)
        file = find_weights(weights)
        with own_defaults():
            net, spec = load_model(file, name=published or name)
        source, digest = file.name, file_sha256(file)
    if isinstance(net, ExportedModel):
        raise DetrkitError("the model is an exported one already: export the checkpoint that it was made of")
    for parameter in net.parameters():
        if parameter.device.type != "cpu" or (parameter.is_floating_point() and parameter.dtype != torch.float32):
            raise DetrkitError(
                f"the model is {str(parameter.dtype).removeprefix('torch.')} on {parameter.device}: a model in float32 "
                "on the CPU is exported, such as detector.to('cpu')"
            )
    return net.eval(), spec, source, digest


def _publish(files: list[Path], target: Path) -> None:
    """Give the files of a temporary folder their names beside the target, the model's last."""
    for file in files:
        with file.open("rb") as written:
            os.fsync(written.fileno())
    for file in reversed(files):
        os.replace(file, target.with_suffix(file.suffix))


def _write_report(report: ExportReport, target: Path) -> None:
    """Write the report beside the file."""
    page, figures = report_paths(target)
    write_atomic(page, report.to_markdown())
    write_atomic(figures, json.dumps(report.to_json(), indent=1) + "\n")


__all__ = ["Recorded", "export", "passed_gates"]
