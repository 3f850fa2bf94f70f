"""Precision, recall and F1 over the score threshold, and the thresholds with the best F1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import hotcoco
import numpy as np

from detrkit.evaluation.metrics import markdown_table, percent
from detrkit.structures.thresholds import ScoreThresholds

IOU = 0.5  # of a match
MIN_OBJECTS = 10  # of a class with a threshold of its own: fewer say little about unseen images
_ROUNDING_COST = 0.002  # F1 that a threshold may lose for being short enough to type
MIN_F1 = 0.05  # below it no threshold separates right from wrong detections, and none is suggested


class OperatingPoint(NamedTuple):
    """Counts of a class, or of all classes, at one score threshold.

    Attributes:
        threshold: detections with a greater score count.
        true_positives: number of matched detections.
        false_positives: number of the other detections.
        objects: number of annotated objects.
    """

    threshold: float
    true_positives: int
    false_positives: int
    objects: int

    @property
    def precision(self) -> float:
        """Share of the detections that are right; -1 without detections."""
        count = self.true_positives + self.false_positives
        return self.true_positives / count if count else -1.0

    @property
    def recall(self) -> float:
        """Share of the objects that are detected; -1 without objects."""
        return self.true_positives / self.objects if self.objects else -1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; -1 without objects and detections."""
        count = self.true_positives + self.false_positives + self.objects
        return 2 * self.true_positives / count if count else -1.0


