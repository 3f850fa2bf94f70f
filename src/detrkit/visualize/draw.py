"""Boxes, names, scores and masks on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from detrkit.data.images import Picture, as_rgb
from detrkit.structures.results import Detections
from detrkit.utils.visible import one_line
from detrkit.visualize.colors import Color, color_of, instance_colors
from detrkit.visualize.tags import Tag, paint_tag, place_tag

# Pictures whose longer side is below this are enlarged with `scale=None`: at 96 pixels a readable tag hides the object.
READABLE_SIDE = 384


def automatic_scale(size: tuple[int, int]) -> int:
    """The whole number that brings a (width, height) picture to about `READABLE_SIDE` pixels, 1 for large ones."""
    return max(1, round(READABLE_SIDE / max(size)))


def as_boxes(boxes: Any) -> np.ndarray:
    """Tensor, array or list of boxes as (N, 4) float64.

    Raises:
        ValueError: not four numbers a box, or a number that is not finite.
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


def enlarged(image: Picture, scale: float | None) -> tuple[Image.Image, float]:
    """An upright 8-bit RGB copy of the picture, read as `predict` reads it, and the factor it was enlarged by."""
    rgb = as_rgb(image)
    factor = automatic_scale(rgb.size) if scale is None else scale
    if factor == 1:
        return rgb, 1.0
    size = max(1, round(rgb.width * factor)), max(1, round(rgb.height * factor))
    return rgb.resize(size, Image.Resampling.LANCZOS), factor


def draw_boxes(
    image: Picture,
    boxes: Any,
    labels: Sequence[str] | None = None,
    colors: Sequence[Color] | None = None,
    *,
    width: int | None = None,
    font_size: int | None = None,
    scale: float | None = 1.0,
) -> Image.Image:
    """A copy of the picture with boxes and their labels; later boxes lie on top of earlier ones.

    Args:
        image: whatever `detrkit.data.images.as_rgb` takes; the copy is RGB.
        boxes: (N, 4) xyxy pixels of `image`: tensor, array or nested list. Parts outside the picture are drawn along
            its border.
        labels: N texts; by default boxes alone.
        colors: N RGB colours (0..255); by default box i has the colour of class i.
        width: of the lines, pixels of the copy; by default scaled to the picture's size.
        font_size: pixels of the copy; by default scaled to the picture's size.
        scale: factor to enlarge the picture by before drawing; None chooses a whole number that makes small pictures
            readable (4 for 96 pixels) and leaves large ones as they are.

    Raises:
        ValueError: the lengths differ, or a box has not four finite numbers.
    """
    canvas, factor = enlarged(image, scale)
    array = as_boxes(boxes)
    count = len(array)
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} boxes")
    if colors is not None and len(colors) != count:
        raise ValueError(f"{len(colors)} colours for {count} boxes")
    colors = [color_of(i) for i in range(count)] if colors is None else [(int(r), int(g), int(b)) for r, g, b in colors]
    extent = float(np.sqrt(canvas.width * canvas.height))
    line = width if width is not None else max(2, round(extent / 220))
    letters = (
        font_size if font_size is not None else max(12, round(extent / 38))
    )  # below 12 the strokes are thinner than a pixel: grey

    limits = np.array([canvas.width, canvas.height] * 2)
    pixels = np.clip((array * factor).round(), 0, limits).astype(int)
    draw = ImageDraw.Draw(canvas)
    for (x0, y0, x1, y1), color in zip(pixels.tolist(), colors, strict=True):
        left, right = sorted((x0, x1))
        top, bottom = sorted((y0, y1))
        # Half-open box [left, right) as inclusive pixels, at least one pixel and inside the picture.
        left, top = min(left, canvas.width - 1), min(top, canvas.height - 1)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=line)

    if labels is None:
        return canvas
    # The last box lies on top and chooses its place first; tags are painted after all boxes, so no line strikes them.
    tags: list[tuple[Tag, Color]] = []
    for box, text, color in reversed(list(zip(pixels.tolist(), labels, colors, strict=True))):
        tag = place_tag(text, box, canvas.size, letters, [t for t, _ in tags]) if text else None
        if tag is not None:
            tags.append((tag, color))
    for tag, color in reversed(tags):
        paint_tag(canvas, tag, color, letters)
    return canvas


