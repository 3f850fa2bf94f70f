"""Panoptic PNGs: the color of a pixel is the id of its segment, id = R + 256 G + 65536 B; 0 is void.

An id map is (H, W) int32; the ids are those of the segments_info of its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detrkit.data.images import open_image
from detrkit.structures.panoptic import VOID
from detrkit.utils.errors import DetrkitError
from detrkit.utils.image_files import image_bytes

LARGEST_ID = 2**24 - 1


class MeasuredSegments(NamedTuple):
    """MeasuredSegments of an id map as measured from its pixels, void left out.

    Attributes:
        ids: (N,) int64, ascending.
        areas: (N,) int64 pixels.
        boxes: (N, 4) int64 xywh pixels; x + w is one past the last column.
    """

    ids: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray


def read_id_map(file: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read the (H, W) int32 segment ids of a panoptic PNG.

    Args:
        file: the PNG.
        size: (height, width) of its image, in pixels, if that is to be checked.

    Raises:
        DetrkitError: missing, damaged, not RGB, or of another size.
    """
    try:
        with open_image(file) as image:
            mode, (width, height) = image.mode, image.size
            # Pillow keeps four bytes per pixel, so this is a plain copy: 1.9 ms for a PNG of COCO instead of 2.2 ms.
            pixels = image.tobytes("raw", "RGBA" if mode == "RGBA" else "RGBX") if mode in ("RGB", "RGBA") else b""
    except DetrkitError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise DetrkitError(f"{file}: panoptic PNG is missing") from error
        raise DetrkitError(f"{file}: panoptic PNG cannot be read ({str(error).removeprefix(f'{file}: ')})") from error
    except Exception as error:  # whatever Pillow's parsers raise
        raise DetrkitError(f"{file}: panoptic PNG cannot be read ({error})") from error
    if mode not in ("RGB", "RGBA"):
        raise DetrkitError(f"{file}: pixels are {mode}; write a panoptic PNG as RGB, id = R + 256 G + 65536 B")
    if size is not None and size != (height, width):
        raise DetrkitError(
            f"{file}: panoptic PNG is {width}x{height} pixels but its image {size[1]}x{size[0]} (width x height)"
        )
    return np.frombuffer(pixels, "<i4").reshape(height, width) & 0xFFFFFF


def write_id_map(file: Path, ids: np.ndarray, *, compress_level: int = 6) -> None:
    """Write (H, W) ids of 0 to `LARGEST_ID` as a panoptic PNG; `compress_level` as in zlib."""
    colors = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], 2).astype(np.uint8)
    file.write_bytes(image_bytes(colors, compress_level=compress_level))


def segment_masks(ids: np.ndarray, segments: Sequence[int] | np.ndarray) -> Tensor:
    """Return (N, H, W) bool masks of `segments` (N ids) in an (H, W) id map; empty where an id is not in it."""
    segment_ids = torch.from_numpy(np.array(segments, np.int32))
    return torch.from_numpy(ids)[None] == segment_ids[:, None, None]


def measure_segments(ids: np.ndarray) -> MeasuredSegments:
    """Measure the segments of an (H, W) id map.

    Runs of equal pixels are counted instead of pixels: a COCO map of 640 x 480 has some 10,000, so sorting them is
    quick.
    """
    height, width = ids.shape
    edges = np.ones((height, width), bool)  # whether a run begins here; no run continues in the next row
    edges[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = np.flatnonzero(edges)
    lengths = np.diff(starts, append=height * width)
    run_ids = ids.ravel()[starts]
    rows, columns = np.divmod(starts, width)
    present, inverse = np.unique(run_ids, return_inverse=True)
    areas = np.bincount(inverse, lengths, len(present)).astype(np.int64)
    low = np.full((len(present), 2), max(height, width))
    high = np.zeros((len(present), 2), np.int64)
    for axis, (first, last) in enumerate(((columns, columns + lengths), (rows, rows + 1))):
        np.minimum.at(low[:, axis], inverse, first)
        np.maximum.at(high[:, axis], inverse, last)
    keep = present != VOID
    return MeasuredSegments(present[keep].astype(np.int64), areas[keep], np.concatenate([low, high - low], 1)[keep])
