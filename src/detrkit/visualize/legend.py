"""Legends below pictures: a caption, and marks with what they mean, in as many lines as they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from detrkit.utils.visible import one_line
from detrkit.visualize.attention import draw_cross, draw_shape, heat_colors
from detrkit.visualize.colors import Color
from detrkit.visualize.tags import font_for, shortened, text_width

_PAGE_COLOR, _TEXT_COLOR, _ICON_COLOR = (255, 255, 255), (28, 28, 30), (120, 120, 128)
_MIN_LETTERS, _MAX_LETTERS = 12, 28  # pixels
_MIN_WIDTH = 260  # pixels of the page: a narrower image gets a margin at its right, so that texts have room


class LegendItem(NamedTuple):
    """A mark and its meaning.

    Attributes:
        mark: "scale": the scale of heat, between `text` and `end`; "shape": the mark of level `number`; "cross";
            "line" or "dashes" of a box in `color`; "none": the text alone.
        text: what it means.
        end: text at the upper end of a scale.
        number: of a level.
        color: of a line or a shape (0..255).
    """

    mark: Literal["scale", "shape", "cross", "line", "dashes", "none"]
    text: str
    end: str = ""
    number: int = 0
    color: Color = _ICON_COLOR


def with_legend(
    image: Image.Image, caption: str, items: Sequence[LegendItem] = (), *, letters: int | None = None
) -> Image.Image:
    """Return an image with a caption and a legend below it.

    Texts go on in further lines where they do not fit; a single word that is wider than the page is shortened.

    Args:
        image: RGB.
        caption: the first line.
        items: of the legend.
        letters: their height in pixels; by default in proportion to the image.
    """
    automatic = min(
        max(round(min(float(np.sqrt(image.width * image.height)) / 42, image.width / 36)), _MIN_LETTERS), _MAX_LETTERS
    )
    letters = automatic if letters is None else letters
    pad = max(4, letters // 2)
    width = max(image.width, _MIN_WIDTH, *(_width(item, letters) + 2 * pad for item in items))
    room = width - 2 * pad
    lines = [[LegendItem("none", text)] for text in _wrapped(one_line(caption), letters, room)]
    row: list[LegendItem] = []
    for item in items:
        if row and sum(_width(one, letters) + letters for one in [*row, item]) - letters > room:
            lines.append(row)
            row = []
        row.append(item)
    lines += [row] if row else []
    height = round(letters * 1.6)
    page = Image.new("RGB", (width, image.height + 2 * pad + height * len(lines)), _PAGE_COLOR)
    page.paste(image, (0, 0))
    for number, line in enumerate(lines):
        left, middle = pad, image.height + pad + number * height + height // 2
        for item in line:
            _paint(page, item, left, middle, letters, room)
            left += _width(item, letters) + letters
    return page


def _wrapped(text: str, letters: int, room: float) -> list[str]:
    """Break a text into lines of at most `room` pixels."""
    lines: list[str] = []
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, letters) <= room:
            lines[-1] = longer
        else:
            lines.append(shortened(word, font_for(word, letters), room))
    return [line for line in lines if line]


def _icon_width(item: LegendItem, letters: int) -> int:
    """Return the width in pixels of a mark."""
    return {"scale": 6 * letters, "none": 0, "line": 2 * letters, "dashes": 2 * letters}.get(item.mark, letters)


def _width(item: LegendItem, letters: int) -> int:
    """Return the width in pixels of a mark with its texts."""
    gaps = letters // 2 * ((item.mark != "none") + bool(item.end))
    return _icon_width(item, letters) + gaps + round(text_width(item.text, letters) + text_width(item.end, letters))


def _paint(page: Image.Image, item: LegendItem, left: int, middle: int, letters: int, room: float) -> None:
    """Paint an item at a place of the page."""
    draw = ImageDraw.Draw(page)

    def write(text: str, at: int) -> int:
        text = shortened(text, font_for(text, letters), room)
        draw.text((at, middle), text, fill=_TEXT_COLOR, font=font_for(text, letters), anchor="lm")
        return at + round(text_width(text, letters)) + letters // 2

    width, half = _icon_width(item, letters), letters // 2
    if item.mark == "scale":
        left = write(item.text, left)
        bar = heat_colors(np.linspace(0, 1, width))[None].repeat(max(6, letters * 2 // 3), 0)
        page.paste(Image.fromarray(bar), (left, middle - bar.shape[0] // 2))
        write(item.end, left + width + half)
        return
    if item.mark == "shape":
        draw_shape(draw, (left + half, middle), letters * 0.4, item.number, item.color)
    elif item.mark == "cross":
        patch = Image.new("RGB", (letters, letters), _ICON_COLOR)
        draw_cross(patch, (letters / 2, letters / 2))
        page.paste(patch, (left, middle - half))
    elif item.mark in ("line", "dashes"):
        thick = max(2, letters // 6)
        pieces = [(0, width)] if item.mark == "line" else [(0, width // 3), (width * 2 // 3, width)]
        for begin, end in pieces:
            draw.rectangle((left + begin, middle - thick // 2, left + end - 1, middle + thick // 2), fill=item.color)
    write(item.text, left + width + (half if width else 0))
