"""Pictures of an explanation: attention, sampled points, and the box's way through the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from detrkit.explanation.maps import Head
from detrkit.explanation.numbers import box_share
from detrkit.explanation.picture_parts import (
    POINTS_LIGHTNESS,
    canvas_of,
    default_show,
    draw_subject,
    flat_points,
    level_items,
    where,
)
from detrkit.explanation.picture_sheets import draw_around, draw_sheet
from detrkit.explanation.subjects import DetectionSubject, PixelSubject, Show, Subject, share_words
from detrkit.utils.visible import one_line
from detrkit.visualize.attention import (
    dimmed,
    draw_cross,
    draw_objects_heat,
    draw_points,
    heat_color,
    object_color,
)
from detrkit.visualize.draw import draw_boxes
from detrkit.visualize.legend import LegendItem, with_legend
from detrkit.visualize.sizes import drawing_sizes

if TYPE_CHECKING:
    from detrkit.explanation.result import Explanation

All = Literal["all"]
Pixels = tuple[float, float] | Sequence[tuple[float, float]]
_SHOWS = ("map", "points", "boxes")


def draw_explanation(
    explanation: Explanation,
    i: int | Sequence[int] | None = None,
    *,
    pixel: Pixels | None = None,
    layer: int | All = -1,
    head: Head | All = "mean",
    show: Show | None = None,
    level: int = 0,
    legend: bool = True,
    scale: float | None = None,
) -> Image.Image:
    """Draw an explanation: see `Explanation.draw`, which has the arguments and errors."""
    _check_choices(explanation, i, pixel, layer, head, show)
    single = i is not None and np.ndim(i) == 0
    if pixel is not None:
        pixels = pixel_list(pixel)
        cells = [PixelSubject(explanation, x, y, level) for x, y in pixels]
        if len(cells) > 1 and layer != "all" and head != "all":
            return draw_around(explanation, cells, layer, head, show, scale=scale)
        subjects: list[Subject] = [*cells]
    else:
        chosen = range(len(explanation)) if i is None else np.atleast_1d(np.asarray(i)).tolist()
        objects = [DetectionSubject(explanation, explanation.detection_number(k)) for k in chosen]
        subjects = [*objects]
    if layer == "all" or head == "all":
        return draw_sheet(explanation, subjects, layer, head, show, scale=scale)
    canvas, factor = canvas_of(explanation, scale)
    if pixel is None and not single:
        return _objects(explanation, objects, canvas, factor, layer, head, show or "map", legend=legend)
    (subject,) = subjects
    if isinstance(subject, DetectionSubject) and show == "boxes":
        return _trail(subject, canvas, factor, legend=legend)
    drawn = draw_subject(subject, canvas, factor, layer, head, show)
    return with_legend(drawn, *_legend(subject, layer, head, show or default_show(subject))) if legend else drawn


def _check_choices(
    explanation: Explanation,
    i: int | Sequence[int] | None,
    pixel: Pixels | None,
    layer: int | All,
    head: Head | All,
    show: Show | None,
) -> None:
    """Check what is asked for together.

    Raises:
        ValueError: what excludes each other, or does not exist for this model.
    """
    if i is not None and pixel is not None:
        raise ValueError("a picture is of a detection (i) or of a pixel: leave one out")
    if show is not None and show not in _SHOWS:
        raise ValueError(f"show is {show!r}: choose one of {', '.join(_SHOWS)}")
    if isinstance(layer, str) and layer != "all":
        raise ValueError(f'layer is {layer!r}: choose a number, or "all"')
    if show == "points" and not (explanation.deformable if pixel is None else explanation.encoder_samples_points):
        name = explanation.model_name
        raise ValueError(f'{name} attends to a whole map and samples no points: choose show="map"')
    if show == "boxes" and (pixel is not None or layer == "all" or head == "all"):
        raise ValueError('show="boxes" is the way of the boxes through all layers: give no pixel, and no "all"')


def pixel_list(pixel: Pixels) -> list[tuple[float, float]]:
    """Return pixels as a list of xy.

    Raises:
        ValueError: neither two numbers nor a list of them.
    """
    array = np.asarray(pixel, np.float64)
    if array.shape == (2,):
        array = array[None]
    if array.ndim != 2 or array.shape[1] != 2 or not len(array) or not np.isfinite(array).all():
        raise ValueError("pixel: give (x, y), or a list of them")
    return [(x, y) for x, y in array.tolist()]


def _objects(
    explanation: Explanation,
    subjects: list[DetectionSubject],
    canvas: Image.Image,
    factor: float,
    layer: int,
    head: Head,
    show: Show,
    *,
    legend: bool,
) -> Image.Image:
    """Draw several objects at once, each in its color (DETR, Fig. 6)."""
    colors = [subject.color for subject in subjects]
    if show == "map":
        drawn = draw_objects_heat(canvas, [subject.heat(layer, head) for subject in subjects], colors)
    else:
        drawn = dimmed(canvas, POINTS_LIGHTNESS)
    if show == "points":
        for subject in reversed(subjects):  # the best on top
            points, weights, levels = flat_points(subject, layer, head)
            draw_points(drawn, points * factor, weights, levels, color=subject.color)
    # the best detection is drawn last, so that others do not cover its box and name
    names = [subject.name for subject in subjects]
    boxes = explanation.detections.boxes[[subject.i for subject in subjects]] * factor
    short = [name.rpartition(" ")[2] for name in names]
    miss = explanation.detections.near_miss
    if miss is not None and miss.box is not None and not len(explanation):
        box = [side * factor for side in miss.box]
        label = f"{one_line(miss.name)} {miss.decimals}, not above {miss.threshold:g}"
        drawn = draw_boxes(drawn, [box], [label], [object_color(0)], dashed=True)
    drawn = draw_boxes(drawn, boxes.flip(0), names[::-1], colors[::-1], short=short[::-1])
    if not legend:
        return drawn
    if not subjects:
        return with_legend(drawn, str(miss) if miss is not None else "nothing was found")
    what = {"map": "attention", "points": "sampled points", "boxes": "boxes"}[show]
    place = "" if show == "boxes" else f": {where(subjects[0], layer, head, show)}"
    hint = "where several attend, the color of the strongest prevails" if show == "map" and len(subjects) > 1 else ""
    levels_shown = level_items(explanation) if show == "points" else []
    return with_legend(
        drawn,
        f"{what} of each object in its color{place}",
        [*levels_shown, *([LegendItem("none", hint)] if hint else [])],
    )


def _trail(subject: DetectionSubject, canvas: Image.Image, factor: float, *, legend: bool) -> Image.Image:
    """Draw the box of a detection before the first layer and after each, dark to bright."""
    explanation, i = subject.explanation, subject.i
    boxes, scores = explanation.layer_boxes(i) * factor, explanation.layer_scores(i).tolist()
    start = explanation.reference_boxes(i)[:1] * factor
    colors = [heat_color(k / max(1, len(boxes) - 1)) for k in range(len(boxes))]
    drawn = dimmed(canvas, POINTS_LIGHTNESS)
    point = bool((start[0, :2] == start[0, 2:]).all())
    line = drawing_sizes(canvas.size, boxes.numpy()).line
    thickest = max(line, round(float((boxes[-1, 2:] - boxes[-1, :2]).min()) / 6))
    for k in reversed(range(len(boxes))):  # boxes that coincide are seen as stripes, the first layer's outside
        width = min(max(1, round(line * 0.7)) * (k + 1), thickest)
        drawn = draw_boxes(drawn, boxes[k : k + 1], None, [colors[k]], width=width)
    if not point:
        drawn = draw_boxes(drawn, start, None, [(255, 255, 255)], dashed=True, width=max(1, line // 2))
    if point:
        draw_cross(drawn, (float(start[0, 0]), float(start[0, 1])))
    if not legend:
        return drawn
    items = [LegendItem("cross", "reference point") if point else LegendItem("dashes", "before layer 0")]
    items += [
        LegendItem("line", f"layer {k}: {score:.2f}", color=color)
        for k, (score, color) in enumerate(zip(scores, colors, strict=True))
    ]
    name = one_line(explanation.detections.names[i])
    return with_legend(drawn, f"{subject.title}: its box, and the score of {name}, after each decoder layer", items)


def _legend(subject: Subject, layer: int, head: Head, show: Show) -> tuple[str, list[LegendItem]]:
    """Return the caption and the legend of a picture of one detection or pixel."""
    caption = f"{subject.title}: {where(subject, layer, head, show)}"
    explanation = subject.explanation
    if show == "map":
        items = [LegendItem("scale", "attention of a cell: 0", f"{float(subject.heat(layer, head).max()):.2g}")]
    else:
        points, weights, _ = flat_points(subject, layer, head)
        items = [LegendItem("scale", "weight of a point: 0", f"{float(weights.max()):.2g}"), *level_items(explanation)]
        height, width = explanation.image_size
        outside = int(((points < 0) | (points > [width, height])).any(1).sum())
        if outside:
            items.append(LegendItem("none", f"{outside} of {len(points)} points lie outside the image"))
    if isinstance(subject, PixelSubject) or show == "points":
        items.append(LegendItem("cross", subject.cross))
    if isinstance(subject, DetectionSubject):
        area = share_words(box_share(explanation.image_size, explanation.detections.boxes[subject.i]))
        items.append(LegendItem("none", f"{subject.note(layer, head)}, which is {area} of the image"))
    return caption, items
