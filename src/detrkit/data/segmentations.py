"""COCO segmentations, polygons or RLE: their faults, and the masks that they mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hotcoco import mask as rle_codec
from torch import Tensor

from detrkit.data.panoptic import read_id_map, segment_masks
from detrkit.data.sample import Record
from detrkit.data.sources import ImageSource
from detrkit.utils.documents import shown
from detrkit.utils.errors import DetrkitError

_POINTS = 3  # a polygon has at least this many
_EXPECTED = "expected polygons [[x1, y1, x2, y2, x3, y3, ...], ...] in pixels, or an RLE with size and counts"


def segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Say why a segmentation means no mask of (height, width) = `size`, or return None.

    Polygons are checked number by number. (pycocotools and its successors take a "polygon" of two points for a box
    [x, y, width, height].) An RLE is decoded.
    """
    if isinstance(segmentation, list) and segmentation:
        for line in segmentation:
            reason = _polygon_fault(line)
            if reason is not None:
                return f"{reason}: {_EXPECTED}"
        return None
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, size)
    return f"segmentation {shown(segmentation)} is neither polygons nor an RLE: {_EXPECTED}"


def _polygon_fault(line: Any) -> str | None:
    """Say why a list is no polygon, or return None."""
    if type(line) is not list:
        return f"segmentation has {shown(line)} in place of a polygon"
    if len(line) < 2 * _POINTS:
        return f"polygon {shown(line)} has fewer than {_POINTS} points"
    if len(line) % 2:
        return f"polygon {shown(line)} has an odd number of values ({len(line)})"
    try:
        # the codec takes polygons of any extent; the sum shows NaN, in a tenth of the time of looking at each value
        return None if math.isfinite(sum(line)) else f"polygon {shown(line)} has values that are not finite"
    except (TypeError, OverflowError):
        return f"polygon {shown(line)} holds something other than numbers of pixels"


def _rle_fault(rle: dict[str, Any], size: tuple[int, int]) -> str | None:
    """Say why an RLE is not one of this size, or return None."""
    if rle.get("size") != list(size):
        rle_size = shown(rle.get("size"))
        return f"RLE has the size {rle_size}, the image [{size[0]}, {size[1]}] (height, width)"
    counts = rle.get("counts")
    if isinstance(counts, list):
        if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != size[0] * size[1]:
            return f"RLE's counts {shown(counts)} do not add up to the {size[0] * size[1]} pixels of the image"
        return None
    try:
        _decoded(rle, size)
    except Exception as error:  # the codec raises whatever its Rust side does
        return f"RLE cannot be decoded ({error})"
    return None


def _decoded(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Decode polygons or an RLE to an (H, W) uint8 mask."""
    rle = rle_codec.frPyObjects(segmentation, *size)
    array: np.ndarray = rle_codec.decode(rle_codec.merge(rle) if isinstance(rle, list) else rle)
    return array


def segmentation_masks(
    segmentations: Sequence[Any], size: tuple[int, int], file: ImageSource, names: Sequence[str] = ()
) -> Tensor:
    """Decode COCO polygon lists or RLEs (compressed or not) to (N, H, W) bool masks.

    Args:
        segmentations: N of them.
        size: (height, width) of the image.
        file: of the image, for messages.
        names: how messages call each object; by default its position.

    Raises:
        DetrkitError: a segmentation that cannot be decoded, or an RLE of another size; the message names the image.
    """
    masks = torch.zeros(len(segmentations), *size, dtype=torch.bool)
    for k, segmentation in enumerate(segmentations):
        name = names[k] if names else f"object {k + 1}"
        try:
            array = _decoded(segmentation, size)
        except Exception as error:  # the codec raises whatever its Rust side does
            reason = segmentation_fault(segmentation, size) or f"segmentation cannot be decoded ({error})"
            raise DetrkitError(f"{file.name}: {name}: {reason}") from error
        if array.shape != size:
            raise DetrkitError(f"{file.name}: {name}: segmentation is {array.shape}, the image {size} (h, w)")
        masks[k] = torch.from_numpy(np.ascontiguousarray(array)).bool()
    return masks


def object_masks(record: Record, keep: np.ndarray) -> Tensor:
    """Return (N, H, W) bool masks of the objects at the indices `keep` (N,) of a record.

    Raises:
        DetrkitError: a segmentation that cannot be decoded, a bad panoptic PNG, or a segment that is not in it.
    """
    size = record.height, record.width
    if record.panoptic_file is None:
        names = [f"annotation {i}" for i in record.annotation_ids[keep].tolist()]
        return segmentation_masks([record.segmentations[k] for k in keep], size, record.file, names)
    ids = record.segment_ids[keep]
    masks = segment_masks(read_id_map(record.panoptic_file, size), ids)
    absent = np.flatnonzero(~masks.flatten(1).any(1).numpy())
    if len(absent):
        raise DetrkitError(
            f"{record.panoptic_file}: no pixel has the id {ids[absent[0]]} of segments_info; "
            "`detrkit data check` lists every fault"
        )
    return masks


def panoptic_file(record: Record) -> Path:
    """Return the panoptic PNG of a record.

    Raises:
        ValueError: the record has none.
    """
    if record.panoptic_file is None:
        raise ValueError(f"{record.file}: no panoptic PNG belongs to it")
    return record.panoptic_file
