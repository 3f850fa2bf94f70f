"""Tags: filled labels beside boxes, placed where they can be read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detrkit.visualize.colors import Color, text_color

_MAX_HIDDEN = 0.15  # share of a tag that others may cover: more hides a letter
_MAX_HIDING = 0.35  # share of a tag that may cover other boxes where there are many
_CROWD = 30  # boxes in an image from which on the objects matter more than the scores
_KEPT_PIXELS = 8192  # tags up to this area are cached: 512 of them take 13 MB at most


class Tag(NamedTuple):
    """A filled label beside a box: `left`, `top`, `width`, `height` in pixels, entirely inside the image."""

    left: int
    top: int
    width: int
    height: int
    text: str


@lru_cache(maxsize=64)
def load_font(size: int, *, ascii_only: bool = True) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load a font of `size` pixels that comes with the installed packages.

    Pillow's own font has only ASCII; matplotlib's has other alphabets (Latin with accents, Greek, Cyrillic).
    """
    if ascii_only:
        return ImageFont.load_default(size=size)
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of `size` pixels that has the letters of `text`."""
    return load_font(size, ascii_only=text.isascii())


@lru_cache(maxsize=4096)
def text_width(text: str, size: int) -> float:
    """Return the width in pixels of a text with a font of `size` pixels."""
    return font_for(text, size).getlength(text)


def shortened(text: str, font: Any, room: float) -> str:
    """Shorten `text`, with dots at its end, to at most `room` pixels; "" if not even one letter fits."""
    if font.getlength(text) <= room:
        return text
    for end in range(len(text) - 1, 0, -1):
        cut = text[:end].rstrip() + ".."
        if font.getlength(cut) <= room:
            return cut
    return ""


def place_tag(
    text: str,
    box: Sequence[float],
    size: tuple[int, int],
    font_size: int,
    taken: Sequence[Tag] = (),
    boxes: np.ndarray | None = None,
) -> Tag | None:
    """Choose the place of a box's tag: above the box if there is room, and with little overlap with other tags.

    Args:
        text: of the tag; shortened if it is wider than the image.
        box: xyxy pixels.
        size: (width, height) of the image in pixels.
        font_size: in pixels.
        taken: tags placed before, which this one should not cover.
        boxes: (N, 4) xyxy pixels of the objects, which it should not cover either if it can be helped.

    Returns:
        The tag, inside the image; None if the image has no room for one letter.
    """
    image_width, image_height = size
    font = font_for(text, font_size)
    pad = max(2, font_size // 5)
    room = image_width - 2 * pad
    if text_width(text, font_size) > room:
        text = shortened(text, font, room)
    ascent, descent = font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (font_size, 0)
    width, height = int(np.ceil(text_width(text, font_size))) + 2 * pad, ascent + descent + pad
    if not text or height > image_height:
        return None

    x0, y0, x1, y1 = (round(v) for v in box)
    anchors = [(x0, y0 - height), (x0, y0), (x0, y1), (x1 - width, y0 - height), (x1 - width, y0), (x0, y1 - height)]
    inside = [
        (min(max(left, 0), image_width - width), min(max(top, 0), image_height - height)) for left, top in anchors
    ]
    covered = _covered(inside, (width, height), _rectangles(taken))
    over_objects = np.zeros(len(inside))
    if boxes is not None:
        areas = _covered(inside, (width, height), np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]))
        over_objects = np.minimum(np.array(areas) / (width * height), 1.5)
    costs = [
        # a tag pushed away from its box is worse than one at a later anchor; a covered tag is worse than both
        area / (width * height) * 100 + (abs(x - left) + abs(y - top)) / height + order * 0.2 + hidden
        for order, (area, (x, y), (left, top), hidden) in enumerate(
            zip(covered, inside, anchors, over_objects.tolist(), strict=True)
        )
    ]
    return Tag(*inside[costs.index(min(costs))], width, height, text)


def _covered(corners: Sequence[tuple[int, int]], size: tuple[int, int], others: np.ndarray) -> list[int]:
    """Compute the area in square pixels that a tag of (width, height) `size` covers of others, at each corner.

    Args:
        corners: C places of the tag's upper left corner.
        size: (width, height) of the tag.
        others: (N, 4) left, top, width, height of the others.
    """
    if not len(others):
        return [0] * len(corners)
    begin = np.array(corners)[:, None]  # (C, 1, 2)
    common = np.minimum(others[:, :2] + others[:, 2:], begin + size) - np.maximum(others[:, :2], begin)  # (C, N, 2)
    areas: list[int] = common.clip(min=0).prod(2).sum(1).tolist()
    return areas


def paint_tags(
    canvas: Image.Image,
    boxes: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[Color],
    font_size: int,
    short: Sequence[str] | None = None,
) -> None:
    """Paint the labels of boxes on an RGB image, the last ones first served.

    A label that would be hidden by others becomes its short text, and is left out if that would be, too. Among many
    boxes a label that is wider than its box is short, and one that would hide other boxes is left out. The last one of
    each color always stays, so that each class is named.

    Args:
        canvas: the image.
        boxes: (N, 4) xyxy pixels.
        labels: N texts; "" for none.
        colors: N colors (0..255).
        font_size: in pixels.
        short: N shorter texts.
    """
    last_of_color = {color: i for i, color in enumerate(colors)}
    order = sorted(range(len(labels)), key=lambda i: (last_of_color[colors[i]] != i, -i))
    tags: list[tuple[Tag, Color]] = []
    crowded = len(labels) > _CROWD
    rectangles = np.column_stack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    for i in order:
        first = last_of_color[colors[i]] == i
        taken = [tag for tag, _ in tags]
        texts = [labels[i], *([short[i]] if short is not None else [])]
        if crowded and not first and text_width(labels[i], font_size) > abs(boxes[i, 2] - boxes[i, 0]):
            texts = texts[1:] or texts
        for text in texts:
            tag = place_tag(text, boxes[i].tolist(), canvas.size, font_size, taken, boxes) if text else None
            if tag is None:
                continue
            hides = _share(tag, np.delete(rectangles, i, 0)) if crowded else 0.0
            if first or (_share(tag, _rectangles(taken)) <= _MAX_HIDDEN and hides <= _MAX_HIDING):
                tags.append((tag, colors[i]))
                break
    # tags are painted after all boxes, so no line crosses them
    for tag, color in reversed(tags):
        paint_tag(canvas, tag, color, font_size)


def _rectangles(tags: Sequence[Tag]) -> np.ndarray:
    """Return (N, 4) left, top, width, height of tags."""
    return np.array([tag[:4] for tag in tags]).reshape(-1, 4)


def _share(tag: Tag, rectangles: np.ndarray) -> float:
    """Return the share of a tag that (N, 4) rectangles cover; those that cover each other count twice."""
    return _covered([(tag.left, tag.top)], (tag.width, tag.height), rectangles)[0] / (tag.width * tag.height)


def paint_tag(canvas: Image.Image, tag: Tag, color: Color, font_size: int) -> None:
    """Paint a tag of that color on an RGB image, its text in black or white."""
    make = _kept_image if tag.width * tag.height <= _KEPT_PIXELS else _tag_image
    canvas.paste(make(tag.text, (tag.width, tag.height), color, font_size), (tag.left, tag.top))


def _tag_image(text: str, size: tuple[int, int], color: Color, font_size: int) -> Image.Image:
    """Render a tag of (width, height) pixels."""
    font = font_for(text, font_size)
    image = Image.new("RGB", size, color)
    # Capitals are centered (fonts differ in the room above them), at whole pixels: else letters blur.
    capital = -font.getbbox("H", anchor="ls")[1]
    place = round((size[0] - text_width(text, font_size)) / 2), round((size[1] + capital) / 2)
    ImageDraw.Draw(image).text(place, text, fill=text_color(color), font=font, anchor="ls")
    return image


_kept_image = lru_cache(maxsize=512)(_tag_image)
