"""The real datasets of DETRKIT_DATA; the counts are those of their README."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detrkit.data import open_dataset
from detrkit.data.tools.check import check
from detrkit.data.tools.convert import convert
from detrkit.utils.errors import DetrkitError


@pytest.mark.parametrize(("split", "images"), [("train", 205), ("val", 87), ("test", 72)])
def test_bccd_voc_equals_coco(real: Path, split: str, images: int) -> None:
    voc = open_dataset(real / "bccd", split=split)
    coco = open_dataset(real / "bccd" / "coco" / f"instances_{split}.json")
    assert (voc.layout, coco.layout) == ("voc", "coco")
    assert len(voc) == len(coco) == images
    assert coco.class_names == ["RBC", "WBC", "Platelets"] and voc.class_names == ["Platelets", "RBC", "WBC"]
    assert (voc.dropped, voc.clamped) == (coco.dropped, coco.clamped) == ((0, 0) if split == "test" else (1, 0))
    for a, b in zip(voc.records, coco.records, strict=True):
        assert a.file.resolve() == b.file.resolve() and (a.height, a.width) == (b.height, b.width)
        assert np.array_equal(a.boxes, b.boxes)
        assert [voc.class_names[i] for i in a.labels] == [coco.class_names[i] for i in b.labels]
    for index in (0, images - 1):
        assert torch.equal(voc[index].image, coco[index].image)
        assert torch.equal(voc[index].boxes, coco[index].boxes)


@pytest.mark.parametrize(
    ("split", "counts"),
    [("train", (2382, 214, 209)), ("val", (968, 87, 83)), ("test", (805, 71, 69))],
)
def test_bccd_counts(real: Path, split: str, counts: tuple[int, int, int]) -> None:
    (summary,) = check(real / "bccd", split).splits
    objects = {c.name: c.objects for c in summary.classes}
    dropped = 0 if split == "test" else 1  # one RBC without area
    assert objects == {"RBC": counts[0] - dropped, "WBC": counts[1], "Platelets": counts[2]}


def test_bccd_empty_boxes_are_reported_in_both_layouts(real: Path) -> None:
    coco = check(real / "bccd" / "coco")
    assert coco.ok and [(f.severity, f.file.name, f.id) for f in coco.faults] == [
        ("warning", "instances_train.json", "annotation 2288"),
        ("warning", "instances_val.json", "annotation 3692"),
    ]
    assert "BloodImage_00343.jpg has zero area" in coco.faults[0].reason
    assert "BloodImage_00338.jpg has zero area" in coco.faults[1].reason
    voc = check(real / "bccd")
    assert voc.ok and {(f.severity, f.file.name, f.id) for f in voc.faults} == {
        ("warning", "BloodImage_00343.xml", "object 4"),
        ("warning", "BloodImage_00338.xml", "object 13"),
    }


def test_bccd_converted_to_yolo(real: Path, tmp_path: Path) -> None:
    convert(real / "bccd", tmp_path / "yolo", to="yolo", split="val", images="symlink")
    yolo, voc = open_dataset(tmp_path / "yolo"), open_dataset(real / "bccd", split="val")
    for a, b in zip(yolo.records, voc.records, strict=True):
        np.testing.assert_allclose(a.boxes / 640, b.boxes / 640, rtol=0, atol=1e-6)
        assert a.labels.tolist() == b.labels.tolist()


@pytest.mark.parametrize(
    ("split", "images", "annotations", "sizes"),
    [("train", 86, 875, (353, 344, 169)), ("val", 108, 877, (411, 249, 208))],
)
def test_coco_mini(real: Path, split: str, images: int, annotations: int, sizes: tuple[int, int, int]) -> None:
    dataset = open_dataset(real / "coco_mini", split=split)
    assert dataset.split == f"{split}2017" and len(dataset) == images and len(dataset.classes) == 80
    assert dataset.dropped == dataset.clamped == 0
    assert sum(len(r.labels) for r in dataset.records) == annotations
    (summary,) = check(real / "coco_mini", split).splits
    assert (summary.crowd, summary.objects) == (9, annotations - 9)
    assert tuple(sum(getattr(c, s) for c in summary.classes) for s in ("small", "medium", "large")) == sizes
    truth = {a["id"]: a for a in dataset.ground_truth()["annotations"]}
    original = json.loads((real / "coco_mini/annotations" / f"instances_{split}2017.json").read_text())
    assert len(truth) == len(original["annotations"])
    for a in original["annotations"]:
        assert all(truth[a["id"]][k] == a[k] for k in ("image_id", "category_id", "bbox", "area", "iscrowd"))


def test_coco_mini_official_ids_and_negatives(real: Path) -> None:
    dataset = open_dataset(real / "coco_mini", split="val", ids="official")
    assert len(dataset.classes) == 91 and dataset.class_names[12] == "N/A" and dataset.class_names[90] == "toothbrush"
    empty = {r.image_id for r in dataset.records if not len(r.labels)}
    assert empty == {226111, 58636}
    assert max(int(r.labels.max()) for r in dataset.records if len(r.labels)) == 90


def test_coco_mini_masks_equal_pycocotools(real: Path) -> None:
    module = pytest.importorskip("pycocotools.coco")
    reference = module.COCO(str(real / "coco_mini/annotations/instances_val2017.json"))
    dataset = open_dataset(real / "coco_mini", split="val", masks=True)
    for index in range(0, len(dataset), 12):
        sample = dataset[index]
        ids = reference.getAnnIds(imgIds=sample.image_id, iscrowd=False)
        expected = [reference.annToMask(a) for a in reference.loadAnns(ids)]
        assert sample.masks is not None and len(sample.masks) == len(expected)
        for ours, theirs in zip(sample.masks, expected, strict=True):
            assert np.array_equal(ours.numpy(), theirs.astype(bool))


def test_derived_detection_of_the_panoptic_sample(real: Path) -> None:
    """Without masks the folder is taken for what its instances file says."""
    dataset = open_dataset(real / "panoptic_sample", split="val")
    (summary,) = check(real / "panoptic_sample", "val").splits
    assert (len(dataset), summary.objects, summary.crowd) == (42, 394, 7)
    gray = next(i for i, r in enumerate(dataset.records) if r.image_id == 7888)
    image = dataset[gray].image
    assert image.shape[0] == 3 and torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


@pytest.mark.parametrize(
    ("split", "images", "things", "stuff", "crowd"), [("train", 16, 216, 97, 2), ("val", 42, 401, 190, 7)]
)
def test_panoptic_sample(real: Path, split: str, images: int, things: int, stuff: int, crowd: int) -> None:
    dataset = open_dataset(real / "panoptic_sample", split=split, masks=True)
    assert dataset.layout == "coco-panoptic" and len(dataset) == images and len(dataset.classes) == 133
    assert dataset.classes.things is not None and dataset.classes.things.count(True) == 80
    original = json.loads((real / "panoptic_sample/annotations" / f"panoptic_{split}2017.json").read_text())
    names = {image["id"]: image["file_name"] for image in original["images"]}
    segments = {a["image_id"]: a["segments_info"] for a in original["annotations"]}
    kinds = {c["id"]: c["isthing"] for c in original["categories"]}
    counts = [0, 0]
    for index in range(images):
        sample = dataset[index]
        assert sample.file is not None and sample.file.name == names[sample.image_id]
        expected = [s for s in segments[sample.image_id] if not s["iscrowd"]]
        assert sample.masks is not None and len(sample.masks) == len(sample.labels) == len(expected)
        for s, mask, label, box in zip(expected, sample.masks, sample.labels, sample.boxes.tolist(), strict=True):
            assert dataset.classes.ids[label] == s["category_id"]
            counts[kinds[s["category_id"]]] += 1
            rows, columns = mask.nonzero().unbind(1)
            assert len(rows) == s["area"]
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert counts == [stuff, things - crowd]  # all crowd is of things
    truth, id_map = dataset.panoptic_ground_truth()
    for annotation in truth["annotations"]:
        assert annotation["segments_info"] == segments[annotation["image_id"]]
        ids, areas = np.unique(id_map(annotation["image_id"]), return_counts=True)
        known = {s["id"]: s["area"] for s in annotation["segments_info"]}
        assert {i: a for i, a in zip(ids.tolist(), areas.tolist(), strict=True) if i} == known


def test_check_of_the_panoptic_sample(real: Path) -> None:
    report = check(real / "panoptic_sample", layout="coco-panoptic")
    assert report.ok and not report.of("warning")
    reasons = [f.reason for f in report.faults]
    assert reasons.count("images and annotations are in different orders: paired by image_id") == 2
    assert sum("of the pixels are void" in r for r in reasons) == 2
    assert any("--layout" in f.reason for f in check(real / "panoptic_sample", "val").faults)


def test_derived_detection_is_what_convert_makes_of_things(real: Path, tmp_path: Path) -> None:
    """The sample's detection_from_panoptic_*.json were made from the same PNGs by another program."""
    options = {"layout": "coco-panoptic", "split": "train", "things_only": True, "images": "symlink"}
    convert(real / "panoptic_sample", tmp_path / "things", to="coco", **options)  # type: ignore[arg-type]
    ours = open_dataset(tmp_path / "things", masks=True)
    theirs = open_dataset(real / "panoptic_sample", split="train", layout="coco", masks=True)
    assert ours.class_names == theirs.class_names
    for a, b in zip(ours, theirs, strict=True):
        assert a.image_id == b.image_id and a.masks is not None and b.masks is not None
        assert torch.equal(a.masks, b.masks) and torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels)


def test_other_panoptic_files(real: Path) -> None:
    sample = real / "panoptic_sample"
    fixture = open_dataset(sample / "transformers_fixtures/panoptic_39769.json", masks=True)[0]
    assert fixture.masks is not None and int((~fixture.masks.any(0)).sum()) == 10752  # void
    examples = open_dataset(sample / "panopticapi_sample", split="examples", masks=True)
    assert [len(s.labels) for s in examples] == [17, 30]
    with pytest.raises(DetrkitError, match="is no COCO panoptic file but one of instances"):
        open_dataset(sample / "panopticapi_sample/panoptic_coco_detection_format.json")


def test_box_ending_at_the_border_is_not_clamped(real: Path) -> None:
    dataset = open_dataset(real / "panoptic_sample/transformers_fixtures/instances_39769.json")
    assert dataset.clamped == 0 and len(dataset[0].boxes) == 6
    assert sorted(dataset[0].boxes[:, 2].tolist())[-2:] == [640, 640]
