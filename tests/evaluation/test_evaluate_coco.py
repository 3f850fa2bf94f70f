"""The adapter's numbers against pycocotools, and what bad files are answered with."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage

from detrkit.evaluation import DetectionEvaluator, evaluate_detections
from detrkit.evaluation.metrics import NAMES, PER_CLASS
from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections
from detrkit.utils.errors import DetrkitError
from helpers.coco_sets import random_set
from helpers.oracle import per_class, run_pycocotools, twelve

DATA = Path(os.environ.get("DETRKIT_DATA", ""))
needs_data = pytest.mark.skipif("DETRKIT_DATA" not in os.environ, reason="set DETRKIT_DATA to the folder of real data")


def compare(truth, results, *, max_dets=(1, 10, 100), kind="bbox"):
    metrics = evaluate_detections(truth, results, max_dets=max_dets, iou_type=kind)
    expected = run_pycocotools(truth, results, max_dets=max_dets, kind=kind)
    np.testing.assert_allclose(metrics.stats, twelve(expected), atol=1e-6, rtol=0)
    name = {c["id"]: c["name"] for c in truth["categories"]}
    for category, numbers in per_class(expected).items():
        row = metrics.per_class[name[category]]
        np.testing.assert_allclose([row[k] for k in PER_CLASS], numbers, atol=1e-6, rtol=0)
    return metrics, expected


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(seed, ties):
    truth, results = random_set(seed, ties=ties)
    metrics, _ = compare(truth, results)
    assert 0.05 < metrics.AP < 0.95  # a set on which a wrong rule shows


@pytest.mark.parametrize("max_dets", [(1, 10, 300), (1, 10, 20), (2, 7, 50), (1, 10, 100)])
def test_equals_pycocotools_with_more_detections_than_count(max_dets):
    truth, results = random_set(11, images=9, crowded=150)
    compare(truth, results, max_dets=max_dets)


def test_max_dets_changes_AP():
    truth, results = random_set(11, images=9, crowded=150)
    few, many = (evaluate_detections(truth, results, max_dets=n).AP for n in (5, 300))
    assert few < many


def test_one_number_is_the_last_of_three():
    truth, results = random_set(3)
    assert evaluate_detections(truth, results, max_dets=40).max_dets == (1, 10, 40)
    assert evaluate_detections(truth, results, max_dets=5).max_dets == (1, 5, 5)
    compare(truth, results, max_dets=(1, 5, 5))


def test_precision_recall_equal_pycocotools():
    truth, results = random_set(4)
    metrics, expected = compare(truth, results)
    precision = expected.eval["precision"][:, :, :, 0, 2]
    np.testing.assert_allclose(metrics.curves.precision, precision, atol=1e-12)
    np.testing.assert_allclose(metrics.curves.scores, expected.eval["scores"][:, :, :, 0, 2], atol=1e-12)
    np.testing.assert_allclose(metrics.curves.per_class(0.5), precision[0], atol=1e-12)
    np.testing.assert_allclose(metrics.curves.per_class(0.75), precision[5], atol=1e-12)
    assert metrics.curves.mean().mean() == pytest.approx(metrics.AP)
    assert metrics.curves.mean(0.5).mean() == pytest.approx(metrics.AP50)
    with pytest.raises(ValueError, match="no precision at IoU"):
        metrics.curves.per_class(0.52)


@needs_data
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_published_fake_results(kind):
    folder = DATA / "cocoeval_val2014"
    expected = json.loads((folder / "expected_stats.json").read_text())[kind]
    truth = folder / "instances_val2014_100.json"
    metrics = evaluate_detections(truth, folder / f"instances_val2014_fake{kind}100_results.json", iou_type=kind)
    np.testing.assert_allclose(metrics.stats, expected, atol=1e-6, rtol=0)


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("seed", [0, 1])
def test_perturbed_boxes_of_coco(seed):
    truth = json.loads((DATA / "coco_mini/annotations/instances_val2017.json").read_text())
    rng = np.random.default_rng(seed)
    results = []
    for a in truth["annotations"]:
        box = np.array(a["bbox"]) + rng.normal(0, 0.07, 4) * np.tile(a["bbox"][2:], 2)
        box[2:] = np.maximum(box[2:], 0)
        results.append(
            {k: a[k] for k in ("image_id", "category_id")} | {"bbox": box.tolist(), "score": float(rng.random())}
        )
    metrics, _ = compare(truth, results)
    assert metrics.images == 108
    assert metrics.objects == 868
    assert metrics.per_class["hot dog"]["objects"] == 0
    assert metrics.per_class["hot dog"]["AP"] == -1


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("seed", range(3))
def test_perturbed_masks_of_coco(seed):
    """Eroded, grown, shifted and cut masks, some of another class, and invented ones over the crowd regions."""
    truth = json.loads((DATA / "coco_mini/annotations/instances_val2017.json").read_text())
    images = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        images.dataset = truth
        images.createIndex()
    rng = np.random.default_rng(seed)
    found: dict[int, list] = {i["id"]: [] for i in truth["images"]}
    for a in truth["annotations"]:
        mask = images.annToMask(a).astype(bool)
        copies = int(rng.integers(1, 4)) if a["iscrowd"] else int(rng.random() > 0.1)
        for _ in range(copies):
            other = np.roll(mask, rng.integers(-3, 4, 2), axis=(0, 1))
            change = ndimage.binary_erosion if rng.random() < 0.6 else ndimage.binary_dilation
            other = change(other, iterations=int(rng.integers(1, 4)))
            if a["iscrowd"] or rng.random() < 0.2:
                other &= np.arange(mask.shape[1]) < rng.integers(1, mask.shape[1])
            category = (
                a["category_id"] if rng.random() < 0.9 else int(rng.choice([c["id"] for c in truth["categories"]]))
            )
            if other.any():
                found[a["image_id"]].append((other, category, float(rng.random())))
    classes = ClassList.contiguous({c["id"]: c["name"] for c in truth["categories"]})
    evaluator = DetectionEvaluator(truth, iou_type="segm")
    for image_id, objects in found.items():
        size = next((i["height"], i["width"]) for i in truth["images"] if i["id"] == image_id)
        masks = torch.from_numpy(np.array([o[0] for o in objects]).reshape(-1, *size))
        scores = torch.tensor([o[2] for o in objects], dtype=torch.float64)
        labels = torch.tensor([classes.label_of[o[1]] for o in objects], dtype=torch.int64)
        evaluator.add(Detections(torch.zeros(len(objects), 4), scores, labels, masks, classes, image_id))
    entries = [{k: v for k, v in entry.items() if k != "bbox"} for entry in evaluator.results()]
    metrics, _ = compare(truth, entries, kind="segm")
    assert evaluator.compute().stats == metrics.stats
    assert 0.1 < metrics.AP < 0.8
    assert metrics.objects == 868
    # through a file, with the boxes around the masks beside
    boxes = evaluate_detections(truth, [e | {"bbox": coco_mask.toBbox(e["segmentation"]).tolist()} for e in entries])
    merged = DetectionEvaluator(truth, iou_type="segm").merge(entries)
    assert merged.compute(iou_type="bbox").stats == boxes.stats


def test_nothing_found_is_zero_where_there_are_objects():
    truth, _ = random_set(5)
    metrics = evaluate_detections(truth, [])
    assert metrics.AP == 0
    assert metrics.per_class[truth["categories"][-1]["name"]]["AP"] == -1  # the class without objects


def test_no_objects_is_undefined():
    truth, results = random_set(5)
    metrics = evaluate_detections(truth | {"annotations": []}, results)
    assert metrics.stats == (-1.0,) * 12


def test_perfect_detections():
    truth, _ = random_set(6)
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in truth["annotations"]
    ]
    assert abs(evaluate_detections(truth, results).AP - 1) < 1e-6


def test_annotation_id_zero_counts():
    """pycocotools takes the id 0 for "no match" and calls the detection of that object false."""
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 0, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "iscrowd": 0, "area": 100}],
    }
    result = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5}]
    assert abs(evaluate_detections(truth, result).AP - 1) < 1e-6


def test_text_ids_and_absent_optional_fields():
    truth, results = random_set(7)
    expected = evaluate_detections(truth, results)
    ids = {i["id"]: f"img {i['id']:06d}" for i in truth["images"]}
    renamed = copy.deepcopy(truth)
    for entry in renamed["images"]:
        entry["id"] = ids[entry["id"]]
    for a in renamed["annotations"]:
        a["image_id"] = ids[a["image_id"]]
        del a["id"]
    metrics = evaluate_detections(renamed, [r | {"image_id": ids[r["image_id"]]} for r in results])
    assert metrics.stats == expected.stats
    for a in truth["annotations"]:
        a["area"] = a["bbox"][2] * a["bbox"][3]
    boxes = evaluate_detections(truth, results)
    for a in truth["annotations"]:
        del a["area"]
    assert evaluate_detections(truth, results).stats == boxes.stats != expected.stats


def test_some_images_alone():
    truth, results = random_set(8)
    chosen = {i["id"] for i in truth["images"][:7]}
    part = {
        **truth,
        "images": truth["images"][:7],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in chosen],
    }
    expected = twelve(run_pycocotools(part, [r for r in results if r["image_id"] in chosen]))
    np.testing.assert_allclose(evaluate_detections(truth, results, image_ids=chosen).stats, expected, atol=1e-6)


def test_files_and_content_are_the_same(tmp_path):
    truth, results = random_set(9)
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    from_files = evaluate_detections(tmp_path / "gt.json", str(tmp_path / "results.json"))
    assert from_files == evaluate_detections(truth, results)


def test_input_is_left_as_it_was():
    truth, results = random_set(9)
    before = copy.deepcopy((truth, results))
    evaluate_detections(truth, results)
    assert (truth, results) == before


def test_nothing_is_printed(capfd):
    truth, results = random_set(9)
    evaluate_detections(truth, results, max_dets=300)
    assert capfd.readouterr() == ("", "")


def test_metrics_is_a_mapping():
    truth, results = random_set(9)
    metrics = evaluate_detections(truth, results)
    assert list(metrics) == [*NAMES, "per_class"]
    assert dict(metrics)["APs"] == metrics.APs == metrics["APs"]
    assert metrics.keys() >= {"AP", "AR100"}
    with pytest.raises(KeyError):
        metrics["max_dets"]
    again = json.loads(json.dumps(metrics.to_json()))
    assert [again[n] for n in NAMES] == list(metrics.stats)
    assert again["per_class"] == metrics.per_class


def test_tables():
    truth, results = random_set(9)
    metrics = evaluate_detections(truth, results, max_dets=300)
    heading, _, numbers = metrics.table().splitlines()
    assert "AR300" in heading
    assert "AR100" not in heading
    assert numbers.split("|")[1].strip() == f"{metrics.AP * 100:.1f}"
    rows = metrics.table(per_class=True).splitlines()[2:]
    values = [float(r.split("|")[3]) for r in rows]
    assert len(rows) == 5  # the sixth class has no object
    assert values == sorted(values, reverse=True)


def test_class_names():
    truth, results = random_set(9, categories=3)
    ids = [c["id"] for c in truth["categories"]]
    listed = evaluate_detections(truth, results, class_names=["cat", "dog", "cow"])
    assert list(listed.per_class) == ["cat", "dog", "cow"]
    mapped = evaluate_detections(truth, results, class_names={ids[1]: "dog"})
    assert list(mapped.per_class) == [f"class {ids[0]}", "dog", f"class {ids[2]}"]
    official = ClassList.official(dict(zip(ids, ["cat", "dog", "cow"], strict=True)))
    assert list(evaluate_detections(truth, results, class_names=official).per_class) == ["cat", "dog", "cow"]
    twice = evaluate_detections(truth, results, class_names=["cat", "dog", "cat"])
    assert list(twice.per_class) == [f"cat ({ids[0]})", "dog", f"cat ({ids[2]})"]
    with pytest.raises(DetrkitError, match="3 categories but 2 class names"):
        evaluate_detections(truth, results, class_names=["cat", "dog"])


GOOD = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "score": 0.5}
TRUTH = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 3, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10]}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, r"entry 1: image_id 9 is no image"),
        ({"image_id": "2"}, r"entry 1: image_id '2' is no image .* has it as 2"),
        ({"image_id": [1]}, r"entry 1: image_id \[1\] is no image"),
        ({"category_id": 7}, r"entry 1: category_id 7 is no category"),
        ({"bbox": [1, 2, 3]}, r"entry 1: bbox is \[1, 2, 3\]; write \[x, y, width, height\]"),
        ({"bbox": "here"}, r"entry 1: bbox is 'here'"),
        ({"bbox": None}, r"entry 1: bbox is None"),
        ({"bbox": [1, 2, float("nan"), 3]}, r"entry 1: bbox .* holds NaN"),
        ({"bbox": [50, 50, -10, 3]}, r"entry 1: bbox .* negative size"),
        ({"score": float("nan")}, r"entry 1: score is nan"),
        ({"score": float("inf")}, r"entry 1: score is inf"),
        ({"score": "0.3"}, r"entry 1: score is '0.3'"),
        ({"score": None}, r"entry 1: score is None"),
    ],
)
def test_bad_results_are_named(change, message):
    with pytest.raises(DetrkitError, match=f"results: {message}"):
        evaluate_detections(TRUTH, [GOOD, GOOD | change])


@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_missing_result_fields_are_named(field):
    entry = {k: v for k, v in GOOD.items() if k != field}
    with pytest.raises(DetrkitError, match=f"results: entry 0: field {field} is missing"):
        evaluate_detections(TRUTH, [entry])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "no list 'images'"),
        ({"categories": {}}, "no list 'categories'"),
        ({"images": [{"id": 1}, {"id": 1}]}, "images: id 1 is there twice"),
        ({"images": [{"file_name": "a.jpg"}]}, "images: entry 0 has no id"),
        ({"annotations": [{"image_id": 5, "category_id": 3, "bbox": [0, 0, 1, 1]}]}, "entry 0: image_id 5 is no image"),
        ({"annotations": [{"image_id": 1, "category_id": 3}]}, "annotations: entry 0: bbox is None"),
        (
            {"annotations": [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1], "area": float("nan")}]},
            "annotations: entry 0: area nan is not finite",
        ),
        ({"annotations": ["x"]}, "annotations: entry 0: expected an object"),
        ({"images": [{"id": 1, "height": "tall"}]}, "images: id 1: height 'tall' is no number of pixels"),
        (
            {"annotations": [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 10**400]}]},
            r"annotations: entry 0: bbox is \[0, 0, 1, 1000.*\.\.\.; write",
        ),
        ({"images": [], "annotations": []}, "nothing to evaluate"),
    ],
)
def test_bad_ground_truth_is_named(change, message):
    with pytest.raises(DetrkitError, match=message):
        evaluate_detections(TRUTH | change, [])


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(DetrkitError, match=r"results\.json: cannot be read"):
        evaluate_detections(TRUTH, path)
    path.write_text('[{"image_id": 1,')
    with pytest.raises(DetrkitError, match=r"results\.json: malformed JSON in line 1"):
        evaluate_detections(TRUTH, path)
    path.write_text('{"annotations": []}')
    with pytest.raises(DetrkitError, match=r"results\.json: expected a list of results, found dict"):
        evaluate_detections(TRUTH, path)
    path.write_text(json.dumps([GOOD | {"image_id": 77}]))
    with pytest.raises(DetrkitError, match=r"results\.json: entry 0: image_id 77"):
        evaluate_detections(TRUTH, path)


def test_bad_settings_are_named():
    for bad in (0, (1, 10), (10, 1, 100), (1, 10, 100, 300)):
        with pytest.raises(DetrkitError, match="max_dets"):
            evaluate_detections(TRUTH, [], max_dets=bad)
    with pytest.raises(DetrkitError, match="iou_type is 'boxes'"):
        evaluate_detections(TRUTH, [], iou_type="boxes")
    with pytest.raises(DetrkitError, match="without segmentation"):
        evaluate_detections(TRUTH, [], iou_type="segm")
    with pytest.raises(DetrkitError, match="no result has a segmentation"):
        evaluate_detections(TRUTH, [GOOD], iou_type="segm")
    with pytest.raises(DetrkitError, match="no image 5"):
        evaluate_detections(TRUTH, [], image_ids=[5])


def test_unknown_categories_can_be_ignored():
    found = evaluate_detections(TRUTH, [GOOD, GOOD | {"category_id": 7}], unknown_categories="ignore")
    assert found.detections == 1
    assert abs(found.AP - 1) < 1e-6


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [10, 20], "counts": "1234"}, r"entry 0: segmentation has size \[10, 20\], the image \[20, 10\]"),
        ({"size": [20, 10]}, "entry 0: segmentation is neither an RLE"),
        ({"size": [20, 10], "counts": 3}, "entry 0: segmentation is neither an RLE"),
        ({"size": [20, 10], "counts": ["a"]}, "entry 0: segmentation cannot be decoded"),
        ([[1, 2, 3, 4]], "entry 0: segmentation is no list of polygons"),
        ([[1, 2, 3, 4, 5, float("nan")]], "entry 0: segmentation is no list of polygons"),
        ([1, 2, 3, 4, 5, 6], "entry 0: segmentation is no list of polygons"),
        ("all", "entry 0: segmentation is neither an RLE"),
    ],
)
def test_malformed_masks_are_named(segmentation, message):
    truth = copy.deepcopy(TRUTH)
    truth["images"] = [{"id": 1, "height": 20, "width": 10}]
    truth["annotations"][0]["segmentation"] = [[0, 0, 10, 0, 10, 10, 0, 10]]
    with pytest.raises(DetrkitError, match=message):
        evaluate_detections(truth, [GOOD | {"segmentation": segmentation}], iou_type="segm")
    truth["annotations"][0]["segmentation"] = [["a"]]
    with pytest.raises(DetrkitError, match=r"ground truth: .*segmentation"):
        evaluate_detections(truth, [], iou_type="segm")


def test_polygons_of_results_are_drawn_as_pycocotools_draws_them():
    def rle(result):
        return coco_mask.merge(coco_mask.frPyObjects(result["segmentation"], 50, 70))

    rng = np.random.default_rng(7)
    images = [{"id": i, "height": 50, "width": 70} for i in (1, 2)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for k in range(24):
        x, y, w, h = (float(v) for v in rng.uniform([0, 0, 5, 5], [40, 30, 30, 20]))
        polygon = [x, y, x + w, y + 1, x + w - 2, y + h, x + 1, y + h]
        common = {"image_id": 1 + k % 2, "category_id": 1 + k % 3, "bbox": [x, y, w, h]}
        annotations.append({"id": k + 1, "iscrowd": 0, "area": w * h, "segmentation": [polygon], **common})
        moved = [v + float(rng.normal()) for v in polygon]
        parts = [moved] if k % 4 else [moved, [x, y, x + 4, y, x + 4, y + 4.5]]
        results.append({**common, "score": float(rng.random()), "segmentation": parts})
    truth = {"images": images, "annotations": annotations, "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)]}
    measured = evaluate_detections(truth, results, iou_type="segm")
    for result in results:
        del result["bbox"]  # or pycocotools takes the box's area for the mask's
    numbers = twelve(run_pycocotools(truth, [r | {"segmentation": rle(r)} for r in results], kind="segm"))
    assert numbers[0] > 0.1
    assert [measured[name] for name in NAMES] == pytest.approx(numbers, abs=1e-12)


def test_an_empty_segmentation_is_a_mask_without_a_pixel():
    truth = copy.deepcopy(TRUTH)
    truth["images"] = [{"id": 1, "height": 20, "width": 10}]
    truth["annotations"][0] |= {"segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]], "area": 100}
    found = GOOD | {"segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]], "score": 0.5}
    for nothing in ([], None):
        metrics = evaluate_detections(truth, [found, GOOD | {"segmentation": nothing, "score": 0.9}], iou_type="segm")
        assert pytest.approx(0.5, abs=0.01) == metrics.AP  # a better score without a pixel: precision is a half
