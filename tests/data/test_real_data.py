"""The real datasets of DETRKIT_DATA; the counts are those of their README."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detrkit.data.check import check
from detrkit.data.convert import convert
from detrkit.data.dataset import open_dataset
from detrkit.errors import DetrkitError


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


def test_panoptic_sample(real: Path) -> None:
    with pytest.raises(DetrkitError, match="is a COCO panoptic file"):
        open_dataset(real / "panoptic_sample/annotations/panoptic_val2017.json")
    dataset = open_dataset(real / "panoptic_sample", split="val")
    (summary,) = check(real / "panoptic_sample", "val").splits
    assert (len(dataset), summary.objects, summary.crowd) == (42, 394, 7)
    gray = next(i for i, r in enumerate(dataset.records) if r.image_id == 7888)
    image = dataset[gray].image
    assert image.shape[0] == 3 and torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


def test_box_ending_at_the_border_is_not_clamped(real: Path) -> None:
    dataset = open_dataset(real / "panoptic_sample/transformers_fixtures/instances_39769.json")
    assert dataset.clamped == 0 and len(dataset[0].boxes) == 6
    assert sorted(dataset[0].boxes[:, 2].tolist())[-2:] == [640, 640]
