"""Sizes of what is drawn: the one place that decides them for predictions, sheets, previews and panoptic images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Images whose longer side is below this are enlarged with `scale=None`: at 96 pixels a readable tag hides the object.
READABLE_SIDE = 384
OBJECT_SIDE = 32  # pixels that a typical object gets with `scale=None`, as far as MAX_SIDE allows: a tag's width
MAX_SIDE = 2048  # pixels of the longer side; larger images are not enlarged for their small objects
MAX_ENLARGED_SIDE = 65_500  # pixels of the longer side that a `scale` may make: JPEG takes no more
MAX_OBJECT_SCALE = 4  # beyond it pixels are blocks, and the object is no better to see
MIN_LETTERS = 12  # pixels: below it strokes are thinner than a pixel and look gray


class DrawingSizes(NamedTuple):
    """Width of lines and height of letters, in pixels."""

    line: int
    letters: int


def typical_side(boxes: np.ndarray | None) -> float | None:
    """Return the median side in pixels of (N, 4) xyxy boxes, the square root of their area; None without boxes."""
    if boxes is None or not len(boxes):
        return None
    return float(np.median(np.sqrt(np.prod(np.abs(boxes[:, 2:] - boxes[:, :2]), 1))))


def automatic_scale(size: tuple[int, int], boxes: np.ndarray | None = None) -> int:
    """Return the whole factor by which an image is enlarged before drawing; 1 for large images with large objects.

    Args:
        size: (width, height) in pixels. Small images are brought to about `READABLE_SIDE` pixels.
        boxes: (N, 4) xyxy pixels of what is drawn. Small objects are brought to about `OBJECT_SIDE` pixels.
    """
    factor = max(1, round(READABLE_SIDE / max(size)))
    side = typical_side(boxes)
    if side is None or side >= OBJECT_SIDE:
        return factor
    return max(factor, min(round(OBJECT_SIDE / max(side, 1)), MAX_OBJECT_SCALE, MAX_SIDE // max(size)))


def drawing_sizes(size: tuple[int, int], boxes: np.ndarray | None = None) -> DrawingSizes:
    """Return the sizes for an image: in proportion to it, but smaller for small objects, which they would hide.

    Args:
        size: (width, height) in pixels of the image that is drawn on.
        boxes: (N, 4) xyxy pixels of that image.
    """
    extent = float(np.sqrt(size[0] * size[1]))
    line, letters = extent / 220, extent / 38
    side = typical_side(boxes)
    if side is not None:
        letters = min(letters, max(letters / 3, side / 4))
        line = min(line, max(line / 3, side / 20))
    return DrawingSizes(max(2, round(line)), max(MIN_LETTERS, round(letters)))


def tile_sizes(width: int) -> DrawingSizes:
    """Return the sizes for a tile of a sheet that is `width` pixels wide."""
    return DrawingSizes(max(2, round(width / 200)), max(MIN_LETTERS, round(width / 32)))
