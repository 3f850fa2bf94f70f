"""One colour per class: distinct, the same in every picture, and with readable text on it; shades of it per object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Color = tuple[int, int, int]

# Colours are chosen once for this many labels; later labels repeat them.
PALETTE_SIZE = 256
# The objects of one class in a picture have that many shades; further ones repeat them.
SHADES = 24
# Of lines in a plot and of the models of a study. Blue, orange, green, red, violet, brown, cyan, pink: apart for
# colour-blind readers too (after Okabe and Ito).
LINE_COLORS = ("#0072b2", "#e66100", "#009e73", "#c1272d", "#8a4fbf", "#7a5230", "#2aa5c9", "#b0569b")


def _oklab_to_linear(lab: np.ndarray) -> np.ndarray:
    """(N, 3) Oklab -> (N, 3) linear sRGB, outside [0, 1] where the colour is out of gamut (Ottosson 2020)."""
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
    """(3,) linear sRGB -> (3,) Oklab (Ottosson 2020)."""
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
    """A channel of sRGB (0..255) as linear light in [0, 1]."""
    c = channel / 255
    return c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4


def _rgb(linear: np.ndarray) -> Color:
    """(3,) linear sRGB in [0, 1] as a colour (0..255)."""
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (srgb * 255).round().astype(int).tolist()
    return red, green, blue


def _farthest(points: np.ndarray, first: int, count: int) -> list[int]:
    """The indices of `count` of the (N, D) points, from `first` on each the farthest from all before it."""
    chosen = [first]
    distance = np.linalg.norm(points - points[first], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen


@lru_cache(maxsize=PALETTE_SIZE)
def _shades(label: int) -> tuple[Color, ...]:
    """`SHADES` colours around that of a class, which is the first, each the farthest in Oklab from all before it."""
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
    """`PALETTE_SIZE` colours, each the farthest in Oklab from all before it.

    The choice is greedy, so the first n colours are well apart for every n, and a class keeps its colour however many
    classes there are. Greys and near-blacks are left out: they vanish on photographs.
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
    # The eye separates hues more readily than lightness, so lightness counts less.
    points = lab * np.array([0.7, 1.0, 1.0])

    red = int(np.argmin(np.abs(lab - np.array([0.62, 0.2, 0.11])).sum(1)))  # a strong red first
    chosen = _farthest(points, red, PALETTE_SIZE)
    return tuple(_rgb(color) for color in linear[chosen])


def color_of(label: int) -> Color:
    """The RGB colour (0..255) of class `label`, the same in every picture and for every number of classes."""
    return _colors()[label % PALETTE_SIZE]


def instance_color(label: int, index: int) -> Color:
    """The RGB colour (0..255) of the object number `index` of class `label` in a picture.

    The first has the colour of the class; the others are lighter, darker or stronger, or of a hue up to 20 degrees
    beside it; they are distinct up to `SHADES`.
    """
    return _shades(label % PALETTE_SIZE)[index % SHADES]


def instance_colors(labels: Sequence[int]) -> list[Color]:
    """A colour for each object of a picture: `instance_color` of its label and its number within its class."""
    seen: Counter[int] = Counter()
    colors = []
    for label in labels:
        colors.append(instance_color(label, seen[label]))
        seen[label] += 1
    return colors


def palette(n: int) -> list[Color]:
    """The colours of labels 0 .. n-1; distinct up to `PALETTE_SIZE` of them."""
    return [color_of(label) for label in range(n)]


def luminance(color: Color) -> float:
    """Relative luminance in [0, 1] of an RGB colour (0..255), as WCAG 2 defines it."""
    red, green, blue = (_linear(c) for c in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: Color, b: Color) -> float:
    """The WCAG contrast ratio of two RGB colours: 1 (equal) .. 21 (black on white)."""
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def text_color(background: Color) -> Color:
    """Black or white, whichever reads better on `background`; the ratio is never below 4.5 (WCAG AA)."""
    black, white = (0, 0, 0), (255, 255, 255)
    return black if contrast(black, background) >= contrast(white, background) else white
