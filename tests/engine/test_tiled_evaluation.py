"""Evaluation in tiles: the detections of `Detector.predict`, image by image, and AP where plain prediction has none."""

import json
from dataclasses import replace

import pytest
import torch

import detrkit
from detrkit.ops import dense
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from helpers.seeing import picture, seeing_detector
from helpers.small_models import small_model

# on seams of tiles of 64 pixels: object k is of class k % 2
PLACES = [[(50, 50, 62, 62), (100, 20, 112, 32)], [(40, 100, 52, 112)], [(150, 150, 162, 162)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images in COCO's layout."""
    root = tmp_path_factory.mktemp("tiles")
    (root / "val").mkdir()
    (root / "annotations").mkdir()
    categories = [{"id": 5, "name": "brighter"}, {"id": 3, "name": "bright"}]
    entries = {"images": [], "annotations": [], "categories": categories}
    for i, boxes in enumerate(PLACES):
        picture(200, 200, boxes).save(root / "val" / f"{i}.png")
        entries["images"].append({"id": 10 + i, "file_name": f"{i}.png", "height": 200, "width": 200})
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            entry = {"id": len(entries["annotations"]) + 1, "image_id": 10 + i, "category_id": (3, 5)[k % 2]}
            entry |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            entries["annotations"].append(entry)
    (root / "annotations" / "instances_val.json").write_text(json.dumps(entries))
    return root


def test_small_objects_have_their_ap_in_tiles_alone(folder):
    detector = seeing_detector(least=5)  # 12 pixels are 3.8 of the whole image
    assert detrkit.evaluate(detector, folder, device="cpu").AP == 0.0
    assert pytest.approx(1.0) == detrkit.evaluate(detector, folder, device="cpu", tile=64, overlap=0.25).AP
    assert pytest.approx(1.0) == detrkit.evaluate(detector.tiled(64, 0.25), folder, device="cpu").AP


def test_images_no_larger_than_a_tile_have_the_numbers_of_plain_evaluation(folder):
    model, spec = small_model("deformable-detr-r50-two-stage", size=64)
    names = ClassList.contiguous({0: "bright", 1: "brighter", **{i: f"class {i}" for i in range(2, 7)}})
    one = (model, replace(spec, classes=names))
    plain = detrkit.evaluate(one, folder, device="cpu", workers=0)
    assert detrkit.evaluate(one, folder, device="cpu", tile=200).to_json() == plain.to_json()


def test_the_report_says_how_images_were_cut(folder, tmp_path):
    out = tmp_path / "report"
    detrkit.evaluate(seeing_detector(least=5), folder, device="cpu", tile=64, out=out)
    report = (out / "report.md").read_text()
    assert "tiles of 64 pixels, overlap 0.2, with the whole image" in report
    results = [one for one in json.loads((out / "results.json").read_text()) if one["score"] > 0.5]
    boxes = sorted((one["image_id"], one["category_id"], *one["bbox"][:2]) for one in results)
    assert boxes == [(10, 3, 50, 50), (10, 5, 100, 20), (11, 3, 40, 100), (12, 3, 150, 150)]


def test_what_does_not_go_with_tiles_is_refused(folder):
    with pytest.raises(DetrkitError, match="tile is 3: must be at least 32"):
        detrkit.evaluate(seeing_detector(), folder, device="cpu", tile=3)
    with pytest.raises(DetrkitError, match="num_queries is 3: the 20 queries of this model are learned"):
        model, spec = small_model("detr-r50")
        detrkit.evaluate((model, spec), folder, device="cpu", num_queries=3)


def test_the_report_says_the_precision_that_was_computed_in(folder, tmp_path, monkeypatch):
    """A model of another precision is evaluated in its own; without instructions for bfloat16 it is float32."""
    model, spec = small_model("detr-r50", size=64)
    names = ClassList.contiguous({0: "bright", 1: "brighter", **{i: f"class {i}" for i in range(2, 7)}})
    spec, seen = replace(spec, classes=names), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].images.dtype))
    detrkit.evaluate((model.double(), spec), folder, device="cpu", workers=0)
    assert set(seen) == {torch.float64}
    monkeypatch.setattr(dense, "has_bf16_kernels", lambda: False)
    with pytest.warns(UserWarning, match="computing in float32"):
        detrkit.evaluate((model.float(), spec), folder, device="cpu", tile=64, precision="bf16", out=tmp_path / "out")
    assert "bf16" not in (tmp_path / "out" / "report.md").read_text()
    assert set(seen) == {torch.float64, torch.float32}
