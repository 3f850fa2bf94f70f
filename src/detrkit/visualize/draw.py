"""Boxes, names, scores and masks on an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from detrkit.data.images import ImageInput, as_rgb
from detrkit.structures.detections import Detections
from detrkit.utils.errors import SettingError
from detrkit.utils.visible import one_line
from detrkit.visualize.colors import Color, color_of, instance_colors
from detrkit.visualize.sizes import MAX_ENLARGED_SIDE, automatic_scale, drawing_sizes
from detrkit.visualize.tags import paint_tags


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


def enlarged(image: ImageInput, scale: float | None, boxes: np.ndarray | None = None) -> tuple[Image.Image, float]:
    """Return an upright 8-bit RGB copy of the image, read as `predict` reads it, and the factor of its enlargement.

    Args:
        image: the image.
        scale: the factor; None chooses it by the image and its (N, 4) `boxes`.
        boxes: xyxy pixels of the image.

    Raises:
        SettingError: the factor is not above 0, or makes the image larger than `MAX_ENLARGED_SIDE`.
    """
    rgb = as_rgb(image)
    factor = automatic_scale(rgb.size, boxes) if scale is None else scale
    most = max(1.0, MAX_ENLARGED_SIDE / max(rgb.size))
    if not 0 < factor <= most:
        raise SettingError(
            f"scale is {factor:g}: give a factor above 0, and at most {most:.4g} for an image of "
            f"{rgb.width} x {rgb.height} pixels"
        )
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
    dashed: bool = False,
    short: Sequence[str] | None = None,
) -> Image.Image:
    """Draw boxes and their labels on a copy of the image; later boxes cover earlier ones.

    Labels avoid the boxes and each other. Where there is no room for one beside the others, it is left out; the last of
    each color always stays.

    Args:
        image: as `detrkit.data.images.as_rgb` takes it; the copy is RGB.
        boxes: (N, 4) xyxy pixels of `image`: tensor, array or nested list. Parts outside the image are drawn along its
            border.
        labels: N texts; by default none.
        colors: N RGB colors (0..255); by default box i has the color of class i.
        width: of the lines, pixels of the copy; by default in proportion to the image, less for small boxes.
        font_size: pixels of the copy; by default likewise.
        scale: factor to enlarge the image by before drawing; None chooses a whole number that makes small images (4 for
            96 pixels) and small boxes readable, and keeps the size of large ones.
        dashed: draw dashed lines.
        short: N shorter texts, for labels that have no room.

    Raises:
        ValueError: the lengths differ, or a box does not have four finite numbers.
    """
    array = as_boxes(boxes)
    canvas, factor = enlarged(image, scale, array)
    count = len(array)
    if labels is not None and len(labels) != count:
        raise ValueError(f"{len(labels)} labels for {count} boxes")
    if colors is not None and len(colors) != count:
        raise ValueError(f"{len(colors)} colors for {count} boxes")
    colors = [color_of(i) for i in range(count)] if colors is None else [(int(r), int(g), int(b)) for r, g, b in colors]
    sizes = drawing_sizes(canvas.size, array * factor)
    line = sizes.line if width is None else width
    limits = np.array([canvas.width, canvas.height] * 2)
    pixels = np.clip((array * factor).round(), 0, limits).astype(int)
    draw = ImageDraw.Draw(canvas)
    for (x0, y0, x1, y1), color in zip(pixels.tolist(), colors, strict=True):
        left, right = sorted((x0, x1))
        top, bottom = sorted((y0, y1))
        # the half-open box [left, right) as inclusive pixels, at least one pixel and inside the image
        left, top = min(left, canvas.width - 1), min(top, canvas.height - 1)
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        if dashed:
            _dashed(draw, corners, color, line)
        else:
            draw.rectangle(corners, outline=color, width=line)
    if labels is not None:
        paint_tags(canvas, pixels, labels, colors, sizes.letters if font_size is None else font_size, short)
    return canvas


def _dashed(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], color: Color, width: int) -> None:
    """Draw a dashed rectangle: dashes of four line widths with gaps of three."""
    x0, y0, x1, y1 = box
    period, dash = 7 * width, 4 * width
    for x in range(x0, x1 + 1, period):
        end = min(x + dash - 1, x1)
        draw.rectangle((x, y0, end, min(y0 + width - 1, y1)), fill=color)
        draw.rectangle((x, max(y1 - width + 1, y0), end, y1), fill=color)
    for y in range(y0, y1 + 1, period):
        end = min(y + dash - 1, y1)
        draw.rectangle((x0, y, min(x0 + width - 1, x1), end), fill=color)
        draw.rectangle((max(x1 - width + 1, x0), y, x1, end), fill=color)


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
    dashed: bool = False,
) -> Image.Image:
    """Draw boxes, masks if there are any, names and scores ("cat 0.93") on a copy of the image, the best on top.

    Tracked objects have the number and the color of their track. Where labels have no room, the score alone stands
    beside a box. Of detections that a threshold left out entirely, the best is drawn dashed, and labeled as what it is.

    Args:
        image: as in `draw_boxes`, of the size that the boxes refer to.
        detections: boxes in xyxy pixels of `image`.
        scores: False leaves the scores out, as for ground truth.
        width: of the lines, pixels of the copy; by default as in `draw_boxes`.
        font_size: pixels of the copy; by default as in `draw_boxes`.
        scale: factor to enlarge the image by; None makes small images and objects readable (see `draw_boxes`).
        dashed: draw dashed lines.

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
    if ranked.tracks is not None:  # a track has its color in every frame
        tracks = ranked.tracks.tolist()
        colors = [color if track < 0 else color_of(track) for color, track in zip(colors, tracks, strict=True)]
        names = [name if track < 0 else f"#{track} {name}" for name, track in zip(names, tracks, strict=True)]
    labels = [f"{name} {value:.2f}" if scores else name for name, value in zip(names, values, strict=True)]
    short = [f"{value:.2f}" for value in values] if scores else None
    boxes = as_boxes(ranked.boxes)
    miss = detections.near_miss
    if miss is not None and miss.box is not None and not len(ranked):
        boxes, colors, dashed, short = as_boxes([miss.box]), [color_of(miss.label)], True, None
        labels = [f"{one_line(miss.name)} {miss.decimals}, not above {miss.threshold:g}"]
    canvas, factor = enlarged(rgb, scale, boxes)
    if detections.masks is not None and len(ranked):
        if ranked.tracks is None:  # the best of a class has the color of the class
            colors = instance_colors(ranked.labels.tolist()[::-1])[::-1]
        thin = max(1, round(np.sqrt(canvas.width * canvas.height) / 500))
        masks = _resized(detections.masks, canvas.size)[order.cpu().numpy()]
        canvas = draw_masks(canvas, masks, colors, outline=thin)
    return draw_boxes(
        canvas, boxes * factor, labels, colors, width=width, font_size=font_size, dashed=dashed, short=short
    )


def _resized(masks: Any, size: tuple[int, int]) -> np.ndarray:
    """Resize (N, H, W) masks to an image's (width, height) by nearest neighbor."""
    array = np.asarray(masks.cpu(), bool)
    if array.shape[1:] == size[::-1]:
        return array
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size[::-1], array.shape[1:], strict=True)
    )
    return array[:, rows][:, :, columns]
