"""pycocotools, in silence, with AP at the last of `max_dets` instead of always at 100."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def run_pycocotools(
    truth: dict[str, Any],
    results: list[dict[str, Any]],
    *,
    max_dets: tuple[int, int, int] = (1, 10, 100),
    kind: str = "bbox",
) -> COCOeval:
    """The evaluation after accumulate()."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth) | {"info": {}}
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(copy.deepcopy(results)), kind)
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def mean(values: np.ndarray) -> float:
    """Over the defined entries, -1 without any."""
    return float(values[values > -1].mean()) if (values > -1).any() else -1.0


def twelve(evaluation: COCOeval) -> list[float]:
    """The 12 numbers at the evaluation's own max_dets."""
    p, r = evaluation.eval["precision"], evaluation.eval["recall"]
    return [
        *(mean(p[:, :, :, 0, 2]), mean(p[0, :, :, 0, 2]), mean(p[5, :, :, 0, 2])),
        *(mean(p[:, :, :, a, 2]) for a in (1, 2, 3)),
        *(mean(r[:, :, 0, m]) for m in (0, 1, 2)),
        *(mean(r[:, :, a, 2]) for a in (1, 2, 3)),
    ]


def per_class(evaluation: COCOeval) -> dict[int, list[float]]:
    """Category id -> AP, AP50, AP75, APs, APm, APl, AR."""
    p, r = evaluation.eval["precision"], evaluation.eval["recall"]
    return {
        category: [
            *(mean(p[:, :, k, 0, 2]), mean(p[0, :, k, 0, 2]), mean(p[5, :, k, 0, 2])),
            *(mean(p[:, :, k, a, 2]) for a in (1, 2, 3)),
            mean(r[:, k, 0, 2]),
        ]
        for k, category in enumerate(evaluation.params.catIds)
    }
