"""Confusion matrix of the classes.

hotcoco's own confusion matrix is not used: it counts detections inside crowd regions as false, and a wrong class with a
higher score takes the object from the right one (measured with version 1.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.evaluation.coco import restrict
from detrkit.evaluation.ground_truth import ClassNames, DetectionGroundTruth
from detrkit.evaluation.overlaps import groups, overlap
from detrkit.evaluation.result_table import OnUnknown, ResultTable
from detrkit.utils.errors import DetrkitError


@dataclass(frozen=True)
class Confusion:
    """Counts of true against predicted classes.

    Attributes:
        names: of the K classes; row and column K are the background.
        matrix: (K + 1, K + 1) int64: rows are true classes (last: detections without an object), columns predicted
            ones (last: objects without a detection). The row of a class sums to the number of its objects.
        iou: the smallest IoU of a match.
        score: detections count above this score.
    """

    names: tuple[str, ...]
    matrix: np.ndarray
    iou: float
    score: float

    def normalized(self) -> np.ndarray:
        """Return (K + 1, K + 1) shares of each row in [0, 1]; rows without counts are 0."""
        return self.matrix / np.maximum(self.matrix.sum(1, keepdims=True), 1)

    def top(self, count: int = 10) -> list[tuple[str, str, int]]:
        """Return the most frequent mistakes between classes as (true, predicted, count), without the background."""
        wrong = self.matrix[:-1, :-1] * ~np.eye(len(self.names), dtype=bool)
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = [np.unravel_index(i, wrong.shape) for i in order]
        return [(self.names[t], self.names[p], int(wrong[t, p])) for t, p in pairs if wrong[t, p]]


def confusion_matrix(
    ground_truth: DetectionGroundTruth | str | Path | Mapping[str, Any],
    results: ResultTable | str | Path | Sequence[Mapping[str, Any]],
    *,
    iou: float = 0.5,
    score: float = 0.5,
    class_names: ClassNames | None = None,
    image_ids: Iterable[int | str] | None = None,
    unknown_categories: OnUnknown = "error",
) -> Confusion:
    """Match boxes across classes and count the pairs.

    In each image, detections in descending order of score take the free object of their own class with the greatest
    IoU (at least `iou`). An unmatched detection that lies in a crowd region of its class (at least `iou` of its area)
    is ignored, as in COCO's AP. The other unmatched detections take the free object of another class with the greatest
    IoU: a confusion. The remaining detections are false positives, the remaining objects false negatives.

    Args:
        ground_truth: COCO instances file, its content, or a `DetectionGroundTruth`.
        results: COCO results file or its entries, with boxes.
        iou: smallest IoU of a match, in (0, 1].
        score: only detections with a greater score count, in [0, 1].
        class_names: other names than the file's, see `DetectionGroundTruth.renamed`.
        image_ids: only these images; by default all of the ground truth's.
        unknown_categories: "ignore" leaves out detections of categories that the ground truth does not have.

    Raises:
        DetrkitError: malformed input, or a threshold out of its range.
    """
    if not 0 < iou <= 1 or not 0 <= score <= 1:
        raise DetrkitError(f"iou {iou} or score {score} out of range; give 0 < iou <= 1 and 0 <= score <= 1")
    ground_truth = DetectionGroundTruth.load(ground_truth).renamed(class_names)
    table = ResultTable.load(results, ground_truth, unknown_categories=unknown_categories)
    if image_ids is not None:
        ground_truth, table = restrict(ground_truth, table, image_ids)
    background = len(ground_truth.names)
    matrix = np.zeros((background + 1, background + 1), np.int64)

    confident = np.flatnonzero(table.scores > score)
    confident = confident[np.argsort(-table.scores[confident], kind="stable")]
    detections_of_image = groups(table.image[confident], len(ground_truth.image_ids))
    objects_of_image = groups(ground_truth.image, len(ground_truth.image_ids))
    for positions, objects in zip(detections_of_image, objects_of_image, strict=True):
        detections = confident[positions]
        crowd = objects[ground_truth.crowd[objects]]
        objects = objects[~ground_truth.crowd[objects]]
        predicted, true = table.category[detections], ground_truth.category[objects]
        ious = overlap(table.boxes[detections], ground_truth.boxes[objects])  # (D, G)
        same = predicted[:, None] == true[None]
        in_crowd = overlap(table.boxes[detections], ground_truth.boxes[crowd], crowd=True)  # (D, C)
        ignored = ((in_crowd >= iou) & (predicted[:, None] == ground_truth.category[crowd][None])).any(1)

        free = np.ones(len(objects), bool)
        match = np.full(len(detections), -1)
        for allowed, candidates in ((same, range(len(detections))), (~same, np.flatnonzero(~ignored))):
            for d in candidates:
                possible = np.where(allowed[d] & free & (ious[d] >= iou), ious[d], -1.0)
                if match[d] < 0 and possible.size and possible.max() >= 0:
                    match[d] = possible.argmax()
                    free[match[d]] = False
        matched = match >= 0
        np.add.at(matrix, (true[match[matched]], predicted[matched]), 1)
        np.add.at(matrix, (background, predicted[~matched & ~ignored]), 1)
        np.add.at(matrix, (true[free], background), 1)
    return Confusion(ground_truth.names, matrix, iou, score)
