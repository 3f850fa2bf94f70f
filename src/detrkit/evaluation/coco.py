"""COCO's average precision and recall, computed by hotcoco (Rust) with pycocotools' rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np

from detrkit.evaluation.curves import PrecisionRecall
from detrkit.evaluation.ground_truth import ClassNames, DetectionGroundTruth
from detrkit.evaluation.metrics import Metrics
from detrkit.evaluation.result_table import IouType, OnUnknown, ResultTable
from detrkit.evaluation.scores import ScoreCurves
from detrkit.utils.errors import DetrkitError

# Positions in the evaluator's arrays: IoU 0.5:0.05:0.95; all, small, medium, large objects.
_IOU50, _IOU75 = 0, 5
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


def evaluate_detections(
    ground_truth: DetectionGroundTruth | str | Path | Mapping[str, Any],
    results: ResultTable | str | Path | Sequence[Mapping[str, Any]],
    *,
    max_dets: int | Sequence[int] = 100,
    iou_type: IouType = "bbox",
    class_names: ClassNames | None = None,
    image_ids: Iterable[int | str] | None = None,
    unknown_categories: OnUnknown = "error",
    scores: bool = False,
) -> Metrics:
    """Compute the COCO metrics of detection results, equal to pycocotools'.

    Args:
        ground_truth: a COCO instances file, its content, or a `DetectionGroundTruth`.
        results: a COCO results file or its entries: image_id, category_id, bbox (xywh pixels), score. An empty list
            means that the model detected nothing.
        max_dets: the largest number of detections per image and class that count, best first: N for (1, 10, N), or
            all three. AP is computed at the last one. (pycocotools' summary knows 100 only and prints -1 for others.)
        iou_type: "bbox", or "segm" for results with segmentation (RLE).
        class_names: other names than the file's, see `DetectionGroundTruth.renamed`.
        image_ids: only these images; by default all of the ground truth's.
        unknown_categories: "ignore" leaves out detections of categories that the ground truth does not have.
        scores: also keep the matches, for precision, recall and F1 at any score (`Metrics.scores`).

    Raises:
        DetrkitError: a malformed file, an unknown image or category, NaN: with the file, the entry and the fix.
    """
    if iou_type not in ("bbox", "segm"):
        raise DetrkitError(f"iou_type is {iou_type!r}; choose bbox or segm")
    limits = _three_limits(max_dets)
    ground_truth = DetectionGroundTruth.load(ground_truth).renamed(class_names)
    table = ResultTable.load(results, ground_truth, iou_type=iou_type, unknown_categories=unknown_categories)
    if image_ids is not None:
        ground_truth, table = restrict(ground_truth, table, image_ids)
    if not ground_truth.image_ids or not ground_truth.category_ids:
        raise DetrkitError(f"{ground_truth.source}: no images or no categories; there is nothing to evaluate")
    return _metrics(ground_truth, table, limits, iou_type, scores=scores)


def _three_limits(max_dets: int | Sequence[int]) -> tuple[int, int, int]:
    """Return (1, 10, N) for N, or the three numbers themselves.

    Raises:
        DetrkitError: not one or three positive whole numbers, or not ascending.
    """
    values = [max_dets] if isinstance(max_dets, (int, np.integer)) else list(max_dets)
    if len(values) == 1:
        values = [min(1, values[0]), min(10, values[0]), values[0]]
    if len(values) != 3 or any(int(v) != v or v < 1 for v in values) or sorted(values) != values:
        raise DetrkitError(f"max_dets is {max_dets}; give one number from 1 on, or three ascending ones")
    return int(values[0]), int(values[1]), int(values[2])


def restrict(
    ground_truth: DetectionGroundTruth, table: ResultTable, image_ids: Iterable[int | str]
) -> tuple[DetectionGroundTruth, ResultTable]:
    """Restrict ground truth and results to some of the images."""
    part = ground_truth.only(image_ids)
    new_position = np.array([part.image_position.get(i, -1) for i in ground_truth.image_ids], np.int64)
    image = new_position[table.image]
    keep = image >= 0
    segments = table.segmentations
    segmentations = None if segments is None else [segments[i] for i in np.flatnonzero(keep)]
    return part, ResultTable(image[keep], table.category[keep], table.boxes[keep], table.scores[keep], segmentations)


def _mean(values: np.ndarray) -> float:
    """Return the mean of the defined values (> -1), or -1 if there is none: COCO's rule."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _metrics(
    ground_truth: DetectionGroundTruth,
    table: ResultTable,
    max_dets: tuple[int, int, int],
    iou_type: IouType,
    *,
    scores: bool,
) -> Metrics:
    """Run hotcoco without its summary, so that nothing is printed and AP is taken at the last of max_dets."""
    segmentation = iou_type == "segm"
    gt = ground_truth.to_hotcoco(segmentation=segmentation)
    evaluation = hotcoco.COCOeval(gt, table.to_hotcoco(gt, segmentation=segmentation), iou_type)
    params = evaluation.params
    params.max_dets = list(max_dets)
    evaluation.params = params
    evaluation.evaluate()
    evaluation.accumulate()
    arrays = evaluation.eval
    assert arrays is not None  # accumulate() has run
    precision, recall = arrays["precision"], arrays["recall"]  # (T, R, K, A, M), (T, K, A, M)

    def ap(k: slice | int, *, iou: slice | int = slice(None), area: int = _ALL) -> float:
        return _mean(precision[iou, :, k, area, -1])

    def ar(k: slice | int, *, area: int = _ALL, dets: int = -1) -> float:
        return _mean(recall[:, k, area, dets])

    def aps(k: slice | int) -> dict[str, float]:
        """Return AP, AP50 and AP75, and the AP of small, medium and large objects, of class k or of all."""
        return {
            "AP": ap(k),
            "AP50": ap(k, iou=_IOU50),
            "AP75": ap(k, iou=_IOU75),
            "APs": ap(k, area=_SMALL),
            "APm": ap(k, area=_MEDIUM),
            "APl": ap(k, area=_LARGE),
        }

    every = slice(None)
    objects = np.bincount(ground_truth.category[~ground_truth.crowd], minlength=len(ground_truth.names))
    overall = aps(every)
    return Metrics(
        AP=overall["AP"],
        AP50=overall["AP50"],
        AP75=overall["AP75"],
        APs=overall["APs"],
        APm=overall["APm"],
        APl=overall["APl"],
        AR1=ar(every, dets=0),
        AR10=ar(every, dets=1),
        AR100=ar(every),
        ARs=ar(every, area=_SMALL),
        ARm=ar(every, area=_MEDIUM),
        ARl=ar(every, area=_LARGE),
        per_class={n: {**aps(k), "AR": ar(k), "objects": int(objects[k])} for k, n in enumerate(ground_truth.names)},
        max_dets=max_dets,
        iou_type=iou_type,
        images=len(ground_truth.image_ids),
        objects=int(objects.sum()),
        detections=len(table),
        curves=_curves(ground_truth.names, params, arrays),
        scores=ScoreCurves.of(evaluation, ground_truth.names, objects, table.category, table.scores)
        if scores
        else None,
    )


def _curves(names: tuple[str, ...], params: hotcoco.Params, arrays: Mapping[str, np.ndarray]) -> PrecisionRecall:
    """Copy the curves of all areas at the largest number of detections from the evaluator's arrays."""
    return PrecisionRecall(
        names=names,
        recall=np.array(params.rec_thrs),
        iou_thresholds=np.array(params.iou_thrs),
        precision=arrays["precision"][:, :, :, _ALL, -1].copy(),
        scores=arrays["scores"][:, :, :, _ALL, -1].copy(),
    )
