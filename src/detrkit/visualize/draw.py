"""Boxes, names, scores and masks on an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from detrkit.data.images import ImageInput, as_rgb
from detrkit.structures.detections import Detections
from detrkit.utils.visible import one_line
from detrkit.visualize.colors import Color, color_of, instance_colors
from detrkit.visualize.tags import Tag, paint_tag, place_tag

# Images whose longer side is below this are enlarged with `scale=None`: at 96 pixels a readable tag hides the object.
READABLE_SIDE = 384


def automatic_scale(size: tuple[int, int]) -> int:
    """Return the whole factor that brings a (width, height) image to about `READABLE_SIDE` pixels; 1 for large ones."""
    return max(1, round(READABLE_SIDE / max(size)))


def as_boxes(boxes: Any) -> np.ndarray:
    """Convert a tensor, array or list of boxes to (N, 4) float64.

    Raises:
        ValueError: not four numbers per box, or a number is not finite.
    """
    if hasattr(boxes, "detach"):
        boxes = boxes.detach().float().cpu().numpy()
    array = np.asarray(boxes, np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4) xyxy pixels, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array).all(1))
    if len(bad):
        raise ValueError(f"box {bad[0]} is not finite: {array[bad[0]].tolist()}")
    return array


def enlarged(image: ImageInput, scale: float | None) -> tuple[Image.Image, float]:
    """Return an upright 8-bit RGB copy of the image, read as `predict` reads it, and the factor of its enlargement."""
    rgb = as_rgb(image)
    factor = automatic_scale(rgb.size) if scale is None else scale
    if factor == 1:
        return rgb, 1.0
    size = max(1, round(rgb.width * factor)), max(1, round(rgb.height * factor))
    return rgb.resize(size, Image.Resampling.LANCZOS), factor


def draw_boxes(
    image: ImageInput,
    boxes: Any,
    labels: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
    *,
    width: int | None = None,
    font_size: int | None = None,
    scale: float | None = 1.0,
) -> Image.Image:
    """Draw boxes and their labels on a copy of the image; later boxes cover earlier ones.

    Args:
        image: as `detrkit.data.images.as_rgb` takes it; the copy is RGB.
        boxes: (N, 4) xyxy pixels of `image`: tensor, array or nested list. Parts outside the image are drawn along its
            border.
        labels: N texts; by default none.
        colors: N RGB colors (0..255); by default box i has the color of class i.
        width: of the lines, pixels of the copy; by default scaled to the image's size.
        font_size: pixels of the copy; by default scaled to the image's size.
        scale: factor to enlarge the image by before drawing; None chooses a whole number that makes small images
            readable (4 for 96 pixels) and keeps the size of large ones.

    Raises:
        ValueError: the lengths differ, or a box does not have four finite numbers.
    """
    canvas, factor = enlarged(image, scale)
    array = as_boxes(boxes)
    count = len(array)
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} boxes")
    if colors is not None and len(colors) != count:
        raise ValueError(f"{len(colors)} colors for {count} boxes")
    colors = [color_of(i) for i in range(count)] if colors is None else [(int(r), int(g), int(b)) for r, g, b in colors]
    extent = float(np.sqrt(canvas.width * canvas.height))
    line = width if width is not None else max(2, round(extent / 220))
    letters = (
        font_size if font_size is not None else max(12, round(extent / 38))
    )  # below 12 the strokes are thinner than a pixel and look gray

    limits = np.array([canvas.width, canvas.height] * 2)
    pixels = np.clip((array * factor).round(), 0, limits).astype(int)
    draw = ImageDraw.Draw(canvas)
    for (x0, y0, x1, y1), color in zip(pixels.tolist(), colors, strict=True):
        left, right = sorted((x0, x1))
        top, bottom = sorted((y0, y1))
        # the half-open box [left, right) as inclusive pixels, at least one pixel and inside the image
        left, top = min(left, canvas.width - 1), min(top, canvas.height - 1)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=line)

    if labels is None:
        return canvas
    # The last box is on top, so its tag is placed first; tags are painted after all boxes, so no line crosses them.
    tags: list[tuple[Tag, Color]] = []
    for box, text, color in reversed(list(zip(pixels.tolist(), labels, colors, strict=True))):
        tag = place_tag(text, box, canvas.size, letters, [t for t, _ in tags]) if text else None
        if tag is not None:
            tags.append((tag, color))
    for tag, color in reversed(tags):
        paint_tag(canvas, tag, color, letters)
    return canvas


def draw_masks(
    image: ImageInput, masks: Any, colors: Sequence[Color], *, opacity: float = 0.45, outline: int = 0
) -> Image.Image:
    """Tint and outline each mask on a copy of the image; later masks cover earlier ones.

    Args:
        image: as in `draw_boxes`, of H x W pixels.
        masks: (N, H, W) bool: tensor or array.
        colors: N RGB colors (0..255).
        opacity: of the tint, 0 (invisible) .. 1 (opaque).
        outline: width in pixels of the opaque line inside a mask's edge; there is none along the image's border.

    Raises:
        ValueError: the masks do not have the image's size, or the lengths differ.
    """
    array = np.asarray(masks.detach().cpu() if hasattr(masks, "detach") else masks, bool)
    pixels = np.array(as_rgb(image))
    if array.ndim != 3 or array.shape[1:] != pixels.shape[:2] or len(array) != len(colors):
        raise ValueError(
            f"masks of shape {array.shape} for {len(colors)} colors on an image of {pixels.shape[:2]} (height, width)"
        )
    for mask, color in zip(array, colors, strict=True):
        _tint(pixels, mask, color, opacity, outline)
    return Image.fromarray(pixels)


def _tint(pixels: np.ndarray, mask: np.ndarray, color: Color, opacity: float, outline: int) -> None:
    """Tint and outline a mask (H, W) in place on (H, W, 3) uint8, within its bounding rectangle only, to save time."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
    # one more pixel on each side distinguishes the mask's edge from the image's border
    part = tuple(slice(max(0, int(where[0]) - 1), int(where[-1]) + 2) for where in (rows, columns))
    inside, target = mask[part], pixels[part]
    for channel, value in enumerate(color):
        # a table of the 256 values: 0.3 ms; arithmetic on the pixels takes 1.5 ms
        table = (np.arange(256) * (1 - opacity) + value * opacity).round().astype(np.uint8)
        np.copyto(target[..., channel], table[target[..., channel]], where=inside)
    if outline:
        target[inside & ~_eroded(inside, outline)] = color


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """Erode a mask (H, W) by one pixel, `times` times; the image's border is no edge."""
    for _ in range(times):
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        mask = inner
    return mask


