"""Precision-recall curves, per class and averaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PrecisionRecall:
    """COCO's interpolated precision at 101 recalls, for all areas, at the largest number of detections.

    Attributes:
        names: of the K classes.
        recall: (R,) 0, 0.01, ..., 1.
        iou_thresholds: (T,) 0.5, 0.55, ..., 0.95.
        precision: (T, R, K) in [0, 1], -1 for a class without objects.
        scores: (T, R, K) score at which each recall is reached; 0 where it is not reached, -1 without objects.
    """

    names: tuple[str, ...]
    recall: np.ndarray
    iou_thresholds: np.ndarray
    precision: np.ndarray
    scores: np.ndarray

    def per_class(self, iou: float | None = None) -> np.ndarray:
        """Return the (R, K) precision at one IoU threshold (0.5, 0.55, ..., 0.95), or the mean over all for None.

        Raises:
            ValueError: COCO does not evaluate this threshold.
        """
        if iou is None:
            return self.precision.mean(0)
        index = np.flatnonzero(np.isclose(self.iou_thresholds, iou))
        if not len(index):
            raise ValueError(f"no precision at IoU {iou}; COCO evaluates 0.5, 0.55, ..., 0.95")
        return self.precision[index[0]]

    def mean(self, iou: float | None = None) -> np.ndarray:
        """Return the (R,) precision averaged over the classes that have objects; all -1 if none has."""
        per_class = self.per_class(iou)
        present = per_class[0] > -1
        return per_class[:, present].mean(1) if present.any() else np.full(len(self.recall), -1.0)
