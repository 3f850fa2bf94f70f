"""Attention on an image: heat maps, several objects at once, sampled points, and the marks beside them.

The photograph is shown in dark gray, its contrast stretched, so that the colors of the attention are told apart on
bright and on dark photographs alike. The scale of the colors is viridis: even to the eye, and distinct for color-blind
readers and in gray.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from detrkit.visualize.colors import Color

# Colors of the objects of a picture: distinct for color-blind readers (Okabe and Ito), bright on a dark photograph.
OBJECT_COLORS: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
    (204, 121, 167),
    (0, 158, 115),
    (213, 94, 0),
    (0, 114, 178),
)
# Opacity of the heat: half of the largest attention covers half of the photograph, which is seen where there is little.
_MAX_OPACITY, _OPACITY_EXPONENT = 0.92, 0.8
_OBJECTS_EXPONENT = 1.5  # of several objects: the little that each attends to everywhere would add up to a haze
_DARK = 0.5  # lightness of the photograph under attention
_LARGEST_POINT = 1 / 70  # radius of the heaviest point, of the geometric mean of the image's sides
_SMALLEST_SHARE = 0.3  # radius of a point without weight, of the heaviest one's
_OUTLINE: Color = (0, 0, 0)
# level -> corners, degrees of the first, reach of the corners, of every second one relative to it
_SHAPES = {1: (4, 45, 1.2, 1.0), 2: (3, -90, 1.5, 1.0), 3: (4, 0, 1.3, 1.0), 4: (10, -90, 1.6, 0.5)}


def object_color(index: int) -> Color:
    """Return the color (0..255) of an object by its number in the picture; after seven they repeat."""
    return OBJECT_COLORS[index % len(OBJECT_COLORS)]


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """Return matplotlib's viridis as (256, 3) uint8."""
    from matplotlib import colormaps

    return (colormaps["viridis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def heat_colors(values: np.ndarray) -> np.ndarray:
    """Return the colors of values in [0, 1]: (...) to (..., 3) uint8 of the scale, dark to bright."""
    return _table()[(np.clip(values, 0, 1) * 255).round().astype(int)]


def heat_color(value: float) -> Color:
    """Return the color (0..255) of one value in [0, 1]."""
    red, green, blue = heat_colors(np.array(value)).tolist()
    return red, green, blue


def opacity(values: np.ndarray, exponent: float = _OPACITY_EXPONENT) -> np.ndarray:
    """Return how much of the photograph values in [0, 1] cover, in [0, 1]."""
    return _MAX_OPACITY * np.clip(values, 0, 1) ** exponent


def dimmed(image: Image.Image, lightness: float = _DARK) -> Image.Image:
    """Return a dark gray copy of an RGB image, its contrast stretched: also a dark photograph stays visible.

    Args:
        image: the image.
        lightness: of what is white in it, in [0, 1].
    """
    gray = ImageOps.autocontrast(image.convert("L"), cutoff=0.5)
    return gray.point([round(value * lightness) for value in range(256)]).convert("RGB")


def upsampled(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a (h, w) map smoothly, its cells spread over the whole of (width, height) pixels; never below 0."""
    image = Image.fromarray(np.ascontiguousarray(heat, np.float32))
    return np.clip(np.asarray(image.resize(size, Image.Resampling.BICUBIC)), 0, None)


def draw_heat(image: Image.Image, heat: np.ndarray, *, limit: float | None = None) -> Image.Image:
    """Lay attention over an image: the more, the brighter and the more opaque.

    Args:
        image: RGB.
        heat: (h, w) attention of the cells, which are spread over the whole image; not negative.
        limit: attention that has the brightest color; by default the largest there is.
    """
    values = _relative(heat, limit)
    shown = np.clip(upsampled(values, image.size), 0, 1)
    return _covered(dimmed(image), heat_colors(shown), opacity(shown))


def draw_objects_heat(image: Image.Image, heats: Sequence[np.ndarray], colors: Sequence[Color]) -> Image.Image:
    """Lay the attention of several objects over an image, each in its color (DETR, Fig. 6).

    Each object's attention is relative to its own largest. Where several attend to a pixel, it has the mean of their
    colors, weighted by the squares of their attention, so that the one that attends most can be told.

    Args:
        image: RGB.
        heats: N maps (h, w), spread over the whole image; not negative.
        colors: N colors (0..255).
    """
    total = np.zeros((image.height, image.width), np.float32)
    most = np.zeros_like(total)
    mixed = np.zeros((image.height, image.width, 3), np.float32)
    for heat, color in zip(heats, colors, strict=True):
        shown = np.clip(upsampled(_relative(heat), image.size), 0, 1)
        square = shown**2
        total += square
        most = np.maximum(most, shown)
        mixed += square[..., None] * np.array(color, np.float32)
    return _covered(dimmed(image), mixed / np.maximum(total, 1e-9)[..., None], opacity(most, _OBJECTS_EXPONENT))


def _relative(heat: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Return a map relative to a limit, by default its largest value; one of zeros stays so."""
    largest = float(heat.max()) if limit is None else limit
    return heat / largest if largest > 0 else np.zeros_like(heat)


def _covered(image: Image.Image, colors: np.ndarray, share: np.ndarray) -> Image.Image:
    """Cover an image with (H, W, 3) colors, of (H, W) opacity."""
    base = np.asarray(image, np.float32)
    return Image.fromarray((base + share[..., None] * (colors - base)).round().astype(np.uint8))


def draw_points(
    canvas: Image.Image,
    points: np.ndarray,
    weights: np.ndarray,
    shapes: np.ndarray,
    *,
    limit: float | None = None,
    color: Color | None = None,
) -> None:
    """Draw sampled points on an RGB image, the heaviest on top: color and size by weight, shape by level.

    Args:
        canvas: the image.
        points: (N, 2) xy in pixels of it; those outside are not seen.
        weights: (N,), not negative.
        shapes: (N,) number of each point's level.
        limit: weight that has the brightest color and the full size; by default the largest there is.
        color: of all points, for several objects; by default that of the weight.
    """
    values = np.clip(_relative(weights, limit) if len(weights) else weights, 0, 1)
    largest = max(3.0, float(np.sqrt(canvas.width * canvas.height)) * _LARGEST_POINT)
    draw = ImageDraw.Draw(canvas)
    for k in np.argsort(values, kind="stable"):
        value = float(values[k])
        radius = largest * (_SMALLEST_SHARE + (1 - _SMALLEST_SHARE) * value**0.5)
        draw_shape(draw, (points[k, 0], points[k, 1]), radius, int(shapes[k]), color or heat_color(value))


def draw_shape(draw: ImageDraw.ImageDraw, center: tuple[float, float], radius: float, shape: int, color: Color) -> None:
    """Draw the mark of a level with a thin black outline: circle, square, triangle, diamond, star, then again.

    Args:
        draw: of the image.
        center: xy in pixels.
        radius: in pixels.
        shape: number of the level.
        color: of the inside (0..255).
    """
    x, y = center
    if not (-1e6 < x < 1e6 and -1e6 < y < 1e6):  # Pillow's own coordinates are 32 bits
        return
    outline = 1 if radius < 7 else 2
    if shape % 5 == 0:
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=color, outline=_OUTLINE, width=outline)
        return
    corners, start, size, inner = _SHAPES[shape % 5]
    angles = np.radians(start + 360 / corners * np.arange(corners))
    reach = np.where(np.arange(corners) % 2, inner, 1.0) * size * radius
    xy = list(zip((x + reach * np.cos(angles)).tolist(), (y + reach * np.sin(angles)).tolist(), strict=True))
    draw.polygon(xy, fill=color, outline=_OUTLINE, width=outline)


def draw_cross(canvas: Image.Image, center: tuple[float, float], *, color: Color = (255, 255, 255)) -> None:
    """Draw a cross with a black outline: a reference point, or the pixel that is asked about.

    Args:
        canvas: RGB.
        center: xy in pixels; the cross is moved to the border where it lies outside.
        color: of the cross (0..255).
    """
    extent = float(np.sqrt(canvas.width * canvas.height))
    arm, line = max(4, round(extent / 45)), max(1, round(extent / 350))
    x = min(max(round(center[0] - 0.5), 0), canvas.width - 1)
    y = min(max(round(center[1] - 0.5), 0), canvas.height - 1)
    draw = ImageDraw.Draw(canvas)
    for grow, fill in ((line + 1, _OUTLINE), (line - 1, color)):
        half = grow
        draw.rectangle((x - arm - half, y - half, x + arm + half, y + half), fill=fill)
        draw.rectangle((x - half, y - arm - half, x + half, y + arm + half), fill=fill)
