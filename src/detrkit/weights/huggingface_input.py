"""The preprocessor_config.json of a Hugging Face directory: how images become a model's input."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from detrkit.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from detrkit.models.spec import MAX_SIDE, ModelSpec
from detrkit.utils.documents import parse_json, read_bytes, shown
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.schema import validated_as
from detrkit.weights.huggingface_schema import Edges, Preprocessor

log = logging.getLogger(__name__)

PREPROCESSOR = "preprocessor_config.json"
BILINEAR = 2  # PIL's number, which transformers writes for its resampling
_UNNORMALIZED = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)  # mean and std of pixels in [0, 1] that stay as they are
_UNLIMITED = MAX_SIDE  # a longest side in pixels that no image has: transformers requires one
_EDGES, _SQUARE = {"shortest_edge": 800, "longest_edge": 1333}, {"height": 640, "width": 640}  # transformers' defaults


def preprocessor_of(spec: ModelSpec, *, kind: str) -> dict[str, Any]:
    """Build the content of preprocessor_config.json for a model of this `model_type`."""
    prefix = {"detr": "Detr", "deformable_detr": "DeformableDetr"}.get(kind, "RTDetr")
    edges = {"shortest_edge": spec.size, "longest_edge": spec.max_size or _UNLIMITED}
    return {
        "image_processor_type": f"{prefix}ImageProcessor",
        "format": "coco_detection",
        "do_resize": True,
        "size": {"height": spec.size, "width": spec.size} if spec.square else edges,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": (*spec.mean, *spec.std) != _UNNORMALIZED,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "do_pad": not spec.square,
    }


def input_of(folder: Path, *, squashed: bool) -> dict[str, Any]:
    """Read how the input is prepared; without a file, as transformers does by default: as published.

    Args:
        folder: with or without the file.
        squashed: whether the model's images are squashed to a square and not normalized by default.

    Raises:
        DetrkitError: a preparation that detrkit does not have.
    """
    path = folder / PREPROCESSOR
    fields = read_object(path, Preprocessor) if path.exists() else {}
    size = fields.get("size", _SQUARE if squashed else _EDGES)
    if isinstance(size, int) and not isinstance(size, bool):  # of transformers before 4.27
        size = {"shortest_edge": size, "longest_edge": fields.get("max_size", 1333)}
    for field in ("do_resize", "do_rescale"):
        if not fields.get(field, True):
            raise DetrkitError(f"{path}: {field} is false: detrkit always resizes and normalizes its input")
    if abs(fields.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise DetrkitError(f"{path}: rescale_factor is {fields['rescale_factor']}: detrkit has 1/255")
    if fields.get("resample") not in (None, BILINEAR):
        log.warning(
            "%s: resample is %d: detrkit resizes bilinearly (2), so that its results differ a little",
            path,
            fields["resample"],
        )
    normalized = fields.get("do_normalize", not squashed)
    if not normalized and not squashed:
        raise DetrkitError(f"{path}: do_normalize is false: detrkit always resizes and normalizes its input")
    return {
        "mean": list(fields.get("image_mean", IMAGENET_MEAN)) if normalized else [0.0] * 3,
        "std": list(fields.get("image_std", IMAGENET_STD)) if normalized else [1.0] * 3,
        **_size(path, size),
    }


def _size(path: Path, size: Any) -> dict[str, Any]:
    """Read the size of the input: by the short side, or a square.

    Raises:
        DetrkitError: neither.
    """
    if isinstance(size, dict) and "height" in size and size.get("height") == size.get("width"):
        size = {"shortest_edge": size["height"], "square": True}
    if not isinstance(size, dict) or not size.get("shortest_edge"):
        raise DetrkitError(
            f"{path}: size is {shown(size)}: detrkit resizes by the short side, such as "
            '{"shortest_edge": 800, "longest_edge": 1333}, or to a square, such as {"height": 640, "width": 640}'
        )
    try:
        validated_as(Edges, size)
    except SettingError as error:
        raise DetrkitError(f"{path}: size.{error}") from error
    longest = size.get("longest_edge")
    return {
        "size": size["shortest_edge"],
        "max_size": longest if longest is not None and longest < _UNLIMITED else None,
        **({"square": True} if size.get("square") else {}),
    }


def read_object(path: Path, kind: Any) -> dict[str, Any]:
    """Read a JSON file and check its fields.

    Raises:
        DetrkitError: no JSON object in the file, or a field of another type or out of its range.
    """
    content = parse_json(read_bytes(path), str(path))
    if not isinstance(content, dict):
        raise DetrkitError(f"{path}: a JSON object expected")
    try:
        validated_as(kind, content)
    except SettingError as error:
        raise DetrkitError(f"{path}: {error}") from error
    return content
