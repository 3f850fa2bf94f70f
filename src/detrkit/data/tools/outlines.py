"""Outlines of the synthetic shapes, drawn with supersampling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

_SUPERSAMPLING = 4


def _regular(corners: int, inner: float | None = None) -> np.ndarray:
    """Return (K, 2) corners of a regular polygon on the unit circle, or of a star whose dents have radius `inner`."""
    count = corners * (1 if inner is None else 2)
    angles = np.arange(count) * 2 * np.pi / count - np.pi / 2
    radii = np.ones(count)
    if inner is not None:
        radii[1::2] = inner
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _cross() -> np.ndarray:
    """Return (12, 2): a plus sign whose corners lie on the unit circle."""
    a = 0.32  # half the width of a bar
    b = float(np.sqrt(1 - a * a))  # half its length
    corners = [
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
        (-a, -b),
    ]
    return np.array(corners)


def _heart() -> np.ndarray:
    """Return (64, 2): the classic parametric heart, scaled into the unit circle."""
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], 1) / 17.2


def _crescent() -> np.ndarray:
    """Return (64, 2): the unit disc without a disc of radius 0.85 around (0.55, 0)."""
    offset, radius = 0.55, 0.85
    cut = (1 - radius**2 + offset**2) / (2 * offset)  # x of the two corners
    outer = np.arccos(cut)
    inner = np.arctan2(np.sqrt(1 - cut**2), cut - offset)
    long = np.linspace(outer, 2 * np.pi - outer, 32)
    short = np.linspace(2 * np.pi - inner, inner, 32)
    arc = np.stack([offset + radius * np.cos(short), radius * np.sin(short)], 1)
    return np.concatenate([np.stack([np.cos(long), np.sin(long)], 1), arc])


def _arrow() -> np.ndarray:
    """Return (7, 2): an arrow that points up."""
    return np.array([(0, -1), (0.75, -0.1), (0.28, -0.1), (0.28, 0.95), (-0.28, 0.95), (-0.28, -0.1), (-0.75, -0.1)])


# Name -> the outer polygon and a hole (or None), both (K, 2) xy within the unit circle, y down.
SHAPES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray | None]]] = {
    "circle": lambda: (_regular(48), None),
    "square": lambda: (_regular(4), None),
    "triangle": lambda: (_regular(3), None),
    "star": lambda: (_regular(5, 0.42), None),
    "ring": lambda: (_regular(48), 0.55 * _regular(48)),
    "cross": lambda: (_cross(), None),
    "heart": lambda: (_heart(), None),
    "crescent": lambda: (_crescent(), None),
    "hexagon": lambda: (_regular(6), None),
    "arrow": lambda: (_arrow(), None),
}
_OUTLINES = {name: make() for name, make in SHAPES.items()}


def coverage(shape: str, side: int, center: tuple[float, float], radius: float, angle: float) -> np.ndarray:
    """Return (side, side) float: the share of every pixel that the shape covers, in steps of 1/16.

    Args:
        shape: a key of `SHAPES`.
        side: pixels of the square canvas.
        center: x, y in pixels of the canvas (pixel centers at .5).
        radius: of the circle around the shape, in pixels.
        angle: radians, clockwise.
    """
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    canvas = Image.new("L", (side * _SUPERSAMPLING,) * 2)
    draw = ImageDraw.Draw(canvas)
    for polygon, fill in zip(_OUTLINES[shape], (255, 0), strict=True):
        if polygon is not None:
            points = (polygon @ turn * radius + center) * _SUPERSAMPLING - 0.5
            draw.polygon([(float(x), float(y)) for x, y in points], fill=fill)
    share: np.ndarray = np.asarray(canvas.reduce(_SUPERSAMPLING), np.float64) / 255
    return share
