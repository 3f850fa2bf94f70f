"""`detrkit eval` of results from elsewhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from detrkit.cli import main
from detrkit.cli.results import results_file

CATEGORIES = [{"id": 3, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A COCO panoptic dataset of two images, and results: the first perfect, in the second the cat is called sky."""
    monkeypatch.chdir(tmp_path)
    for name in ("set/annotations", "set/val2017", "set/panoptic_val2017", "found"):
        (tmp_path / name).mkdir(parents=True)
    ids = np.ones((24, 32), np.int32)
    ids[8:20, 10:22] = 700
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    images, annotations, found = [], [], []
    for image_id in (1, 2):
        Image.new("RGB", (32, 24), (40, 90, 160)).save(f"set/val2017/{image_id}.jpg")
        for place in ("set/panoptic_val2017", "found"):
            Image.fromarray(rgb).save(f"{place}/{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": 24, "width": 32})
        info = [
            {"id": 1, "category_id": 9, "bbox": [0, 0, 32, 24], "area": 624, "iscrowd": 0},
            {"id": 700, "category_id": 3, "bbox": [10, 8, 12, 12], "area": 144, "iscrowd": 0},
        ]
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": info})
        cat = 3 if image_id == 1 else 9
        changed = [{"id": 1, "category_id": 9}, {"id": 700, "category_id": cat}]
        found.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": changed})
    truth = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "set/annotations/panoptic_val2017.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps({"annotations": found}))
    return tmp_path


@pytest.mark.parametrize("content", [{"a": [1]}, {"annotations": [{"bbox": [0, 0, 1, 1]}]}, "text", 3])
def test_a_json_of_another_kind(folder, capsys, content):
    (folder / "other.json").write_text(json.dumps(content))
    assert main(["eval", "other.json", "set"]) == 2
    assert "other.json: no results: expected COCO's list of detections, or panoptic" in capsys.readouterr().err


