"""The confusion matrix against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation import confusion_matrix
from detrkit.utils.errors import DetrkitError
from helpers.coco_sets import random_set

A, B = 1, 2
HERE, THERE = [0, 0, 10, 10], [50, 50, 10, 10]


def matrix(objects, detections, **settings):
    """Objects (category, box, crowd) and detections (category, box, score) of one image -> 3 x 3 counts."""
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": A, "name": "a"}, {"id": B, "name": "b"}],
        "annotations": [{"image_id": 1, "category_id": c, "bbox": b, "iscrowd": crowd} for c, b, crowd in objects],
    }
    results = [{"image_id": 1, "category_id": c, "bbox": b, "score": s} for c, b, s in detections]
    return confusion_matrix(truth, results, **settings).matrix.tolist()


@pytest.mark.parametrize(
    ("objects", "detections", "expected"),
    [
        ([(A, HERE, 0)], [(A, HERE, 0.9)], [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ([(A, HERE, 0)], [(B, HERE, 0.9)], [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),
        ([(A, HERE, 0)], [(B, THERE, 0.9)], [[0, 0, 1], [0, 0, 0], [0, 1, 0]]),
        # the score threshold is exclusive
        ([(A, HERE, 0)], [(A, HERE, 0.5)], [[0, 0, 1], [0, 0, 0], [0, 0, 0]]),
        # the right class takes the object though the wrong one scores higher
        ([(A, HERE, 0)], [(B, HERE, 0.9), (A, HERE, 0.8)], [[1, 0, 0], [0, 0, 0], [0, 1, 0]]),
        # two objects in one place, each found
        ([(A, HERE, 0), (B, HERE, 0)], [(B, HERE, 0.9), (A, HERE, 0.8)], [[1, 0, 0], [0, 1, 0], [0, 0, 0]]),
        # a duplicate is a detection of nothing
        ([(A, HERE, 0)], [(A, HERE, 0.9), (A, HERE, 0.8)], [[1, 0, 0], [0, 0, 0], [1, 0, 0]]),
        # inside a crowd of its class a detection counts nowhere, in one of another class it is false
        ([(A, [0, 0, 100, 100], 1)], [(A, HERE, 0.9), (B, HERE, 0.9)], [[0, 0, 0], [0, 0, 0], [0, 1, 0]]),
        # of two possible objects the one with the greater IoU (1 against 0.8)
        ([(A, [0, 0, 10, 8], 0), (A, HERE, 0)], [(A, HERE, 0.9)], [[1, 0, 1], [0, 0, 0], [0, 0, 0]]),
        ([], [], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_by_hand(objects, detections, expected):
    assert matrix(objects, detections) == expected


def test_iou_threshold():
    shifted = [5, 0, 10, 10]  # IoU with HERE is 50 / 150
    assert matrix([(A, HERE, 0)], [(A, shifted, 0.9)], iou=0.3) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert matrix([(A, HERE, 0)], [(A, shifted, 0.9)], iou=0.4) == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    for bad in ({"iou": 0}, {"score": 2}):
        with pytest.raises(DetrkitError, match="out of range"):
            matrix([], [], **bad)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_counts_add_up(seed):
    truth, results = random_set(seed)
    confusion = confusion_matrix(truth, results, score=0.3)
    ids = [c["id"] for c in truth["categories"]]
    objects = [sum(a["category_id"] == i and not a["iscrowd"] for a in truth["annotations"]) for i in ids]
    assert confusion.matrix[:-1].sum(1).tolist() == objects
    confident = np.array([sum(r["category_id"] == i and r["score"] > 0.3 for r in results) for i in ids])
    in_crowds = confident - confusion.matrix[:, :-1].sum(0)
    assert (in_crowds >= 0).all()
    assert 0 < in_crowds.sum() < confident.sum() / 4
    rows = confusion.normalized().sum(1)
    np.testing.assert_allclose(rows[confusion.matrix.sum(1) > 0], 1)


def test_top_mistakes():
    confusion = confusion_matrix(*random_set(0), score=0.2)
    mistakes = confusion.top(3)
    counts = [n for _, _, n in mistakes]
    assert counts == sorted(counts, reverse=True)
    true, predicted, n = mistakes[0]
    assert true != predicted
    names = confusion.names
    assert confusion.matrix[names.index(true), names.index(predicted)] == n
    assert n == (confusion.matrix[:-1, :-1] * (1 - np.eye(len(names), dtype=int))).max()
