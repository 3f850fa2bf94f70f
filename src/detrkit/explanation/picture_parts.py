"""Parts of the pictures of an explanation: the canvas, and what one detection or one pixel attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from detrkit.explanation.maps import Head
from detrkit.explanation.subjects import Show, Subject
from detrkit.visualize.attention import dimmed, draw_cross, draw_heat, draw_points
from detrkit.visualize.draw import enlarged
from detrkit.visualize.legend import LegendItem
from detrkit.visualize.sizes import automatic_scale

if TYPE_CHECKING:
    from detrkit.explanation.result import Explanation

PICTURE_SIDE = 1600  # pixels of the longer side with `scale=None`: larger images are reduced
POINTS_LIGHTNESS = 0.62  # of the photograph under points, which cover less of it than a map


def default_show(subject: Subject) -> Show:
    """Return what a picture of one detection or pixel shows: points where the model samples some."""
    return "points" if subject.samples_points else "map"


def canvas_of(explanation: Explanation, scale: float | None) -> tuple[Image.Image, float]:
    """Return a copy of the image to draw on, and its scale: small ones are enlarged, large ones reduced."""
    size = explanation.image.size
    if scale is None:
        longest = max(size)
        scale = float(automatic_scale(size)) if longest <= PICTURE_SIDE else PICTURE_SIDE / longest
    return enlarged(explanation.image, scale)


def draw_subject(
    subject: Subject,
    canvas: Image.Image,
    factor: float,
    layer: int,
    head: Head,
    show: Show | None,
    *,
    label: bool = True,
) -> Image.Image:
    """Draw what a detection or a pixel attends to, as a map or as points.

    Args:
        subject: the detection or pixel.
        canvas: the image, `factor` times as large.
        factor: of the size.
        layer: decoder layer of a detection, encoder layer of a pixel.
        head: a head, or "mean".
        show: "map" or "points"; None: points where the model samples some.
        label: whether the box gets its name.
    """
    heat = subject.heat(layer, head)  # also checks layer and head
    if (show or default_show(subject)) == "map":
        return subject.mark(draw_heat(canvas, heat), factor, label=label)
    drawn = subject.mark(dimmed(canvas, POINTS_LIGHTNESS), factor, label=label)
    points, weights, levels = flat_points(subject, layer, head)
    draw_points(drawn, points * factor, weights, levels)
    x, y = subject.center(layer % subject.layers)
    draw_cross(drawn, (x * factor, y * factor))
    return drawn


def flat_points(subject: Subject, layer: int, head: Head) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the points of all heads, or of one: (N, 2) xy in pixels of the image, (N,) weights, (N,) levels.

    Points of weight 0, with which levels of fewer points are filled up, are left out.
    """
    points, weights = subject.points(layer)
    if head != "mean":
        points, weights = points[head : head + 1], weights[head : head + 1]
    levels = torch.arange(weights.shape[1])[None, :, None].expand_as(weights)
    kept = weights.flatten() > 0
    return points.reshape(-1, 2)[kept].numpy(), weights.flatten()[kept].numpy(), levels.flatten()[kept].numpy()


def heads_words(subject: Subject, head: Head, show: Show | None) -> str:
    """Say which heads are drawn: "mean of 8 heads", of points "all 8 heads", "head 3 (last: 7)"."""
    heads = subject.explanation.heads
    if head != "mean":
        return f"head {_number(head, heads)}"
    return f"{'all' if (show or default_show(subject)) == 'points' else 'mean of'} {heads} heads"


def where(subject: Subject, layer: int, head: Head, show: Show | None) -> str:
    """Say which layer and heads: "decoder layer 5 (last), mean of 8 heads"."""
    return f"{layer_words(subject, layer)}, {heads_words(subject, head, show)}"


def layer_words(subject: Subject, layer: int) -> str:
    """Say which layer is drawn: "decoder layer 5 (last)", "decoder layer 3 (last: 5)"."""
    return f"{subject.part} layer {_number(layer % subject.layers, subject.layers)}"


def _number(number: int, count: int) -> str:
    """Say which of `count` things, counted from 0: "5 (last)", "3 (last: 5)"."""
    return f"{number} (last)" if number == count - 1 else f"{number} (last: {count - 1})"


def level_items(explanation: Explanation) -> list[LegendItem]:
    """Return the marks of the levels, with their cells."""
    levels = explanation.maps.levels
    shown = [f"level {k}: {w} x {h} cells" for k, (h, w) in enumerate(levels)]
    return [LegendItem("shape", text, number=k) for k, text in enumerate(shown)]