def draw_detections(
    image: ImageInput,
    detections: Detections,
    *,
    scores: bool = True,
    width: int | None = None,
    font_size: int | None = None,
    scale: float | None = 1.0,
) -> Image.Image:
    """Draw boxes, masks if there are any, names and scores ("cat 0.93") on a copy of the image, the best on top.

    Args:
        image: as in `draw_boxes`, of the size that the boxes refer to.
        detections: boxes in xyxy pixels of `image`.
        scores: False leaves the scores out, as for ground truth.
        width: of the lines, pixels of the copy; by default scaled to the image's size.
        font_size: pixels of the copy; by default scaled to the image's size.
        scale: factor to enlarge the image by; None makes small images readable (see `draw_boxes`).

    Raises:
        ValueError: a box is not finite, or the masks do not have the image's size.
    """
    rgb = as_rgb(image)
    size = rgb.height, rgb.width
    if detections.masks is not None and detections.masks.shape[1:] != size:
        raise ValueError(f"masks of shape {tuple(detections.masks.shape)} on an image of {size} (height, width)")
    order = detections.scores.argsort(stable=True)
    ranked = replace(detections, masks=None).select(order)
    colors = [color_of(label) for label in ranked.labels.tolist()]
    values = ranked.scores.tolist()
    names = [one_line(name) for name in ranked.names]
    labels = [f"{name} {value:.2f}" if scores else name for name, value in zip(names, values, strict=True)]
    canvas, factor = enlarged(rgb, scale)
    if detections.masks is not None and len(ranked):
        colors = instance_colors(ranked.labels.tolist()[::-1])[::-1]  # the best of a class has the color of the class
        thin = max(1, round(np.sqrt(canvas.width * canvas.height) / 500))
        masks = _resized(detections.masks, canvas.size)[order.cpu().numpy()]
        canvas = draw_masks(canvas, masks, colors, outline=thin)
    boxes = as_boxes(ranked.boxes) * factor
    return draw_boxes(canvas, boxes, labels, colors, width=width, font_size=font_size)


def _resized(masks: Any, size: tuple[int, int]) -> np.ndarray:
    """Resize (N, H, W) masks to an image's (width, height) by nearest neighbor."""
    array = np.asarray(masks.cpu(), bool)
    if array.shape[1:] == size[::-1]:
        return array
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size[::-1], array.shape[1:], strict=True)
    )
    return array[:, rows][:, :, columns]
