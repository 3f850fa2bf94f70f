"""Gathering detections, in one process or several."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

from detrkit.evaluation import DetectionEvaluator, evaluate_detections
from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections
from detrkit.utils.errors import DetrkitError
from helpers.coco_sets import random_set
from helpers.oracle import run_pycocotools, twelve


def as_detections(truth, results):
    """One Detections per image of the ground truth, in the order of the file."""
    classes = ClassList.contiguous({c["id"]: c["name"] for c in truth["categories"]})
    found = []
    for image in truth["images"]:
        mine = [r for r in results if r["image_id"] == image["id"]]
        boxes = torch.tensor([r["bbox"] for r in mine], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([r["score"] for r in mine], dtype=torch.float64)
        labels = torch.tensor([classes.label_of[r["category_id"]] for r in mine], dtype=torch.int64)
        found.append(Detections(boxes, scores, labels, classes=classes, image_id=image["id"]))
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_pycocotools_over_the_same_entries(seed):
    truth, results = random_set(seed)
    evaluator = DetectionEvaluator(truth)
    evaluator.add(as_detections(truth, results))
    assert len(evaluator) == len(truth["images"])
    metrics = evaluator.compute()
    np.testing.assert_allclose(metrics.stats, twelve(run_pycocotools(truth, evaluator.results())), atol=1e-6)
    assert metrics == evaluate_detections(truth, evaluator.results())
    assert metrics.detections == len(results)


def test_entries_equal_those_of_detections():
    truth, results = random_set(2)
    found = as_detections(truth, results)
    evaluator = DetectionEvaluator(truth)
    evaluator.add(found)
    expected = [entry for d in sorted(found, key=lambda d: d.image_id) for entry in d.to_coco()]
    assert evaluator.results() == expected


def test_processes_with_repeated_images_give_what_one_gives(tmp_path):
    """A distributed sampler repeats images to give each process as many; each must count once."""
    truth, results = random_set(3)
    found = as_detections(truth, results)
    alone = DetectionEvaluator(truth)
    alone.add(found)
    for shares in ([found[0::2], found[1::2] + found[:3]], [found[1::2] + found[:3], found[0::2]]):
        first, second = DetectionEvaluator(truth), DetectionEvaluator(truth)
        first.add(shares[0])
        second.add(shares[1])
        second.add(shares[1][0])
        together = first.merge(pickle.loads(pickle.dumps(second.state())))
        assert together.results() == alone.results()
        assert together.compute() == alone.compute()
    by_entries = DetectionEvaluator(truth).merge(alone.results()).merge(alone)
    assert by_entries.results() == alone.results()


def test_saved_file_is_the_results(tmp_path):
    truth, results = random_set(4)
    evaluator = DetectionEvaluator(truth, max_dets=30)
    evaluator.add(as_detections(truth, results))
    path = evaluator.save(tmp_path / "new" / "results.json")
    assert json.loads(path.read_text()) == evaluator.results()
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    assert evaluate_detections(truth, path, max_dets=30) == evaluator.compute()


def test_only_added_images():
    truth, results = random_set(5)
    found = as_detections(truth, results)[:6]
    evaluator = DetectionEvaluator(truth)
    evaluator.add(found)
    some, everything = evaluator.compute(only_added=True), evaluator.compute()
    assert (some.images, everything.images) == (6, len(truth["images"]))
    assert some.AR100 > everything.AR100  # the objects of the images left out are missed
    chosen = [d.image_id for d in found]
    assert some == evaluate_detections(truth, evaluator.results(), image_ids=chosen)


def test_nothing_added():
    truth, _ = random_set(5)
    evaluator = DetectionEvaluator(truth)
    assert evaluator.results() == []
    assert evaluator.compute().AP == 0


def one(image_id=1, *, ids=(3,), names=("cat",), label=0, box=(0.0, 0.0, 10.0, 10.0), score=0.5, masks=None):
    return Detections(
        torch.tensor([box]),
        torch.tensor([score]),
        torch.tensor([label]),
        masks,
        classes=ClassList(names, ids),
        image_id=image_id,
    )


TRUTH = {
    "images": [{"id": 1, "height": 20, "width": 30}, {"id": 2, "height": 20, "width": 30}],
    "categories": [{"id": 3, "name": "cat"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "bbox": [2, 3, 10, 8],
            "area": 80,
            "iscrowd": 0,
            "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]],
        }
    ],
}


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        (one(7), "no image 7"),
        (one(None), "no image None"),
        (one(ids=(4,)), "detections of image 1: category id 4 is not in ground truth"),
        (one(box=(0.0, float("nan"), 5.0, 5.0)), "image 1: detection 0 has NaN"),
        (one(score=float("nan")), "image 1: detection 0 has NaN"),
        (one(box=(9.0, 0.0, 5.0, 5.0)), "image 1: a box has a negative size"),
    ],
)
def test_bad_detections_are_named(detections, message):
    evaluator = DetectionEvaluator(TRUTH)
    with pytest.raises(DetrkitError, match=message):
        evaluator.add(detections)
    assert len(evaluator) == 0


def test_unused_ids_of_published_models_are_left_out():
    evaluator = DetectionEvaluator(TRUTH)
    evaluator.add(one(ids=(4,), names=("N/A",)))
    assert evaluator.results() == []
    ignoring = DetectionEvaluator(TRUTH, unknown_categories="ignore")
    ignoring.add(one(ids=(4,)))
    assert ignoring.results() == []


def test_labels_are_ids_without_classes():
    evaluator = DetectionEvaluator(TRUTH)
    evaluator.add(Detections(torch.tensor([[2.0, 3, 12, 11]]), torch.tensor([0.5]), torch.tensor([3]), image_id=1))
    assert evaluator.results() == [{"image_id": 1, "category_id": 3, "bbox": [2, 3, 10, 8], "score": 0.5}]


def test_masks():
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[:, 3:11, 2:12] = True
    evaluator = DetectionEvaluator(TRUTH, iou_type="segm")
    evaluator.add(one(masks=masks))
    metrics = evaluator.compute()
    assert abs(metrics.AP - 1) < 1e-6
    assert metrics == evaluate_detections(TRUTH, evaluator.results(), iou_type="segm")
    # pycocotools needs the box gone, else it takes the box's area for small, medium and large
    entries = [{k: v for k, v in r.items() if k != "bbox"} for r in json.loads(json.dumps(evaluator.results()))]
    np.testing.assert_allclose(metrics.stats, twelve(run_pycocotools(TRUTH, entries, kind="segm")), atol=1e-6)
    with pytest.raises(DetrkitError, match="image 2: no masks"):
        evaluator.add(one(2))


def test_boxes_beside_masks():
    """An evaluator of masks knows the boxes: those given, or those around the masks where entries have none."""
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[:, 3:11, 2:12] = True
    evaluator = DetectionEvaluator(TRUTH, iou_type="segm")
    evaluator.add(one(box=(2.0, 3.0, 7.0, 11.0), masks=masks))
    assert abs(evaluator.compute().AP - 1) < 1e-6
    boxes = evaluator.compute(iou_type="bbox")
    assert abs(boxes.AP - 0.1) < 1e-6  # IoU 0.5
    assert boxes.iou_type == "bbox"
    assert boxes == evaluate_detections(TRUTH, evaluator.results())
    merged = DetectionEvaluator(TRUTH, iou_type="segm").merge(evaluator.results())
    assert merged.compute(iou_type="bbox") == boxes
    alone = [{k: v for k, v in entry.items() if k != "bbox"} for entry in evaluator.results()]
    around = DetectionEvaluator(TRUTH, iou_type="segm").merge(alone)
    assert around.results()[0]["bbox"] == [2, 3, 10, 8]
    assert abs(around.compute(iou_type="bbox").AP - 1) < 1e-6
    with pytest.raises(DetrkitError, match="results without segmentation"):
        box_evaluator = DetectionEvaluator(TRUTH)
        box_evaluator.add(one(masks=masks))
        box_evaluator.compute(iou_type="segm")


def test_no_masks_found_is_no_error():
    evaluator = DetectionEvaluator(TRUTH, iou_type="segm")
    none = torch.zeros(0, dtype=torch.int64)
    evaluator.add(Detections(torch.zeros(0, 4), torch.zeros(0), none, torch.zeros(0, 20, 30, dtype=bool), image_id=1))
    assert evaluator.results() == []
    assert evaluator.compute().AP == 0