def draw_masks(
    image: Picture, masks: Any, colors: Sequence[Color], *, opacity: float = 0.45, outline: int = 0
) -> Image.Image:
    """A copy of the picture with each mask tinted and outlined; later masks lie on top.

    Args:
        image: as in `draw_boxes`, of H x W pixels.
        masks: (N, H, W) bool: tensor or array.
        colors: N RGB colours (0..255).
        opacity: of the tint, 0 (invisible) .. 1 (opaque).
        outline: pixels within a mask's edge that are opaque; none along the picture's border.

    Raises:
        ValueError: the masks have not the picture's size, or the lengths differ.
    """
    array = np.asarray(masks.detach().cpu() if hasattr(masks, "detach") else masks, bool)
    pixels = np.array(as_rgb(image))
    if array.ndim != 3 or array.shape[1:] != pixels.shape[:2] or len(array) != len(colors):
        raise ValueError(
            f"masks of shape {array.shape} for {len(colors)} colours on a picture of {pixels.shape[:2]} (height, width)"
        )
    for mask, color in zip(array, colors, strict=True):
        _tint(pixels, mask, color, opacity, outline)
    return Image.fromarray(pixels)


def _tint(pixels: np.ndarray, mask: np.ndarray, color: Color, opacity: float, outline: int) -> None:
    """Tints and outlines a mask (H, W) in place on (H, W, 3) uint8: the rectangle that has it, for it alone is work."""
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(0))
    # a pixel more on each side, so that the outline knows what is the mask's edge and what the image's
    part = tuple(slice(max(0, int(where[0]) - 1), int(where[-1]) + 2) for where in (rows, columns))
    inside, target = mask[part], pixels[part]
    for channel, value in enumerate(color):
        # by a table of the 256 values: 0.3 ms where arithmetic on the pixels takes 1.5
        table = (np.arange(256) * (1 - opacity) + value * opacity).round().astype(np.uint8)
        np.copyto(target[..., channel], table[target[..., channel]], where=inside)
    if outline:
        target[inside & ~_eroded(inside, outline)] = color


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """A mask (H, W) without the pixels at its edges, so many times; the image's border is no edge."""
    for _ in range(times):
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        mask = inner
    return mask


def draw_detections(
    image: Picture,
    detections: Detections,
    *,
    scores: bool = True,
    width: int | None = None,
    font_size: int | None = None,
    scale: float | None = 1.0,
) -> Image.Image:
    """A copy of the picture with boxes, masks if there are any, names and scores ("cat 0.93"), the best on top.

    Args:
        image: as in `draw_boxes`, of the size the boxes belong to.
        detections: boxes in xyxy pixels of `image`.
        scores: False leaves the scores out, as for ground truth.
        width: of the lines, pixels of the copy; by default scaled to the picture's size.
        font_size: pixels of the copy; by default scaled to the picture's size.
        scale: factor to enlarge the picture by; None makes small pictures readable (see `draw_boxes`).

    Raises:
        ValueError: a box is not finite, or the masks have not the picture's size.
    """
    rgb = as_rgb(image)
    size = rgb.height, rgb.width
    if detections.masks is not None and detections.masks.shape[1:] != size:
        raise ValueError(f"masks of shape {tuple(detections.masks.shape)} on a picture of {size} (height, width)")
    order = detections.scores.argsort(stable=True)
    ranked = replace(detections, masks=None).select(order)
    colors = [color_of(label) for label in ranked.labels.tolist()]
    values = ranked.scores.tolist()
    names = [one_line(name) for name in ranked.names]
    labels = [f"{name} {value:.2f}" if scores else name for name, value in zip(names, values, strict=True)]
    canvas, factor = enlarged(rgb, scale)
    if detections.masks is not None and len(ranked):
        colors = instance_colors(ranked.labels.tolist()[::-1])[::-1]  # the best of a class has its colour
        thin = max(1, round(np.sqrt(canvas.width * canvas.height) / 500))
        masks = _resized(detections.masks, canvas.size)[order.cpu().numpy()]
        canvas = draw_masks(canvas, masks, colors, outline=thin)
    boxes = as_boxes(ranked.boxes) * factor
    return draw_boxes(canvas, boxes, labels, colors, width=width, font_size=font_size)


def _resized(masks: Any, size: tuple[int, int]) -> np.ndarray:
    """(N, H, W) masks at a picture's (width, height), each pixel taken from the nearest one."""
    array = np.asarray(masks.cpu(), bool)
    if array.shape[1:] == size[::-1]:
        return array
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size[::-1], array.shape[1:], strict=True)
    )
    return array[:, rows][:, :, columns]
