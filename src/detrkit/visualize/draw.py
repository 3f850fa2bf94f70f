"""Boxes, names, scores and masks on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from detrkit.data.images import Picture, as_rgb
from detrkit.results import Detections
from detrkit.utils.visible import one_line
from detrkit.visualize.colors import Color, color_of, instance_colors, text_color

# Pictures whose longer side is below this are enlarged with `scale=None`: at 96 pixels a readable tag hides the object.
READABLE_SIDE = 384


class Tag(NamedTuple):
    """A filled label beside a box: `left`, `top`, `width`, `height` in pixels, wholly inside the picture."""

    left: int
    top: int
    width: int
    height: int
    text: str


@lru_cache(maxsize=64)
def load_font(size: int, *, ascii_only: bool = True) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of `size` pixels that comes with the installed packages.

    Pillow's own font has ASCII alone; other alphabets (Latin with accents, Greek, Cyrillic) come from the one that
    matplotlib ships.
    """
    if ascii_only:
        return ImageFont.load_default(size=size)
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of `size` pixels that has the letters of `text`."""
    return load_font(size, ascii_only=text.isascii())


def automatic_scale(size: tuple[int, int]) -> int:
    """The whole number that brings a (width, height) picture to about `READABLE_SIDE` pixels, 1 for large ones."""
    return max(1, round(READABLE_SIDE / max(size)))


def shortened(text: str, font: Any, room: float) -> str:
    """`text`, cut with dots at its end until it is at most `room` pixels wide; "" when not even one letter fits."""
    if font.getlength(text) <= room:
        return text
    for end in range(len(text) - 1, 0, -1):
        cut = text[:end].rstrip() + ".."
        if font.getlength(cut) <= room:
            return cut
    return ""


def _overlap(a: Tag, b: Tag) -> int:
    """The common area of two tags in square pixels."""
    width = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    height = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    return max(0, width) * max(0, height)


def place_tag(
    text: str, box: Sequence[float], size: tuple[int, int], font_size: int, taken: Sequence[Tag] = ()
) -> Tag | None:
    """Where the tag of a box goes: above it if there is room, and off the tags already there as far as possible.

    Args:
        text: what the tag says; shortened if it is wider than the picture.
        box: xyxy pixels.
        size: (width, height) of the picture in pixels.
        font_size: pixels.
        taken: the tags placed before, which this one should not cover.

    Returns:
        The tag, inside the picture; None if the picture has no room for one letter.
    """
    picture_width, picture_height = size
    font = font_for(text, font_size)
    pad = max(2, font_size // 5)
    text = shortened(text, font, picture_width - 2 * pad)
    ascent, descent = font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (font_size, 0)
    width, height = int(np.ceil(font.getlength(text))) + 2 * pad, ascent + descent + pad
    if not text or height > picture_height:
        return None

    x0, y0, x1, y1 = (round(v) for v in box)
    anchors = [(x0, y0 - height), (x0, y0), (x0, y1), (x1 - width, y0 - height), (x1 - width, y0), (x0, y1 - height)]
    best: tuple[float, Tag] | None = None
    for order, (left, top) in enumerate(anchors):
        inside = min(max(left, 0), picture_width - width), min(max(top, 0), picture_height - height)
        tag = Tag(*inside, width, height, text)
        # A tag pushed away from its box is worse than one at a later anchor; a covered tag is worse than both.
        moved = abs(inside[0] - left) + abs(inside[1] - top)
        cost = sum(_overlap(tag, other) for other in taken) / (width * height) * 100 + moved / height + order * 0.2
        if best is None or cost < best[0]:
            best = cost, tag
    return best[1] if best else None


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
        draw.rectangle((tag.left, tag.top, tag.left + tag.width - 1, tag.top + tag.height - 1), fill=color)
        font = font_for(tag.text, letters)
        # Capitals in the middle (fonts differ in the room above them), on whole pixels: between them letters blur.
        capital = -font.getbbox("H", anchor="ls")[1]
        place = (
            round(tag.left + (tag.width - font.getlength(tag.text)) / 2),
            round(tag.top + (tag.height + capital) / 2),
        )
        draw.text(place, tag.text, fill=text_color(color), font=font, anchor="ls")
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
        pixels[mask] = (pixels[mask] * (1 - opacity) + np.array(color) * opacity).round().astype(np.uint8)
        if outline:
            pixels[mask & ~ndimage.binary_erosion(mask, iterations=outline, border_value=1)] = color
    return Image.fromarray(pixels)


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
    ranked = detections.select(order)
    colors = [color_of(label) for label in ranked.labels.tolist()]
    values = ranked.scores.tolist()
    names = [one_line(name) for name in ranked.names]
    labels = [f"{name} {value:.2f}" if scores else name for name, value in zip(names, values, strict=True)]
    canvas, factor = enlarged(rgb, scale)
    if ranked.masks is not None and len(ranked):
        colors = instance_colors(ranked.labels.tolist()[::-1])[::-1]  # the best of a class has its colour
        thin = max(1, round(np.sqrt(canvas.width * canvas.height) / 500))
        canvas = draw_masks(canvas, _resized(ranked.masks, canvas.size), colors, outline=thin)
    boxes = as_boxes(ranked.boxes) * factor
    return draw_boxes(canvas, boxes, labels, colors, width=width, font_size=font_size)


def _resized(masks: Any, size: tuple[int, int]) -> np.ndarray:
    """(N, H, W) masks at a picture's (width, height), each pixel taken from the nearest one."""
    array = np.asarray(masks.cpu(), bool)
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size[::-1], array.shape[1:], strict=True)
    )
    return array[:, rows][:, :, columns]
