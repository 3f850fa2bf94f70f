"""Published checkpoints to evaluate: which of them, their files, their models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detrkit.backbones.base import Padding
from detrkit.models.base import DetectionModel
from detrkit.models.pretrained import PUBLISHED, Published
from detrkit.reproduction.data import DatasetPaths
from detrkit.utils.console import console
from detrkit.utils.download import sha256
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import published_weights
from detrkit.weights.checkpoint import ModelSpec, load_model, published_spec


def chosen_rows(names: str | Sequence[str] | None, paths: DatasetPaths, weights: Path | None) -> list[Published]:
    """Choose the checkpoints to evaluate.

    Raises:
        DetrkitError: an unknown name, or none that can be evaluated.
    """
    if names is not None and len(names):
        selected = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        for name in selected:
            if name not in PUBLISHED:
                raise DetrkitError(f"{name}: no published weights; choose from {', '.join(PUBLISHED)}")
        return [PUBLISHED[name] for name in selected]
    if paths.coco is None and paths.panoptic is None:
        raise DetrkitError("no data is given: --coco FOLDER for boxes, --panoptic FOLDER for panoptic models")
    rows = []
    for row in PUBLISHED.values():
        has_file = weights is not None and (weights / row.file).is_file()
        if not paths.has(row.evaluation):
            console.print(f"left out: {row.name} (give --{row.evaluation.data})")
        elif not row.downloadable and not has_file:
            console.print(f"left out: {row.name} (put {row.file} into the folder of --weights; see {row.where})")
        else:
            rows.append(row)
    return rows


def weights_file(row: Published, weights: Path | None, *, alone: bool = False) -> Path:
    """Return the file of a checkpoint: a given one, or the download.

    Args:
        row: the published checkpoint.
        weights: a folder with files of the published names, or a file; None downloads the file.
        alone: whether this is the only checkpoint, so that `weights` may be its file.

    Raises:
        DetrkitError: the file is not available, or is not the published one.
    """
    file = None
    if weights is not None and weights.is_file():
        if not alone:
            raise DetrkitError(f"{weights} is a file: name the one model that it belongs to, or give a folder")
        file = weights
    elif weights is not None and not weights.is_dir():
        raise DetrkitError(f"{weights}: no such file or folder of weights")
    elif weights is not None and (weights / row.file).is_file():
        file = weights / row.file
    if file is None and not row.downloadable:
        raise DetrkitError(
            f"{row.name}: get its file from {row.where} and give it with --weights, as FOLDER/{row.file}"
        )
    if file is None:
        return published_weights(row.name)
    if row.sha256 is not None and not (digest := sha256(file)).startswith(row.sha256):
        other = next((p for p in PUBLISHED.values() if p.sha256 is not None and digest.startswith(p.sha256)), None)
        what = f"that is {other.file}" if other else f"its SHA-256 starts with {digest[:8]}, not with {row.sha256}"
        fix = "remove it, and it is downloaded" if row.downloadable else f"get it from {row.where}"
        raise DetrkitError(f"{file} is not the published file of {row.name}: {what}; {fix}")
    return file


def load_published(
    row: Published, file: Path, *, size: int | None, max_size: int | None
) -> tuple[DetectionModel, ModelSpec]:
    """Load a published checkpoint, and return it with the spec of its published evaluation.

    Args:
        row: the published checkpoint.
        file: its weights.
        size: short side of the input in pixels; None: as published.
        max_size: longest side of the input in pixels; None: as published, in proportion to `size`.

    Raises:
        DetrkitError: weights that are damaged or do not fit the model.
    """
    settings = row.evaluation
    model, loaded_spec = load_model(file, name=row.model)
    published_spec(row.name).check_max_size(max_size)
    if max_size is None and settings.max_size is not None:
        max_size = settings.max_size if size is None else round(settings.max_size * size / settings.size)
    # the file of a Deformable DETR does not hold its classes
    spec = replace(published_spec(row.name), options=loaded_spec.options, size=size or settings.size, max_size=max_size)
    return model, spec


def with_padding(model: DetectionModel, spec: ModelSpec, padding: Padding) -> DetectionModel:
    """Return a model with the same weights and another kind of padding."""
    if padding == spec.padding:
        return model
    other = replace(spec, padding=padding).build()
    other.load_state_dict(model.state_dict())
    return other.eval()
