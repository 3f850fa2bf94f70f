"""`Recording`: intermediate tensors of one forward pass, in memory or as .npz."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from detrkit.comparison.stages import is_stage, order_of
from detrkit.structures.outputs import Target
from detrkit.utils.atomic import atomic_file
from detrkit.utils.errors import DetrkitError

if TYPE_CHECKING:
    from detrkit.comparison.runners import ModelRunner

INPUT = "input"
TARGETS = ("target.labels", "target.boxes", "target.masks")


@dataclass(frozen=True)
class Recording:
    """Stages that a model computed for one image.

    Attributes:
        name: of the model, for messages and headings.
        stages: CPU tensors by name (see `detrkit.comparison.stages`), in the order the data meets them.
        pixels: (1, 3, H, W) float, the normalized input; None if a file does not hold it.
        target: the objects for which the losses were computed, or None.
    """

    name: str
    stages: dict[str, Tensor] = field(repr=False)
    pixels: Tensor | None = field(default=None, repr=False)
    target: Target | None = field(default=None, repr=False)


@torch.inference_mode()
def record(runner: ModelRunner, pixels: Tensor, target: Target | None = None) -> Recording:
    """Run a model and record its stages; losses, too, if there are objects.

    detrkit's criterion computes the losses from the model's outputs, whatever its framework.

    Args:
        runner: runs the model.
        pixels: (1, 3, H, W) float, normalized.
        target: the objects of the image, boxes cxcywh in [0, 1].

    Raises:
        DetrkitError: the model has masks and the target has none, or outputs are not finite.
    """
    outputs, stages = runner.run(pixels)
    if target is not None:
        losses = runner.criterion()(outputs.to("cpu"), [target])
        stages |= {name: value for name, value in losses.items() if name.startswith("loss_")}
    ordered = {name: stages[name].detach().cpu() for name in sorted(stages, key=order_of)}
    return Recording(runner.name, ordered, pixels, target)


def save_recording(path: str | Path, recording: Recording) -> Path:
    """Write a recording as .npz: an array per stage, `input`, and `target.labels`, `.boxes` and `.masks`.

    Args:
        path: the file; its folder is created.
        recording: to write.

    Raises:
        DetrkitError: the name does not end with .npz, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise DetrkitError(f"{path}: the name of a stage file must end with .npz")
    arrays = {name: tensor.numpy() for name, tensor in recording.stages.items()}
    if recording.pixels is not None:
        arrays[INPUT] = recording.pixels.numpy()
    if recording.target is not None:
        parts = (recording.target.labels, recording.target.boxes, recording.target.masks)
        arrays |= {name: part.numpy() for name, part in zip(TARGETS, parts, strict=True) if part is not None}
    with atomic_file(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return path


def load_recording(path: str | Path) -> Recording:
    """Read a recording that `save_recording` or another framework wrote.

    Another framework may leave out stages, `input` and the targets. Batches hold one image.

    Raises:
        DetrkitError: the file is missing or damaged, an array is neither a stage nor an input, or has another shape.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    except FileNotFoundError as error:
        raise DetrkitError(f"{path}: no such stage file") from error
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DetrkitError(f"{path}: damaged, or not a .npz file of numbers") from error
    wrong = [name for name in arrays if not is_stage(name) and name not in (INPUT, *TARGETS)]
    if wrong:
        raise DetrkitError(f"{path}: {wrong[0]!r} is no stage; the names are listed in docs/comparison.md")
    for name, shape in {INPUT: (1, 3, None, None), "target.boxes": (None, 4), "target.labels": (None,)}.items():
        if name in arrays:
            _check(path, name, arrays[name], shape)
    pixels, (labels, boxes, masks) = arrays.get(INPUT), (arrays.get(name) for name in TARGETS)
    target = None
    if labels is not None or boxes is not None:
        if labels is None or boxes is None or len(labels) != len(boxes):
            raise DetrkitError(f"{path}: target.labels and target.boxes must be of the same objects")
        target = Target(labels.long(), boxes.float(), None if masks is None else masks.bool())
    stages = {name: arrays[name] for name in sorted(filter(is_stage, arrays), key=order_of)}
    return Recording(path.name, stages, None if pixels is None else pixels.float(), target)


def _check(path: Path, name: str, array: Tensor, shape: tuple[int | None, ...]) -> None:
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        expected = " x ".join("any" if size is None else str(size) for size in shape)
        raise DetrkitError(f"{path}: {name} is {' x '.join(map(str, array.shape))}, expected {expected}")
