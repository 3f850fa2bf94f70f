"""The official command `main.py --eval ...` of facebookresearch/detr, with its arguments, on detrkit's evaluation."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detrkit.engine.metrics import evaluated_parts, part_name
from detrkit.engine.processes import leave_processes
from detrkit.models.base import DetectionModel
from detrkit.models.pretrained import PUBLISHED, Published
from detrkit.models.registry import ARCHITECTURES, architecture, build_options
from detrkit.reproduction.data import DatasetPaths, EvaluationData
from detrkit.reproduction.running import run
from detrkit.reproduction.tables import metrics_table
from detrkit.structures.coco_classes import COCO_91, COCO_250
from detrkit.utils.console import console
from detrkit.utils.download import download
from detrkit.utils.errors import DetrkitError, Interrupted
from detrkit.utils.signals import SignalWatch, Stopped, number_of
from detrkit.weights.build import load_weights
from detrkit.weights.checkpoint import ModelSpec
from detrkit.weights.describe import check
from detrkit.weights.files import find_weights, read_weights

ABOUT = "Evaluates a DETR as the original main.py --eval does, with its arguments; published checkpoints are verified."
# options of main.py that do not affect an evaluation, with their types and defaults
_TRAINING: dict[str, tuple[type, Any]] = {
    **{"lr": (float, 1e-4), "lr_backbone": (float, 1e-5), "weight_decay": (float, 1e-4), "epochs": (int, 300)},
    **{"lr_drop": (int, 200), "clip_max_norm": (float, 0.1), "frozen_weights": (str, None)},
    **{"set_cost_class": (float, 1), "set_cost_bbox": (float, 5), "set_cost_giou": (float, 2)},
    **{"mask_loss_coef": (float, 1), "dice_loss_coef": (float, 1), "bbox_loss_coef": (float, 5)},
    **{"giou_loss_coef": (float, 2), "eos_coef": (float, 0.1), "seed": (int, 42), "start_epoch": (int, 0)},
    **{"world_size": (int, 1), "dist_url": (str, "env://")},
}
# options of main.py that define the model
_MODEL: dict[str, tuple[type, Any]] = {
    **{"backbone": (str, "resnet50"), "enc_layers": (int, 6), "dec_layers": (int, 6), "dim_feedforward": (int, 2048)},
    **{"hidden_dim": (int, 256), "dropout": (float, 0.1), "nheads": (int, 8), "num_queries": (int, 100)},
}
# options that have another name in `detrkit train`; None: it has no such option
_RENAMED = {"frozen_weights": "freeze_detector", "start_epoch": None, "world_size": None, "dist_url": None}


def parser() -> argparse.ArgumentParser:
    """Build a parser with the arguments and defaults of the official main.py."""
    arguments = argparse.ArgumentParser(prog="reproduce.py", description=ABOUT)
    add = arguments.add_argument
    add("--eval", action="store_true", help="evaluate (training is `detrkit train`)")
    add("--resume", default="", help="the checkpoint: the address of a published file, or a path")
    add("--dataset_file", default="coco", choices=("coco", "coco_panoptic"), help="what to evaluate on")
    add("--coco_path", help="folder with val2017/ and annotations/instances_val2017.json")
    add("--coco_panoptic_path", help="folder with panoptic_val2017/ and annotations/panoptic_val2017.json")
    add("--masks", action="store_true", help="a model with masks")
    add("--dilation", action="store_true", help="a DC5 model")
    add("--pre_norm", action="store_true", help="a model that normalizes before its layers")
    add("--position_embedding", default="sine", choices=("sine", "learned"), help="of the model")
    for name, (kind, value) in _MODEL.items():
        add(f"--{name}", type=kind, default=value, help=f"of the model ({value})")
    add("--batch_size", type=int, default=2, help="images per process and step (2); does not change the metrics")
    add("--num_workers", type=int, default=2, help="processes that load images (2)")
    add("--device", help="cuda, cpu, ...; by default CUDA where there is one")
    add("--output_dir", default="", help="folder of the report; by default reproduction/MODEL")
    makes_none = "accepted; makes no difference to an evaluation"
    add("--no_aux_loss", action="store_false", dest="aux_loss", help=makes_none)
    add("--remove_difficult", action="store_true", help=makes_none)
    for name, (kind, value) in _TRAINING.items():
        add(f"--{name}", type=kind, default=value, help=makes_none)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run an official command.

    Args:
        argv: the words after `main.py`; by default those of the process.

    Returns:
        The exit status: 0 after an evaluation, 2 for bad input, which is described in one line on stderr; 128 + signal
        if interrupted.
    """
    arguments = parser().parse_args(argv)
    try:
        with SignalWatch(program=argv is None):
            evaluate(arguments)
    except DetrkitError as error:
        print(f"reproduce.py: error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"reproduce.py: {stop}", file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt as stop:
        print(f"reproduce.py: {Stopped(number_of(stop))}; the same command goes on", file=sys.stderr)
        return 128 + number_of(stop)
    leave_processes()
    return 0


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate the model of the arguments, print the tables and write the report.

    Raises:
        DetrkitError: arguments without an evaluation, weights that do not fit them, or data that cannot be read.
    """
    if not arguments.eval:
        raise DetrkitError(f"without --eval main.py trains, which here is: {training_command(arguments)}")
    if not arguments.resume:
        raise DetrkitError("--resume is missing: give the checkpoint, a path or the address of a published file")
    if arguments.coco_path is None:
        raise DetrkitError("--coco_path is missing: give the folder with val2017/ and annotations/")
    panoptic = arguments.dataset_file == "coco_panoptic"
    if panoptic and arguments.coco_panoptic_path is None:
        raise DetrkitError("--coco_panoptic_path is missing: give the folder with panoptic_val2017/ and annotations/")
    model, spec, file, row = load_checkpoint(arguments)
    paths = DatasetPaths.expanded(arguments.coco_path, arguments.coco_panoptic_path)
    data = EvaluationData.open(paths, panoptic=panoptic and arguments.masks, masks=arguments.masks)
    folder = Path(arguments.output_dir or Path("reproduction") / spec.name)
    result = run(
        model,
        spec,
        data,
        folder,
        weights=file,
        row=row,
        batch_size=arguments.batch_size,
        device=arguments.device,
        workers=arguments.num_workers,
        quiet=False,
    )
    for part in evaluated_parts(result.metrics):
        console.print(f"{part_name(part)}:\n{part.table()}")
    console.print(metrics_table([result]))
    for difference in result.differences:
        console.print(str(difference))
    console.print(f"report: {folder / 'report.md'}")


class LoadedCheckpoint(NamedTuple):
    """A checkpoint with its model.

    Attributes:
        model: with the weights.
        spec: of the model.
        file: the checkpoint.
        row: the published checkpoint that it is, or None.
    """

    model: DetectionModel
    spec: ModelSpec
    file: Path
    row: Published | None


def load_checkpoint(arguments: argparse.Namespace) -> LoadedCheckpoint:
    """Build the model of the arguments, with the checkpoint's weights.

    Raises:
        DetrkitError: the file is not available, or is of another model.
    """
    name, options = model_name(arguments)
    panoptic = arguments.dataset_file == "coco_panoptic"
    classes = COCO_250 if panoptic else COCO_91
    entry = architecture(name)
    spec = ModelSpec(name, options, num_classes=len(classes), classes=classes, max_size=entry.max_size)
    path = resumed_file(arguments.resume)
    file = read_weights(path)
    try:
        check(file, entry, build_options(entry, options))
    except DetrkitError as error:
        raise DetrkitError(f"{error}; the arguments have to be those of the checkpoint") from error
    model = spec.build()
    try:
        load_weights(model, file)
    except DetrkitError as error:
        raise DetrkitError(f"{path}: {error}") from error
    row = PUBLISHED[name] if file.published == name and not options else None
    return LoadedCheckpoint(model, spec, path, row)


def model_name(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Find the published architecture nearest to the arguments.

    Returns:
        Its name, and overrides of `build_model` for the arguments that differ from it.
    """
    requested = {
        name: getattr(arguments, name) for name in (*_MODEL, "masks", "dilation", "pre_norm", "position_embedding")
    }
    defaults = {name: value for name, (_, value) in _MODEL.items()}
    defaults |= {"masks": False, "dilation": False, "pre_norm": False, "position_embedding": "sine"}
    classes = 250 if arguments.dataset_file == "coco_panoptic" else 91

    def differing(name: str) -> dict[str, Any]:
        built = defaults | dict(ARCHITECTURES[name].options)
        return {option: value for option, value in requested.items() if built[option] != value}

    names = [n for n in ARCHITECTURES if n.startswith(("detr-r50", "detr-r101"))]
    names.sort(key=lambda n: (len(differing(n)), ARCHITECTURES[n].num_classes != classes))
    return names[0], differing(names[0])


def resumed_file(resume: str) -> Path:
    """Return the file of `--resume`: a path, or an address whose file is downloaded and verified.

    Raises:
        DetrkitError: the file is not available, or cannot be verified.
    """
    if not re.match(r"https?://", resume):
        return find_weights(resume)
    name = resume.rsplit("/", 1)[1]
    row = next((row for row in PUBLISHED.values() if row.file == name and row.sha256), None)
    digits = re.search(r"-([0-9a-f]{8})\.\w+$", name)
    prefix = row.sha256 if row is not None else digits and digits[1]
    if not prefix:
        raise DetrkitError(
            f"--resume {resume}: no published file, and its name has no hash to verify it; download it and give its "
            "path"
        )
    return download(resume, sha256_prefix=prefix)


def training_command(arguments: argparse.Namespace) -> str:
    """Return the `detrkit train` command of arguments without `--eval`."""
    name, options = model_name(arguments)
    data = arguments.coco_panoptic_path if arguments.dataset_file == "coco_panoptic" else arguments.coco_path
    words = ["detrkit", "train", data or "COCO", "--model", name, "--ids", "official"]
    for option, value in options.items():
        words += ["--" + option.replace("_", "-"), str(value)]
    for option, (_, default) in {**_TRAINING, "batch_size": (int, 2)}.items():
        new_name, value = _RENAMED.get(option, option), getattr(arguments, option)
        if new_name is not None and value != default:
            words += ["--" + new_name.replace("_", "-"), str(value)]
    if not arguments.aux_loss:
        words += ["--aux-loss", "False"]
    if arguments.resume:
        words += ["--init-from", arguments.resume]
    if arguments.output_dir:
        words += ["--out", arguments.output_dir]
    return shlex.join(words)
