"""Why AP is 0: each mistake made on purpose."""

from __future__ import annotations

import re

import numpy as np
import pytest

from detrkit.evaluation import DetectionGroundTruth, evaluate_detections
from detrkit.evaluation.diagnosis import reason_for_zero
from detrkit.evaluation.result_table import ResultTable


def case(change, categories=(1, 2)):
    """Objects of two classes on a grid, and results that `change` makes of (box, category); -> the reason."""
    rng = np.random.default_rng(0)
    objects = []
    for image in range(5):
        for i in range(6):
            box = [100.0 * i + rng.uniform(0, 20), 150 + rng.uniform(0, 20), *rng.uniform(40, 70, 2)]
            objects.append({"image_id": image, "category_id": 1 + i % 2, "bbox": box})
    truth = {
        "images": [{"id": i} for i in range(5)],
        "categories": [{"id": c, "name": "ab"[c - 1]} for c in categories],
        "annotations": objects,
    }
    results = []
    for one in objects:
        made = change(np.array(one["bbox"]), one["category_id"])
        if made is not None:
            results.append(
                {"image_id": one["image_id"], "bbox": made[0].tolist(), "category_id": made[1], "score": 0.4}
            )
    ground_truth = DetectionGroundTruth.load(truth)
    ap = evaluate_detections(ground_truth, results).AP
    return ap, reason_for_zero(ground_truth, ResultTable.load(results, ground_truth), ap)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda box, category: None, "there is no detection at all"),
        (lambda box, category: (box, 3 - category), "classes do not match: 100% of the objects have a"),
        (lambda box, category: (np.hstack([box[:2], box[:2] + box[2:]]), category), "look like corners"),
        (lambda box, category: (np.hstack([box[:2] + box[2:] / 2, box[2:]]), category), "look like centers"),
        (lambda box, category: (box / 640, category), "look normalized"),
        (lambda box, category: (box * 2, category), "twice too large"),
        (lambda box, category: (box / 2, category), "half as large"),
        (lambda box, category: (box + np.array([0, 900, 0, 0]), category), "not where the objects are: 0% "),
    ],
)  # fmt: skip
def test_a_mistake_is_named(change, text):
    ap, reason = case(change)
    assert 0 <= ap < 0.005
    assert reason is not None
    assert reason.startswith("AP is 0 because")
    assert re.search(text, reason)


def test_the_confused_classes_are_named():
    _, reason = case(lambda box, category: (box, 3 - category))
    assert reason is not None and (
        "'a' is mostly detected as 'b'" in reason or "'b' is mostly detected as 'a'" in reason
    )


def test_no_reason_where_ap_is_not_0():
    assert case(lambda box, category: (box, category)) == (pytest.approx(1.0), None)
