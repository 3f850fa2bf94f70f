"""One colour per class: distinct, the same in every picture, and with readable text on it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Color = tuple[int, int, int]

# Colours are chosen once for this many labels; later labels repeat them.
PALETTE_SIZE = 256
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

    chosen = [int(np.argmin(np.abs(lab - np.array([0.62, 0.2, 0.11])).sum(1)))]  # a strong red first
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < PALETTE_SIZE:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))

    picked = linear[chosen]
    srgb = np.where(picked <= 0.0031308, 12.92 * picked, 1.055 * picked ** (1 / 2.4) - 0.055)
    return tuple((int(r), int(g), int(b)) for r, g, b in (srgb * 255).round())


def color_of(label: int) -> Color:
    """The RGB colour (0..255) of class `label`, the same in every picture and for every number of classes."""
    return _colors()[label % PALETTE_SIZE]


def palette(n: int) -> list[Color]:
    """The colours of labels 0 .. n-1; distinct up to `PALETTE_SIZE` of them."""
    return [color_of(label) for label in range(n)]


def luminance(color: Color) -> float:
    """Relative luminance in [0, 1] of an RGB colour (0..255), as WCAG 2 defines it."""
    channels = [c / 255 for c in color]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: Color, b: Color) -> float:
    """The WCAG contrast ratio of two RGB colours: 1 (equal) .. 21 (black on white)."""
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def text_color(background: Color) -> Color:
    """Black or white, whichever reads better on `background`; the ratio is never below 4.5 (WCAG AA)."""
    black, white = (0, 0, 0), (255, 255, 255)
    return black if contrast(black, background) >= contrast(white, background) else white