@pytest.mark.parametrize("results", ["found.json", "found"])
@pytest.mark.parametrize("data", ["set", "set/annotations/panoptic_val2017.json"])
def test_panoptic_results(folder, capsys, results, data):
    assert main(["eval", results, data]) == 0
    out = capsys.readouterr().out
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    # sky: 2 found and 1 invented; cat: 1 found and 1 missed
    assert ["all", "73.3", "100.0", "73.3", "2"] in rows
    assert ["cat", "thing", "66.7", "100.0", "66.7", "2", "1", "0", "1"] in rows
    assert ["sky", "stuff", "80.0", "100.0", "80.0", "2", "2", "1", "0"] in rows
    report = folder / "eval-found-val"
    record = json.loads((report / "metrics.json").read_text())
    assert record["panoptic"]["PQ"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert (report / "examples.png").exists() == (data == "set")
    assert "**PQ 73.3** on 2 images with 4 segments" in (report / "report.md").read_text()


@pytest.mark.slow
def test_detections_with_masks(folder, capsys):
    dataset = {
        "images": [{"id": 1, "height": 24, "width": 32}],
        "categories": CATEGORIES,
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0,
             "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]},
        ],
    }  # fmt: skip
    (folder / "truth.json").write_text(json.dumps(dataset))
    entry = {"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [0, 0, 10, 10]}
    half = {"size": [24, 32], "counts": [0, *[10, 14] * 7, 10, 24 * 24 + 14]}  # 8 of 10 columns
    (folder / "results.json").write_text(json.dumps([entry | {"segmentation": half}]))
    assert main(["eval", "results.json", "truth.json", "--out", "report"]) == 0
    record = json.loads((folder / "report/metrics.json").read_text())
    assert record["AP"] == pytest.approx(1)
    assert record["masks"]["AP"] == pytest.approx(0.7)  # IoU 0.8: right at 0.5, 0.55, ..., 0.8
    page = (folder / "report/report.md").read_text()
    assert page.index("**AP 100.0** (boxes)") < page.index("**AP 70.0** (masks)")
    assert "## Confusion" in page
    (folder / "results.json").write_text(json.dumps([entry]))
    assert main(["eval", "results.json", "truth.json", "--out", "boxes", "--no-per-class"]) == 0
    assert "masks" not in json.loads((folder / "boxes/metrics.json").read_text())
    assert "100.0" in capsys.readouterr().out
    (folder / "results.json").write_text(json.dumps([entry | {"segmentation": half}]))
    assert main(["eval", "results.json", "truth.json", "--out", "alone", "--iou-type", "segm"]) == 0
    assert json.loads((folder / "alone/metrics.json").read_text())["AP"] == pytest.approx(0.7)


ONE_BOX = {
    "images": [{"id": 1, "height": 24, "width": 32}],
    "categories": CATEGORIES,
    "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0}],
}


@pytest.mark.parametrize("nothing", [[], None])
def test_tools_write_empty_segmentations_beside_boxes(folder, nothing):
    (folder / "truth.json").write_text(json.dumps(ONE_BOX))
    entry = {"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [0, 0, 10, 10], "segmentation": nothing}
    (folder / "results.json").write_text(json.dumps([entry]))
    assert main(["eval", "results.json", "truth.json", "--out", "report"]) == 0
    record = json.loads((folder / "report/metrics.json").read_text())
    assert record["AP"] == pytest.approx(1)
    assert "masks" not in record


def test_masks_that_the_truth_has_not_leave_the_boxes(folder, capsys):
    (folder / "truth.json").write_text(json.dumps(ONE_BOX))
    entry = {"image_id": 1, "category_id": 3, "score": 0.5, "bbox": [0, 0, 10, 10]}
    (folder / "results.json").write_text(json.dumps([entry | {"segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]}]))
    assert main(["eval", "results.json", "truth.json", "--out", "report"]) == 0
    assert json.loads((folder / "report/metrics.json").read_text())["AP"] == pytest.approx(1)
    assert "the masks are not evaluated: truth.json has none" in capsys.readouterr().out
    assert main(["eval", "results.json", "truth.json", "--out", "masks", "--iou-type", "segm"]) == 2
    assert "--iou-type bbox" in capsys.readouterr().err


def test_detections_on_a_dataset_are_of_things(folder, capsys):
    entries = [
        {"image_id": i, "category_id": 3, "score": 0.5, "bbox": [10, 8, 12, 12],
         "segmentation": {"size": [24, 32], "counts": [10 * 24 + 8, *[12, 12] * 11, 12, 10 * 24 + 4]}}
        for i in (1, 2)
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps(entries))
    assert main(["eval", "results.json", "set", "--out", "report"]) == 0
    record = json.loads((folder / "report/metrics.json").read_text())
    assert list(record["per_class"]) == list(record["masks"]["per_class"]) == ["cat"]
    assert record["AP"] == record["masks"]["AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["found.json", "set", "--split", "test"], "test"),
        (["found.json", "nowhere"], "nowhere"),
        (["nothing.json", "set"], "nothing.json"),
        (["set/annotations/panoptic_val2017.json", "found.json"], "found.json: no list 'categories'"),
    ],
)
def test_errors_are_one_line(folder, capsys, arguments, message):
    assert main(["eval", *arguments]) != 0
    error = capsys.readouterr().err
    assert message in error.replace("\n", "")
    assert "Traceback" not in error


def test_what_is_results(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("best.safetensors", "curves.png", "metrics.json"):
        (run / name).touch()
    assert results_file(run) is None
    assert results_file(tmp_path / "detr-r50") is None
    (tmp_path / "a.safetensors").touch()
    assert results_file(tmp_path / "a.safetensors") is None
    found = tmp_path / "panoptic.v1"
    found.mkdir()
    (found / "1.png").touch()
    assert results_file(found) is None
    (found / "any.json").touch()
    assert results_file(found) == found / "any.json"
    (tmp_path / "panoptic.v1.json").touch()
    assert results_file(found) == tmp_path / "panoptic.v1.json"


def test_a_split_names_no_folder(folder, capsys):
    assert main(["eval", "found.json", "set", "--split", "../../x"]) == 2
    assert "--split: '../../x' is a path, not a name" in capsys.readouterr().err
    assert not (folder.parent / "x").exists()


def test_classes_without_a_result_are_named(folder, capsys):
    """They count with AP 0, as in pycocotools; a category that the dataset has not ends the command."""
    names = ["cat", "dog", "cow", "sky"]
    boxes = [{"id": i, "image_id": 1, "category_id": i, "bbox": [5 * i, 0, 5, 5], "area": 25} for i in (1, 2, 3)]
    truth = {
        "images": [{"id": 1, "height": 24, "width": 32}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],  # no sky is annotated
        "annotations": [{**box, "iscrowd": 0} for box in boxes],
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "some.json").write_text(json.dumps([{**boxes[0], "score": 0.5}]))
    assert main(["eval", "some.json", "truth.json", "--out", "some"]) == 0
    out = capsys.readouterr().out
    sentence = "no detection of 2 of the 3 classes, which have 2 of 3 objects and count with AP 0: dog, cow"
    assert f"warning: the results have {sentence}\n" in out
    record = json.loads((folder / "some/metrics.json").read_text())
    assert record["AP"] == pytest.approx(1 / 3) and record["notes"] == [f"the results have {sentence}"]
    (folder / "other.json").write_text(json.dumps([{**boxes[0], "score": 0.5, "category_id": 0}]))
    assert main(["eval", "other.json", "truth.json", "--out", "other"]) == 2
    error = "other.json: entry 0: category_id 0 is no category of the ground truth, whose 4 ids are 1 to 4; check"
    assert error in capsys.readouterr().err
