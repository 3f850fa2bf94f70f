"""Why the average precision is 0: what is wrong with the detections, as far as they show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from detrkit.evaluation.ground_truth import DetectionGroundTruth
from detrkit.evaluation.overlaps import groups, overlap
from detrkit.evaluation.result_table import ResultTable
from detrkit.utils.visible import one_line

ALMOST_ZERO = 0.005  # AP that a page shows as 0.0, or 0.4 at most
_MAX_IMAGES = 200  # that are looked at
_SHARE = 0.3  # of the objects that a change of the results must match to be named as the reason
_IOU = 0.5


def reason_for_zero(ground_truth: DetectionGroundTruth, table: ResultTable, ap: float) -> str | None:
    """Return a sentence on why AP is (almost) 0; None if it is not, or if there are no objects to detect.

    Args:
        ground_truth: of the evaluation.
        table: the detections.
        ap: in [0, 1], -1 if it is not defined.
    """
    if not 0 <= ap < ALMOST_ZERO or ground_truth.crowd.all():
        return None
    if not len(table):
        return "AP is 0 because there is no detection at all"
    best = float(table.scores.max())
    with_class, any_class = _matched(ground_truth, table)
    if float(table.boxes.max()) <= 1.5 and float(ground_truth.boxes.max()) > 10:
        return "AP is 0 because the boxes look normalized (0 to 1): write them in pixels of the image"
    for changed, text in _CHANGES:
        boxes = changed(table.boxes)
        if boxes is not None and _matched(ground_truth, table, boxes).any_class >= _SHARE > any_class:
            return f"AP is 0 because {text}"
    if any_class >= _SHARE > with_class:
        return (
            f"AP is 0 because the classes do not match: {any_class:.0%} of the objects have a detection at IoU 0.5, "
            f"but only {with_class:.0%} one of their class{_confusion(ground_truth, table)}"
        )
    if any_class < _SHARE:
        return (
            f"AP is 0 because the boxes are not where the objects are: {any_class:.0%} of the objects have a box "
            f"on them (IoU 0.5 or more), even of another class. The best score is {best:.2g}. The model has not "
            "learned yet: train longer or from trained weights (--init-from), or see with --overfit 8 whether it can"
        )
    return (
        f"AP is 0 because right boxes have no higher score than wrong ones (the best score is {best:.2g}): train "
        "longer, or from trained weights (--init-from)"
    )


class _Shares(NamedTuple):
    """Shares of the objects that a detection of their class, and one of any class, matches."""

    right_class: float
    any_class: float


def _matched(ground_truth: DetectionGroundTruth, table: ResultTable, boxes: np.ndarray | None = None) -> _Shares:
    """Compute the shares of the objects that some detection overlaps with IoU 0.5, whatever its score."""
    boxes = table.boxes if boxes is None else boxes
    right = anywhere = count = 0
    for detections, objects in _images(ground_truth, table):
        hit = overlap(boxes[detections], ground_truth.boxes[objects]) >= _IOU  # (D, G)
        same = table.category[detections][:, None] == ground_truth.category[objects][None]
        right += int((hit & same).any(0).sum())
        anywhere += int(hit.any(0).sum())
        count += len(objects)
    return _Shares(right / max(1, count), anywhere / max(1, count))


def _images(ground_truth: DetectionGroundTruth, table: ResultTable) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return indices of the detections and of the objects (without crowd) of the first images that have objects."""
    number = len(ground_truth.image_ids)
    pairs = zip(groups(table.image, number), groups(ground_truth.image, number), strict=True)
    kept = [(found, objects[~ground_truth.crowd[objects]]) for found, objects in pairs]
    return [(found, objects) for found, objects in kept if len(objects)][:_MAX_IMAGES]


def _confusion(ground_truth: DetectionGroundTruth, table: ResultTable) -> str:
    """Name the class for which objects are taken most often: "; a is mostly detected as b"."""
    counts = np.zeros((len(ground_truth.names),) * 2, np.int64)
    for detections, objects in _images(ground_truth, table):
        hit = overlap(table.boxes[detections], ground_truth.boxes[objects]) >= _IOU
        d, g = np.nonzero(hit)
        np.add.at(counts, (ground_truth.category[objects][g], table.category[detections][d]), 1)
    np.fill_diagonal(counts, 0)
    true, predicted = np.unravel_index(int(counts.argmax()), counts.shape)
    names = ground_truth.names
    return one_line(f"; {names[true]!r} is mostly detected as {names[predicted]!r}: check names and ids of the classes")


def _from_corners(boxes: np.ndarray) -> np.ndarray | None:
    if (boxes[:, 2:] < boxes[:, :2]).any():
        return None
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def _from_centers(boxes: np.ndarray) -> np.ndarray | None:
    return np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]])


_CHANGES: tuple[tuple[Callable[[np.ndarray], np.ndarray | None], str], ...] = (
    (_from_corners, "the boxes look like corners (x0, y0, x1, y1): COCO's results have x, y, width, height"),
    (_from_centers, "the boxes look like centers (cx, cy, width, height): COCO's results have the upper left corner"),
    (lambda boxes: boxes / 2, "the boxes look twice too large: write them in pixels of the original image"),
    (lambda boxes: boxes * 2, "the boxes look half as large as they are: write them in pixels of the original image"),
)