class Curve(NamedTuple):
    """Precision, recall and F1 in [0, 1], each (T,), over T score thresholds."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


@dataclass(frozen=True)
class _Ranked:
    """Detections of one class, or of all, by descending score.

    Attributes:
        scores: (N,) descending.
        right: (N + 1,) number of true positives among the first 0 .. N detections.
        objects: number of annotated objects.
    """

    scores: np.ndarray
    right: np.ndarray
    objects: int

    def above(self, thresholds: np.ndarray) -> np.ndarray:
        """Return the number of detections with a score greater than each threshold."""
        return np.searchsorted(-self.scores, -thresholds, side="left")

    def at(self, threshold: float) -> OperatingPoint:
        """Count the detections above a threshold."""
        count = int(self.above(np.array([threshold]))[0])
        right = int(self.right[count])
        return OperatingPoint(threshold, right, count - right, self.objects)

    def suggested(self) -> OperatingPoint | None:
        """Return the best threshold with two or three decimals, if that costs next to nothing of F1."""
        best = self.best() if self.objects else None
        if best is None:
            return None
        rounded = (self.at(round(best.threshold, digits)) for digits in (2, 3))
        return next((point for point in rounded if point.f1 >= best.f1 - _ROUNDING_COST), best)

    def best(self) -> OperatingPoint | None:
        """Return the threshold with the best F1, in the middle between two scores; of equal ones the highest.

        None if no detection with a score above 0 is right.
        """
        last = np.flatnonzero(np.diff(self.scores, append=-np.inf))  # detections of equal scores count together
        last = last[self.scores[last] > 0]
        if not len(last) or not self.right[last[-1] + 1]:
            return None
        counts = last + 1
        f1 = 2 * self.right[counts] / (counts + self.objects)
        best = int(f1.argmax())
        low = max(0.0, float(self.scores[counts[best]])) if counts[best] < len(self.scores) else 0.0
        threshold = _shortest_between(low, float(self.scores[last[best]]))
        right, count = int(self.right[counts[best]]), int(counts[best])
        return OperatingPoint(threshold, right, count - right, self.objects)


@dataclass(frozen=True)
class ScoreCurves:
    """Matched and unmatched detections of an evaluation: what precision, recall and F1 at any score follow from.

    A detection is right if COCO's evaluation matches it with an object of its class at IoU 0.5. Those in crowd regions
    are neither right nor wrong and are left out, as are those beyond the largest number of detections per image.

    Attributes:
        names: of the K classes.
        objects: (K,) number of annotated objects, crowd left out.
        category: (N,) position of each detection's class in `names`.
        scores: (N,) of the detections.
        matched: (N,) bool: true positives.
    """

    names: tuple[str, ...]
    objects: np.ndarray
    category: np.ndarray
    scores: np.ndarray
    matched: np.ndarray

    @classmethod
    def of(
        cls,
        evaluation: hotcoco.COCOeval,
        names: tuple[str, ...],
        objects: np.ndarray,
        category: np.ndarray,
        scores: np.ndarray,
    ) -> ScoreCurves:
        """Take the matches of an evaluation.

        Args:
            evaluation: after `evaluate()`; ids of its detections are 1 .. N.
            names: of the K classes.
            objects: (K,) number of annotated objects, crowd left out.
            category: (N,) of all detections.
            scores: (N,) of all detections.
        """
        # 1.7 s for 500,000 detections of 5,000 images; `eval_imgs`, which has the same, 22 s
        status: Mapping[int, str] = evaluation.image_diagnostics(iou_thr=IOU)["dt_status"]
        matched = np.zeros(len(scores) + 1, bool)
        counted = np.zeros(len(scores) + 1, bool)
        ids = np.fromiter(status, np.int64, len(status))
        counted[ids] = True
        matched[ids[[value == "tp" for value in status.values()]]] = True
        keep = counted[1:]
        return cls(names, objects, category[keep], scores[keep], matched[1:][keep])

    @cached_property
    def _order(self) -> np.ndarray:
        """Detections by descending score, as indices."""
        return np.argsort(-self.scores, kind="stable")

    def _ranked(self, label: int | None) -> _Ranked:
        order = self._order if label is None else self._order[self.category[self._order] == label]
        right = np.concatenate([[0], np.cumsum(self.matched[order])])
        return _Ranked(self.scores[order], right, int(self.objects.sum() if label is None else self.objects[label]))

    def best(self, label: int | None = None) -> OperatingPoint | None:
        """Return the score threshold with the best F1 of a class, or of all (None); None without a right detection."""
        ranked = self._ranked(label)
        return ranked.best() if ranked.objects else None

    def at(self, threshold: float | ScoreThresholds, label: int | None = None) -> OperatingPoint:
        """Count the detections of a class, or of all (None), above a threshold, or above that of their class."""
        limits = np.array(
            [threshold.of(name) if isinstance(threshold, ScoreThresholds) else threshold for name in self.names]
        )
        kept = self.scores > limits[self.category]
        if label is not None:
            kept &= self.category == label
        right = int(self.matched[kept].sum())
        general = threshold.general if isinstance(threshold, ScoreThresholds) else threshold
        value = general if label is None else float(limits[label])
        objects = int(self.objects.sum() if label is None else self.objects[label])
        return OperatingPoint(value, right, int(kept.sum()) - right, objects)

    def curve(self, thresholds: np.ndarray, label: int | None = None) -> Curve:
        """Compute precision, recall and F1 of a class, or of all (None), at each threshold.

        Args:
            thresholds: (T,) scores.
            label: position in `names`.

        Returns:
            (T,) each; precision is NaN where no detection has such a score, recall where there is no object.
        """
        ranked = self._ranked(label)
        counts = ranked.above(thresholds)
        right = ranked.right[counts]
        with np.errstate(invalid="ignore", divide="ignore"):
            return Curve(right / counts, right / ranked.objects, 2 * right / (counts + ranked.objects))

    def suggest(self, *, min_objects: int = MIN_OBJECTS) -> ScoreThresholds | None:
        """Return the thresholds with the best F1, of all classes together and of each class.

        They are rounded to two or three decimals where that costs at most 0.002 of F1.

        A class with fewer than `min_objects` objects, or without a useful threshold (F1 below 0.05), has none of its
        own. There are no thresholds at all if the best F1 of all classes is below 0.05.
        """
        general = self._ranked(None).suggested()
        if general is None or general.f1 < MIN_F1:
            return None
        own = {k: self._ranked(k).suggested() for k in np.flatnonzero(self.objects >= min_objects).tolist()}
        classes = {self.names[k]: one.threshold for k, one in own.items() if one is not None and one.f1 >= MIN_F1}
        return ScoreThresholds(general.threshold, general.f1, classes)

    def points(self, thresholds: ScoreThresholds) -> dict[str, OperatingPoint]:
        """Return what each class with objects has at its threshold, most objects first."""
        order = np.argsort(-self.objects, kind="stable")
        return {self.names[k]: self.at(thresholds, k) for k in order.tolist() if self.objects[k]}

    def table(self, thresholds: ScoreThresholds, names: Sequence[str] | None = None) -> str:
        """Format a Markdown table of the thresholds: all classes together at one, at their own, and each class.

        Args:
            thresholds: from `suggest`.
            names: these classes alone; by default all with objects.
        """
        rows = [
            _row("all classes, one threshold", self.at(thresholds.general)),
            _row("all classes, each its own", self.at(thresholds), "-"),
        ]
        for name, point in self.points(thresholds).items():
            if names is None or name in names:
                mark = "" if name in thresholds.classes else " (that of all)"
                rows.append(_row(name + mark, point))
        return markdown_table(["class", "threshold", "objects", "precision", "recall", "F1"], rows)

    def to_json(self, thresholds: ScoreThresholds) -> dict[str, Any]:
        """Return the thresholds with what they give, as plain JSON values."""

        def plain(point: OperatingPoint) -> dict[str, Any]:
            values = {"precision": point.precision, "recall": point.recall, "f1": point.f1}
            return {"objects": point.objects, **{name: round(value, 6) for name, value in values.items()}}

        return {
            "iou": IOU,
            "general": {"threshold": thresholds.general, **plain(self.at(thresholds.general))},
            "each_its_own": plain(self.at(thresholds)),
            "classes": {
                name: {"threshold": point.threshold, "own": name in thresholds.classes, **plain(point)}
                for name, point in self.points(thresholds).items()
            },
        }


def _row(name: str, point: OperatingPoint, threshold: str | None = None) -> list[str]:
    numbers = [percent(value) for value in (point.precision, point.recall, point.f1)]
    return [name, f"{point.threshold:g}" if threshold is None else threshold, str(point.objects), *numbers]


def _shortest_between(low: float, high: float) -> float:
    """Return the number with the fewest decimals from `low` on and below `high`, near their middle."""
    middle = (low + high) / 2
    for digits in range(2, 7):
        value = round(middle, digits)
        if low <= value < high:
            return value
    return low
