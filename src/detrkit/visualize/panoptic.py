"""Panoptic results drawn on images: every segment in its color with its name inside, void hatched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from detrkit.data.images import ImageInput, as_rgb
from detrkit.structures.panoptic import PanopticResult
from detrkit.utils.visible import one_line
from detrkit.visualize.colors import Color, color_of, instance_colors
from detrkit.visualize.draw import enlarged
from detrkit.visualize.sizes import MIN_LETTERS
from detrkit.visualize.tags import font_for, text_width

_BORDER_COLOR = (255, 255, 255)
_VOID_COLOR, _STRIPE_COLOR = (74, 74, 80), (104, 104, 112)
_MIN_FONT_SIZE = 11  # pixels: smaller text is unreadable
_SEARCH_SIDE = 400  # longer side in pixels of the reduced map on which places for names are searched


class Name(NamedTuple):
    """The place of a name: the center `x`, `y` of the text and the font size, in pixels."""

    text: str
    x: float
    y: float
    size: int


def segment_colors(result: PanopticResult) -> list[Color]:
    """Return a color (0..255) for each segment: that of its class, and shades of it for further things of the class."""
    shades = instance_colors([segment.label for segment in result.segments])
    return [shade if one.thing else color_of(one.label) for shade, one in zip(shades, result.segments, strict=True)]


def draw_panoptic(
    image: ImageInput,
    result: PanopticResult,
    *,
    opacity: float = 0.6,
    names: bool = True,
    scores: bool = False,
    font_size: int | None = None,
    scale: float | None = 1.0,
) -> Image.Image:
    """Draw every segment in its color on a copy of the image, with thin borders, and names where there is room.

    Args:
        image: as `detrkit.data.images.as_rgb` takes it, of the size of the result.
        result: the segments to draw.
        opacity: of the colors, 0 (invisible) .. 1 (the image is hidden).
        names: whether to write the classes.
        scores: whether to write the scores beside them ("cat 0.93").
        font_size: of the names, pixels of the copy, smaller in narrow segments; by default scaled to the image.
        scale: factor to enlarge the image by; None makes small images readable (see `draw_boxes`).

    Raises:
        ValueError: the result has another size than the image.
    """
    height, width = result.id_map.shape
    rgb = as_rgb(image)
    if rgb.size != (width, height):
        raise ValueError(f"a result of {width} x {height} pixels on an image of {rgb.width} x {rgb.height}")
    canvas, _ = enlarged(rgb, scale)
    index = index_map(result, canvas.size)
    colors = segment_colors(result)
    extent = float(np.sqrt(canvas.width * canvas.height))

    tinted = index
    if (index == 0).any():  # void has stripes
        period = max(8, round(extent / 50))
        stripe = np.arange(canvas.height + canvas.width) % period < period / 3
        rows = np.lib.stride_tricks.sliding_window_view(stripe, canvas.width)[
            : canvas.height
        ]  # (H, W), along diagonals
        tinted = np.where((index == 0) & rows, len(colors) + 1, index)
    tints = np.array([_VOID_COLOR, *colors, _STRIPE_COLOR]) * opacity  # (N + 2, 3)
    background = np.asarray(_pale(canvas, 1 - opacity))
    limit = 255 - round(255 * (1 - opacity))  # rounded separately, the two terms may sum to 256
    # `take` needs 0.5 ms for 640 x 480 pixels, indexing with brackets 14 ms
    pixels = background + np.take(tints.round().clip(max=limit).astype(np.uint8), tinted, axis=0)  # (H, W, 3)
    border = borders(index, max(1, round(extent / 500)))
    pixels[border] = (pixels[border] * 0.25 + np.array(_BORDER_COLOR) * 0.75).round()
    canvas = Image.fromarray(pixels)
    if not names:
        return canvas

    texts = [one_line(name) for name in result.names]
    if scores:
        texts = [f"{text} {segment.score:.2f}" for text, segment in zip(texts, result.segments, strict=True)]
    letters = font_size if font_size is not None else max(MIN_LETTERS, round(extent / 30))
    draw = ImageDraw.Draw(canvas)
    for position, name in enumerate(place_names(index, texts, letters)):
        if name is not None:
            red, green, blue = (round(c * 0.3) for c in colors[position])
            draw.text(
                (name.x, name.y),
                name.text,
                fill=(255, 255, 255),
                font=font_for(name.text, name.size),
                anchor="mm",
                stroke_width=max(1, round(name.size / 9)),
                stroke_fill=(red, green, blue),
            )
    return canvas


def _pale(image: Image.Image, share: float) -> Image.Image:
    """Multiply an RGB image by `share` and halve its saturation: else a green car below red looks brown. Takes 1 ms."""
    gray = (0.2126, 0.7152, 0.0722)
    matrix = [share / 2 * (weight + (row == column)) for row in range(3) for column, weight in enumerate(gray)]
    # each row: weights of R, G and B, and a constant
    return image.convert("RGB", (*matrix[:3], 0.0, *matrix[3:6], 0.0, *matrix[6:], 0.0))


def index_map(result: PanopticResult, size: tuple[int, int]) -> np.ndarray:
    """Return a (height, width) map of the position of each pixel's segment, from 1; 0 for void.

    Args:
        result: of any size.
        size: (width, height) in pixels to which its map is resized by nearest neighbor.
    """
    ids = Image.fromarray(result.id_map.cpu().numpy().astype(np.int32))
    pixels = np.asarray(ids.resize(size, Image.Resampling.NEAREST))
    segment_ids = np.array([segment.id for segment in result.segments], np.int64)
    position_of = np.zeros(max(int(pixels.max(initial=0)), int(segment_ids.max(initial=0))) + 1, np.int32)  # by id
    position_of[segment_ids] = np.arange(1, len(segment_ids) + 1)
    return np.take(position_of, pixels)


def borders(index: np.ndarray, width: int) -> np.ndarray:
    """Return (H, W) bool: the pixels of the lines between segments, `width` pixels wide."""
    from scipy import ndimage

    line = np.zeros(index.shape, bool)
    line[:, 1:] |= index[:, 1:] != index[:, :-1]
    line[1:] |= index[1:] != index[:-1]
    return ndimage.binary_dilation(line, iterations=1, structure=np.ones((width, width))) if width > 1 else line


def place_names(index: np.ndarray, names: Sequence[str], letters: int) -> list[Name | None]:
    """Place the names of segments: each at the point of its segment where a text of its shape has most room.

    Args:
        index: (H, W) position of each pixel's segment, from 1; 0 for void.
        names: N texts.
        letters: font size in pixels; reduced where the segment is narrow.

    Returns:
        N places; None for a segment that is too small or whose place another name covers.
    """
    from scipy import ndimage

    step = max(1, round(max(index.shape) / _SEARCH_SIDE))
    coarse = index[::step, ::step]
    candidates: list[tuple[float, int, Name]] = []
    for position, box in enumerate(ndimage.find_objects(coarse, max_label=len(names))):
        if box is None:
            continue
        inside = np.pad(coarse[box] == position + 1, 1)  # the image's border is an edge, too
        width, height = _extent(names[position], letters)
        # Horizontal distances count less, as the text is wider than high: this finds the largest ellipse of its shape.
        depth = ndimage.distance_transform_edt(inside, sampling=(1.0, height / width))
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        room = float(depth[row, column]) * step
        size = int(np.clip(letters * 1.5 * room / height, _MIN_FONT_SIZE, letters))
        if room > 0.3 * _extent(names[position], size)[1]:
            x, y = (box[1].start + column - 0.5) * step, (box[0].start + row - 0.5) * step
            candidates.append((room, position, Name(names[position], float(x), float(y), size)))

    placed: list[Name | None] = [None] * len(names)
    taken: list[tuple[float, float, float, float]] = []
    for _, position, name in sorted(candidates, key=lambda c: (-c[0], c[1])):
        width, height = _extent(name.text, name.size)
        x = min(max(name.x, width / 2), index.shape[1] - width / 2)
        y = min(max(name.y, height / 2), index.shape[0] - height / 2)
        box = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        if all(box[0] >= t[2] or t[0] >= box[2] or box[1] >= t[3] or t[1] >= box[3] for t in taken):
            taken.append(box)
            placed[position] = name._replace(x=x, y=y)
    return placed


def _extent(text: str, size: int) -> tuple[float, float]:
    """Return width and height of a text in pixels, with its outline."""
    return text_width(text, size) + size / 4, size * 1.1
