"""Boxes in the unit square, as points whose color says size and shape (DETR, Fig. 7)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from detrkit.visualize.colors import Color

# green, red and blue as in the paper, in tones that color-blind readers can tell apart (Okabe and Ito)
SMALL: Color = (0, 158, 115)
LARGE_WIDE: Color = (213, 94, 0)
LARGE_TALL: Color = (0, 84, 178)
_LARGE_SIDE = 0.5  # square root of the area, of the image's, from which a box is large
_PAGE, _FRAME = (255, 255, 255), (150, 150, 156)
_OVERSAMPLING = 2  # points are painted at twice the size, so that they are smaller than a pixel's steps


def box_colors(boxes: np.ndarray) -> np.ndarray:
    """Return the colors of (N, 4) cxcywh boxes in [0, 1]: (N, 3) float, 0 to 255.

    A box without extent is green. One of a quarter of the image's area or more is vermilion if it is twice as wide as
    tall or more, blue if it is twice as tall as wide, and mixed between; smaller ones are mixed with green.
    """
    width, height = np.clip(boxes[:, 2], 1e-6, 1), np.clip(boxes[:, 3], 1e-6, 1)
    large = np.clip(np.sqrt(width * height) / _LARGE_SIDE, 0, 1)[:, None]
    wide = np.clip(0.5 + np.log2(width / height) / 2, 0, 1)[:, None]
    small, horizontal, vertical = (np.array(color, np.float64) for color in (SMALL, LARGE_WIDE, LARGE_TALL))
    colors: np.ndarray = (1 - large) * small + large * (wide * horizontal + (1 - wide) * vertical)
    return colors


def draw_unit_square(boxes: np.ndarray, side: int) -> Image.Image:
    """Draw the centers of boxes as points in a square, in their order.

    Args:
        boxes: (N, 4) cxcywh in [0, 1]; the square is the image, whatever its shape.
        side: of the square in pixels.
    """
    extent = side * _OVERSAMPLING
    radius = max(1, round(extent / 130))
    pixels = np.empty((extent, extent, 3), np.float32)
    pixels[:] = _PAGE
    colors = box_colors(boxes)
    centers = np.clip((boxes[:, :2] * extent).astype(int), radius, extent - 1 - radius)
    offsets = np.arange(-radius, radius + 1)
    for dx in offsets:
        for dy in offsets:
            if dx * dx + dy * dy <= radius * radius + 1:
                pixels[centers[:, 1] + dy, centers[:, 0] + dx] = colors
    image = Image.fromarray(pixels.round().astype(np.uint8)).resize((side, side), Image.Resampling.BOX)
    framed = Image.new("RGB", (side, side), _FRAME)
    framed.paste(image.crop((1, 1, side - 1, side - 1)), (1, 1))
    return framed
