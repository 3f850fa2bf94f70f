"""From files in float32 to files of reduced precision, INT8 or half, that have passed the gate of AP."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detrkit.data import Dataset
from detrkit.exporting.graph import Recorded
from detrkit.exporting.half import check_half, write_half
from detrkit.exporting.int8.quantizing import Quantizer, check_format
from detrkit.exporting.measuring import Cost, measure
from detrkit.exporting.reduced import AccuracyGate, ReducedCheck, ReducedSettings
from detrkit.runtimes.metadata import ExportInfo, Format, Half
from detrkit.runtimes.model import ExportedModel, load_exported
from detrkit.utils.errors import SettingError

INT8_MAX_DROP = 0.5  # points of AP, by default
HALF_MAX_DROP = 0.2


def reduced_settings(
    kind: Format,
    *,
    int8: str | Path | Dataset | Any | None,
    half: Half | None,
    calibration_images: int,
    data: str | Path | Dataset | Any | None,
    split: str | None,
    images: int | None,
    max_drop: float | None,
) -> ReducedSettings | None:
    """Return what a file of reduced precision is made with; None of float32. The arguments are those of `export`.

    Raises:
        SettingError: a format without it, half precision without a dataset, or both precisions.
        DetrkitError: a package is missing, or this machine does not compute in it.
    """
    rule: dict[str, Any] = {"split": split, "images": images}
    if half is not None:
        if int8 is not None:
            raise SettingError(f"half={half!r} and int8: choose one of them")
        check_half(half, kind)
        if data is None:
            raise SettingError(f"half={half!r}: half precision is judged by its AP: name a dataset with data (--data)")
        return ReducedSettings(half=half, data=data, max_drop=HALF_MAX_DROP if max_drop is None else max_drop, **rule)
    if int8 is None:
        return None
    check_format(kind)
    rule["max_drop"] = INT8_MAX_DROP if max_drop is None else max_drop
    evaluation = int8 if data is None else data
    return ReducedSettings(calibration=int8, calibration_images=calibration_images, data=evaluation, **rule)


def reduce_files(
    recorded: Recorded,
    files: Sequence[Path],
    exported: ExportedModel,
    settings: ReducedSettings,
    *,
    timing: bool,
    say: Callable[[str], None],
) -> tuple[ReducedCheck, ExportInfo]:
    """Replace files by those of reduced precision, if they pass the gate.

    Args:
        recorded: the graph.
        files: in float32, the model's first; the .onnx file that they were made of is beside it.
        exported: of them.
        settings: of the precision.
        timing: measure latency and memory of both.
        say: prints a line of progress.

    Returns:
        What was checked, and the description of the new files.

    Raises:
        DetrkitError: they cost more AP than they may. The files are as they were.
    """
    folder = files[0].with_name("reduced")
    folder.mkdir()
    graph = files[0].with_suffix(".onnx")
    if settings.half is None:
        say(f"calibrating INT8 on up to {settings.calibration_images} images")
        quantizer = Quantizer(files, graph, exported, recorded.info, recorded.spec, settings)
        info, count = quantizer.info, len(quantizer.inputs)
        computed = f"{len(quantizer.layers)} layers of {' and '.join(info.int8)}"
        say("quantizing, and measuring AP in float32 and INT8")
        path, gate, ap = quantizer.passed(folder)
    else:
        info, count = replace(recorded.info, half=settings.half), 0
        path = folder / files[0].name
        computed = write_half(files[0], graph, path, info.metadata(recorded.spec))
        say(f"measuring AP in float32 and {settings.half}")
        gate = AccuracyGate(exported, recorded.spec, settings)
        ap = gate.ap(path)
        if not gate.passes(ap):
            raise gate.refusal(ap)
    costs: tuple[Cost | None, Cost | None] = (None, None)
    if timing:
        costs = measure(exported, load_exported(path)[0], recorded.spec)
    check = ReducedCheck(
        precision=settings.word,
        computed=computed,
        data=gate.name,
        images=gate.images,
        calibration_images=count,
        float_ap=gate.float_ap,
        ap=ap,
        float_bytes=sum(file.stat().st_size for file in files),
        float_cost=costs[0],
        cost=costs[1],
    )
    for file in files:
        shutil.move(path.with_suffix(file.suffix), file)
    return check, info
