"""`DetectionEvaluator`: collects detections image by image, in one process or several, and computes COCO metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from detrkit.evaluation.coco import evaluate_detections
from detrkit.evaluation.confusion import Confusion, confusion_matrix
from detrkit.evaluation.diagnosis import reason_for_zero
from detrkit.evaluation.ground_truth import ClassNames, DetectionGroundTruth
from detrkit.evaluation.metrics import Metrics
from detrkit.evaluation.result_table import IouType, OnUnknown, ResultTable
from detrkit.structures.detections import Detections
from detrkit.structures.rle import encode_masks
from detrkit.utils.atomic import write_atomic
from detrkit.utils.errors import DetrkitError


class ImageResults(NamedTuple):
    """The detections of one image: small arrays that pickle fast between processes.

    Attributes:
        category: (N,) int64 position in the ground truth's categories.
        boxes: (N, 4) float64 xywh pixels.
        scores: (N,) float64.
        segmentations: N RLEs, or None.
    """

    category: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    segmentations: list[dict[str, Any]] | None = None


class DetectionEvaluator:
    """Collection of detections that is evaluated against one ground truth.

    Each image counts once, however often it is added: samplers repeat images to give every process the same number.

    In several processes, each adds its own images, then one merges the others' `state()`:

        evaluator.add(detections)
        for state in all_gather(evaluator.state()):
            evaluator.merge(state)
        metrics = evaluator.compute()

    Args:
        ground_truth: COCO instances file, its content, or a `DetectionGroundTruth`; read once.
        max_dets: see `evaluate_detections`.
        iou_type: "bbox", or "segm" for detections with masks; their boxes can be evaluated, too: see `compute`.
        class_names: other names than the file's, see `DetectionGroundTruth.renamed`.
        unknown_categories: what to do with detections of a category that the ground truth does not have: an "error",
            or "ignore" them. The unused ids of the published models (`ClassList.unused`) are always left out.
    """

    def __init__(
        self,
        ground_truth: DetectionGroundTruth | str | Path | Mapping[str, Any],
        *,
        max_dets: int | Sequence[int] = 100,
        iou_type: IouType = "bbox",
        class_names: ClassNames | None = None,
        unknown_categories: OnUnknown = "error",
    ) -> None:
        self.ground_truth = DetectionGroundTruth.load(ground_truth).renamed(class_names)
        self.max_dets = max_dets
        self.iou_type: IouType = iou_type
        self.unknown_categories: OnUnknown = unknown_categories
        self._images: dict[int | str, ImageResults] = {}

    def __len__(self) -> int:
        """Return the number of images that have been added."""
        return len(self._images)

    def add(self, detections: Detections | Iterable[Detections]) -> None:
        """Add the detections of one or more images; images added before stay unchanged.

        Args:
            detections: boxes in xyxy pixels of the original image, with `image_id`; `classes` maps labels to the
                dataset's category ids; without it, labels are category ids.

        Raises:
            DetrkitError: no or an unknown image id, an unknown category, NaN; the message names the image.
        """
        for one in [detections] if isinstance(detections, Detections) else detections:
            if one.image_id not in self.ground_truth.image_position:
                raise DetrkitError(
                    f"{self.ground_truth.source}: no image {one.image_id!r}; set Detections.image_id to the dataset's "
                    "id"
                )
            if one.image_id not in self._images:
                self._images[one.image_id] = self._image_results(one)

    def _image_results(self, detections: Detections) -> ImageResults:
        """Convert the detections of one image to columns, and check them."""
        where = f"detections of image {detections.image_id!r}"
        labels = detections.labels.cpu().numpy()
        if detections.classes is None:
            ids: list[int] = labels.tolist()
            unused = [False] * len(ids)
        else:
            ids = [detections.classes.ids[label] for label in labels]
            unused = [detections.classes.is_unused(label) for label in labels.tolist()]
        position = self.ground_truth.category_position
        category = np.array([position.get(i, -1) for i in ids], np.int64)
        keep = category >= 0
        for i in np.flatnonzero(~keep):
            if not unused[i] and self.unknown_categories == "error":
                raise DetrkitError(
                    f"{where}: category id {ids[i]} is not in {self.ground_truth.source}; check that the model's "
                    'classes are the dataset\'s, or pass unknown_categories="ignore"'
                )
        boxes = detections.boxes.detach().cpu().double().numpy().reshape(-1, 4)
        boxes = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
        scores = detections.scores.detach().cpu().double().numpy()
        bad = np.flatnonzero(~(np.isfinite(boxes).all(1) & np.isfinite(scores)))
        if len(bad):
            raise DetrkitError(f"{where}: detection {bad[0]} has NaN or infinity; the model's outputs are not finite")
        if (boxes[:, 2:] < 0).any():
            raise DetrkitError(f"{where}: a box has a negative size; give xyxy pixels with x0 <= x1 and y0 <= y1")
        segmentations = None
        if self.iou_type == "segm":
            if detections.masks is None:
                raise DetrkitError(f"{where}: no masks: evaluate the boxes (iou_type='bbox')")
            segmentations = encode_masks(detections.masks.cpu()[torch.from_numpy(keep)])
        return ImageResults(category[keep], boxes[keep], scores[keep], segmentations)

    def state(self) -> dict[int | str, ImageResults]:
        """Return the collected results by image id: picklable, for `merge` in another process."""
        return dict(self._images)

    def merge(
        self, other: DetectionEvaluator | Mapping[int | str, ImageResults] | Sequence[Mapping[str, Any]]
    ) -> DetectionEvaluator:
        """Add the images that this evaluator does not have yet, and return it.

        Args:
            other: an evaluator of the same ground truth, its `state()`, or COCO result entries.

        Raises:
            DetrkitError: an unknown image, or a malformed entry.
        """
        if isinstance(other, DetectionEvaluator):
            other = other.state()
        if not isinstance(other, Mapping):
            other = self._split(other)
        for image_id, results in other.items():
            if image_id not in self.ground_truth.image_position:
                raise DetrkitError(
                    f"{self.ground_truth.source}: no image {image_id!r}; merge results of the same dataset"
                )
            self._images.setdefault(image_id, results)
        return self

    def _split(self, entries: Sequence[Mapping[str, Any]]) -> dict[int | str, ImageResults]:
        """Group COCO result entries by image."""
        table = ResultTable.load(
            entries, self.ground_truth, iou_type=self.iou_type, unknown_categories=self.unknown_categories
        )
        by_image: dict[int | str, ImageResults] = {}
        order = np.argsort(table.image, kind="stable")
        positions, starts = np.unique(table.image[order], return_index=True)
        for position, rows in zip(positions, np.split(order, starts[1:]), strict=False):
            segments = None if table.segmentations is None else [table.segmentations[i] for i in rows]
            by_image[self.ground_truth.image_ids[position]] = ImageResults(
                table.category[rows], table.boxes[rows], table.scores[rows], segments
            )
        return by_image

    def table(self) -> ResultTable:
        """Return all results as columns, ordered by image id, whatever the order in which images were added."""
        present = [(i, self._images[k]) for i, k in enumerate(self.ground_truth.image_ids) if k in self._images]
        if not present:
            empty = np.zeros(0, np.int64)
            return ResultTable(empty, empty, np.zeros((0, 4)), np.zeros(0), [] if self.iou_type == "segm" else None)
        return ResultTable(
            image=np.repeat([i for i, _ in present], [len(r.scores) for _, r in present]),
            category=np.concatenate([r.category for _, r in present]),
            boxes=np.concatenate([r.boxes for _, r in present]),
            scores=np.concatenate([r.scores for _, r in present]),
            segmentations=[s for _, r in present for s in r.segmentations or []] if self.iou_type == "segm" else None,
        )

    def results(self) -> list[dict[str, Any]]:
        """Return COCO result entries in the order of image ids: image_id, category_id, bbox (xywh pixels), score."""
        table = self.table()
        rows: list[dict[str, Any]] = [
            {
                "image_id": self.ground_truth.image_ids[image],
                "category_id": self.ground_truth.category_ids[category],
                "bbox": box,
                "score": score,
            }
            for image, category, box, score in zip(
                table.image.tolist(), table.category.tolist(), table.boxes.tolist(), table.scores.tolist(), strict=True
            )
        ]
        for row, segmentation in zip(rows, table.segmentations or [], strict=False):
            row["segmentation"] = segmentation
        return rows

    def save(self, path: str | Path) -> Path:
        """Write the COCO results file atomically, and return its path."""
        return write_atomic(path, json.dumps(self.results()))

    def compute(self, *, only_added: bool = False, iou_type: IouType | None = None, scores: bool = False) -> Metrics:
        """Compute the COCO metrics over all images of the ground truth, or only over those that were added.

        Args:
            only_added: leave the other images out.
            iou_type: by default the evaluator's; an evaluator of masks can evaluate the boxes, too.
            scores: also keep precision, recall and F1 over the score.

        Raises:
            DetrkitError: there is no image to evaluate, or there are no masks.
        """
        return evaluate_detections(
            self.ground_truth,
            self.table(),
            max_dets=self.max_dets,
            iou_type=iou_type or self.iou_type,
            image_ids=list(self._images) if only_added else None,
            scores=scores,
        )

    def confusion(self, *, iou: float = 0.5, score: float = 0.5) -> Confusion:
        """Compute the confusion matrix over the images that were added; see `confusion_matrix`."""
        return confusion_matrix(self.ground_truth, self.table(), iou=iou, score=score, image_ids=list(self._images))

    def reason_for_zero(self, metrics: Metrics) -> str | None:
        """Return a sentence on why AP is 0, as far as the detections show it; None if it is not 0."""
        return reason_for_zero(self.ground_truth, self.table(), metrics.AP)
