"""What is found in an image, and its COCO forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from detrkit.classes import ClassList
from detrkit.results import Detections, PanopticResult, Segment, encode_masks

CLASSES = ClassList(("cat", "dog", "sky"), (3, 7, 119), (True, True, False))
MAP = torch.tensor([[0, 1, 1, 9], [70000, 70000, 1, 9]], dtype=torch.int32)


def result(**changes):
    segments = [Segment(1, 1, 0.75, 3, True), Segment(9, 1, 0.5, 2, True), Segment(70000, 2, 0.9, 2, False)]
    return PanopticResult(**{"id_map": MAP, "segments": segments, "classes": CLASSES} | changes)


def test_masks_as_rle():
    generator = np.random.default_rng(0)
    masks = torch.from_numpy(generator.random((5, 37, 53)) < 0.3)
    masks[1] = False
    rles = json.loads(json.dumps(encode_masks(masks)))
    np.testing.assert_array_equal(coco_mask.decode(rles).transpose(2, 0, 1), masks.numpy())
    assert rles == [
        r | {"counts": r["counts"].decode()}
        for r in coco_mask.encode(np.asfortranarray(masks.numpy().transpose(1, 2, 0), np.uint8))
    ]
    assert encode_masks(masks[:0]) == []


def test_detections_with_masks_as_coco_and_supervision():
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[0, 1:4, 2:7] = masks[1, 5] = True
    boxes = torch.tensor([[2.0, 1, 7, 4], [0, 5, 8, 6]])
    found = Detections(boxes, torch.tensor([0.5, 0.25]), torch.tensor([1, 2]), masks, classes=CLASSES, image_id=4)
    entries = found.to_coco()
    assert [(e["image_id"], e["category_id"], e["bbox"], e["score"]) for e in entries] == [
        (4, 7, [2.0, 1.0, 5.0, 3.0], 0.5),
        (4, 119, [0.0, 5.0, 8.0, 1.0], 0.25),
    ]
    for entry, mask in zip(entries, masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), mask.numpy())
        assert coco_mask.toBbox(entry["segmentation"]).tolist() == entry["bbox"]
    other = found.to_supervision()
    np.testing.assert_array_equal(other.mask, masks.numpy())
    np.testing.assert_array_equal(other.box_area, [15, 8])
    np.testing.assert_array_equal(other.area, [15, 8])  # of the masks
    found.masks = None
    assert "segmentation" not in found.to_coco()[0]


def test_panoptic_masks_and_names():
    one = result()
    assert len(one) == 3
    assert one.names == ["dog", "dog", "sky"]
    assert one.masks.sum((1, 2)).tolist() == [s.area for s in one.segments]
    assert one.masks.sum(0).tolist() == (MAP != 0).tolist()
    assert result(classes=None).names == ["class 1", "class 1", "class 2"]
    assert result(segments=[]).masks.shape == (0, 2, 4)


def test_panoptic_as_coco_and_back():
    rgb, info = result().to_coco()
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb.astype(int) @ [1, 256, 65536], MAP.numpy())
    assert json.loads(json.dumps(info)) == [
        {"id": 1, "category_id": 7, "isthing": 1, "area": 3, "score": 0.75},
        {"id": 9, "category_id": 7, "isthing": 1, "area": 2, "score": 0.5},
        {"id": 70000, "category_id": 119, "isthing": 0, "area": 2, "score": 0.9},
    ]
    again = PanopticResult.from_coco(rgb.astype(int) @ [1, 256, 65536], info, CLASSES, image_id=5)
    assert again.segments == result().segments
    assert (again.id_map == MAP).all()
    assert again.image_id == 5
    assert [i["category_id"] for i in result(classes=None).to_coco()[1]] == [1, 1, 2]


def test_truth_without_scores_and_without_pixels():
    info = [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 119}]
    truth = PanopticResult.from_coco(torch.ones(2, 3, dtype=torch.uint8), info, CLASSES)
    assert truth.segments == [Segment(1, 0, 1.0, 6, True), Segment(2, 2, 1.0, 0, False)]


def test_drawing_needs_a_picture():
    with pytest.raises(ValueError, match="holds no picture"):
        result().draw()
    picture = Image.new("RGB", (4, 2), (90, 90, 90))
    assert result(image=picture).draw().size == (4, 2)
    assert result().draw(picture).size == (4, 2)
