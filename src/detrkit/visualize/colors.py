"""Colors of classes: distinct, the same in every image, with readable text on them; shades of them for objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Color = tuple[int, int, int]

# Number of labels with colors of their own; later labels repeat them.
PALETTE_SIZE = 256
# Number of shades for the objects of one class in an image; further objects repeat them.
SHADES = 24
# Colors of lines in a plot and of the models of a study: blue, orange, green, red, violet, brown, cyan, pink; distinct
# for color-blind readers, too (after Okabe and Ito).
LINE_COLORS = ("#0072b2", "#e66100", "#009e73", "#c1272d", "#8a4fbf", "#7a5230", "#2aa5c9", "#b0569b")


def _oklab_to_linear(lab: np.ndarray) -> np.ndarray:
    """Convert (N, 3) Oklab to (N, 3) linear sRGB, outside [0, 1] if the color is out of gamut (Ottosson 2020)."""
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.707614701],
        ]
    )
    return (lab @ to_lms.T) ** 3 @ to_rgb.T


def _linear_to_oklab(rgb: np.ndarray) -> np.ndarray:
    """Convert (3,) linear sRGB to (3,) Oklab (Ottosson 2020)."""
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.793617785, -0.0040720468],
            [1.9779984951, -2.428592205, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.808675766],
        ]
    )
    return to_lab @ np.cbrt(to_lms @ rgb)


def _linear(channel: int) -> float:
    """Convert a channel of sRGB (0..255) to linear light in [0, 1]."""
    c = channel / 255
    return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4


def _rgb(linear: np.ndarray) -> Color:
    """Convert (3,) linear sRGB in [0, 1] to a color (0..255)."""
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (srgb * 255).round().astype(int).tolist()
    return red, green, blue


def _farthest(points: np.ndarray, first: int, count: int) -> list[int]:
    """Choose indices of `count` of the (N, D) points: `first`, then always the point farthest from all chosen ones."""
    chosen = [first]
    distance = np.linalg.norm(points - points[first], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


@lru_cache(maxsize=PALETTE_SIZE)
def _shades(label: int) -> tuple[Color, ...]:
    """Return `SHADES` colors near that of a class, the first; each is the farthest in Oklab from all before it."""
    color = color_of(label)
    base = _linear_to_oklab(np.array([_linear(c) for c in color]))
    lightness, chroma, hue = np.meshgrid(
        np.clip(base[0] + np.linspace(-0.17, 0.17, 9), 0.4, 0.92),
        np.hypot(base[1], base[2]) * np.linspace(0.7, 1.2, 4),
        np.arctan2(base[2], base[1]) + np.radians(np.linspace(-20, 20, 7)),
        indexing="ij",
    )
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], -1).reshape(-1, 3)
    linear = _oklab_to_linear(lab)
    displayable = ((linear >= 0) & (linear <= 1)).all(1)
    chosen = _farthest(np.concatenate([base[None], lab[displayable]]), 0, SHADES)[1:]
    return color, *(_rgb(linear[displayable][i - 1]) for i in chosen)


@lru_cache(maxsize=1)
def _colors() -> tuple[Color, ...]:
    """Choose `PALETTE_SIZE` colors, each the farthest in Oklab from all before it.

    The choice is greedy, so the first n colors are well apart for every n, and a class keeps its color whatever the
    number of classes. Grays and near-blacks are left out: they are hard to see on photographs.
    """
    lightness, chroma, hue = np.meshgrid(
        np.linspace(0.5, 0.86, 7),
        np.linspace(0.11, 0.27, 6),
        np.linspace(0, 2 * np.pi, 60, endpoint=False),
        indexing="ij",
    )
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], -1).reshape(-1, 3)
    linear = _oklab_to_linear(lab)
    displayable = ((linear >= 0) & (linear <= 1)).all(1)
    lab, linear = lab[displayable], linear[displayable]
    # The eye distinguishes hues better than lightness, so lightness counts less.
    points = lab * np.array([0.7, 1.0, 1.0])

    red = int(np.argmin(np.abs(lab - np.array([0.62, 0.2, 0.11])).sum(1)))  # the first color is a strong red
    chosen = _farthest(points, red, PALETTE_SIZE)
    return tuple(_rgb(color) for color in linear[chosen])


def color_of(label: int) -> Color:
    """Return the RGB color (0..255) of class `label`: the same in every image and for every number of classes."""
    return _colors()[label % PALETTE_SIZE]


def instance_color(label: int, index: int) -> Color:
    """Return the RGB color (0..255) of the object number `index` of class `label` in an image.

    The first object has the color of the class; the others are lighter, darker, more saturated, or up to 20 degrees
    away in hue. Up to `SHADES` of them are distinct.
    """
    return _shades(label % PALETTE_SIZE)[index % SHADES]


def instance_colors(labels: Sequence[int]) -> list[Color]:
    """Return a color for each object of an image: `instance_color` of its label and its number within its class."""
    seen: Counter[int] = Counter()
    colors = []
    for label in labels:
        colors.append(instance_color(label, seen[label]))
        seen[label] += 1
    return colors


def palette(n: int) -> list[Color]:
    """Return the colors of labels 0 .. n-1; up to `PALETTE_SIZE` of them are distinct."""
    return [color_of(label) for label in range(n)]


def luminance(color: Color) -> float:
    """Compute the relative luminance in [0, 1] of an RGB color (0..255), as WCAG 2 defines it."""
    red, green, blue = (_linear(c) for c in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: Color, b: Color) -> float:
    """Compute the WCAG contrast ratio of two RGB colors: 1 (equal) .. 21 (black on white)."""
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def text_color(background: Color) -> Color:
    """Return black or white, whichever has more contrast on `background`: never below 4.5 (WCAG AA)."""
    black, white = (0, 0, 0), (255, 255, 255)
    return black if contrast(black, background) >= contrast(white, background) else white
