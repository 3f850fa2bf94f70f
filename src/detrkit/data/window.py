"""Zoom-out and IoU crop (SSD, Liu et al. 2016, Sec. 2.2): the part of an image, or of more than it, that is shown.

Both are published for RT-DETR, with torchvision's defaults and in this order. Together they are one rectangle, which is
drawn before anything is decoded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Generator

from detrkit.data.draws import chance, integer, uniform

_ZOOMS = 1.0, 4.0  # sides of the canvas around an image, as multiples of its own
_CROP_SCALES = 0.3, 1.0  # sides of a crop, as shares of the canvas
_CROP_ASPECTS = 0.5, 2.0  # width / height of a crop
_LEAST_IOUS = 0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0  # of an object and the crop; 1 leaves the image whole
_TRIALS = 40  # crops that are drawn for one least IoU before another is drawn


class Window(NamedTuple):
    """Rectangle that is cut out of an image, black where it reaches beyond.

    Attributes:
        top, left: of the corner in pixels of the image; may be negative.
        height, width: pixels.
        zoomed: whether a zoom-out made it larger than the image.
        cropped: whether it is an IoU crop.
    """

    top: int
    left: int
    height: int
    width: int
    zoomed: bool = False
    cropped: bool = False


def draw_window(
    height: int, width: int, boxes: np.ndarray, *, zoom_out: float, iou_crop: float, generator: Generator
) -> Window | None:
    """Draw what is shown of an image; None for all of it.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        boxes: (N, 4) xyxy pixels, of its objects; without objects there is no IoU crop.
        zoom_out: probability that the image lies at a random place of a black canvas with 1 to 4 times its sides.
        iou_crop: probability of a crop around an object's center that has at least a random IoU with that object.
        generator: to draw from.
    """
    zoomed, cropped = chance(generator) < zoom_out, chance(generator) < iou_crop  # always both
    window = Window(0, 0, height, width)
    if zoomed:
        zoom = uniform(*_ZOOMS, generator)
        canvas = int(height * zoom), int(width * zoom)
        top, left = integer(0, canvas[0] - height, generator), integer(0, canvas[1] - width, generator)
        window = Window(-top, -left, *canvas, zoomed=True)
    if cropped and len(boxes):
        shift = np.array([window.left, window.top] * 2)
        crop = _draw_crop(window.height, window.width, boxes - shift, generator)
        if crop is not None:
            top, left, crop_height, crop_width = crop
            window = Window(window.top + top, window.left + left, crop_height, crop_width, zoomed, cropped=True)
    return window if window.zoomed or window.cropped else None


def _draw_crop(height: int, width: int, boxes: np.ndarray, generator: Generator) -> tuple[int, int, int, int] | None:
    """Draw (top, left, height, width) of an IoU crop, pixels; None where the image stays whole.

    Args:
        height: of the canvas, pixels.
        width: of the canvas, pixels.
        boxes: (N, 4) xyxy pixels of the canvas.
        generator: to draw from.
    """
    while (least := _LEAST_IOUS[integer(0, len(_LEAST_IOUS) - 1, generator)]) < 1:
        # all trials at once: one after the other is mostly the time of Python
        draws = torch.rand(_TRIALS, 4, generator=generator, dtype=torch.float64, device="cpu").numpy()
        low, high = _CROP_SCALES
        w, h = ((side * (low + (high - low) * draws[:, k])).astype(int) for k, side in enumerate((width, height)))
        left, top = ((draws[:, 2] * (width - w)).astype(int), (draws[:, 3] * (height - h)).astype(int))
        crops = np.stack([left, top, left + w, top + h], 1)  # (T, 4) xyxy
        sizes = (w > 0) & (h > 0) & (w >= _CROP_ASPECTS[0] * h) & (w <= _CROP_ASPECTS[1] * h)
        fits = sizes[:, None] & (_overlaps(crops, boxes) >= least) & centers_inside(crops[:, None], boxes)  # (T, N)
        good = np.flatnonzero(fits.any(1))
        if len(good):
            k = int(good[0])
            return int(top[k]), int(left[k]), int(h[k]), int(w[k])
    return None


def centers_inside(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return whether the centers of boxes lie inside windows, (...); both (..., 4) xyxy, which broadcast together."""
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside: np.ndarray = ((windows[..., :2] < centers) & (centers < windows[..., 2:])).all(-1)
    return inside


def _overlaps(crops: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Compute the (T, N) IoU of (T, 4) and (N, 4) xyxy boxes."""
    sides = np.minimum(crops[:, None, 2:], boxes[:, 2:]) - np.maximum(crops[:, None, :2], boxes[:, :2])
    shared = sides.clip(0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (crops, boxes)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1] - shared, 1e-9))
