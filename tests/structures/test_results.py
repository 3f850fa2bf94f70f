"""What is found in an image, and its COCO forms."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from detrkit.data.images import as_rgb
from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections
from detrkit.structures.panoptic import PanopticResult, Segment
from detrkit.structures.rle import encode_masks
from detrkit.utils.errors import DetrkitError

CLASSES = ClassList(("cat", "dog", "sky"), (3, 7, 119), (True, True, False))
MAP = torch.tensor([[0, 1, 1, 9], [70000, 70000, 1, 9]], dtype=torch.int32)


def result(**changes):
    segments = [Segment(1, 1, 0.75, 3, True), Segment(9, 1, 0.5, 2, True), Segment(70000, 2, 0.9, 2, False)]
    return PanopticResult(**{"id_map": MAP, "segments": segments, "classes": CLASSES} | changes)


def test_queries_go_with_their_detections():
    found = Detections(torch.rand(3, 4), torch.tensor([0.9, 0.2, 0.5]), torch.tensor([0, 1, 1]), classes=CLASSES)
    assert found.queries is None and found.above(0.4).queries is None and found.to("cpu").queries is None
    found.queries = torch.tensor([7, 3, 5])
    assert found.above(0.4).queries.tolist() == [7, 5] and found.above((0.0, 0.6, 0.0)).queries.tolist() == [7]
    assert found.select(torch.tensor([2, 0])).queries.tolist() == [5, 7]
    assert found.to("meta").queries.device.type == "meta" and found.queries.device.type == "cpu"
    found.image_id = 4
    assert set(found.to_json()[0]) == {"label", "name", "score", "box"}
    assert set(found.to_coco()[0]) == {"image_id", "category_id", "bbox", "score"}


def test_segments_are_equal_whatever_query_made_them():
    assert Segment(1, 1, 0.75, 3, True, query=4) == Segment(1, 1, 0.75, 3, True)
    assert Segment(1, 1, 0.75, 3, True).query is None


def test_masks_as_rle(monkeypatch):
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
    for together in (1, 2 * 37 * 53):  # one mask after the other, and two at once
        monkeypatch.setattr("detrkit.structures.rle._TOGETHER", together)
        assert encode_masks(masks) == rles


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


def test_plain_json_of_results():
    masks = torch.zeros(1, 6, 8, dtype=torch.bool)
    masks[0, 1:4, 2:7] = True
    found = Detections(
        torch.tensor([[2.0, 1.004, 7.126, 4]]), torch.tensor([0.12345]), torch.tensor([1]), masks, classes=CLASSES
    )
    (entry,) = json.loads(json.dumps(found.to_json()))
    assert coco_mask.area(entry.pop("segmentation")) == 15
    assert entry == {"label": 1, "name": "dog", "score": 0.1235, "box": [2.0, 1.0, 7.13, 4.0]}
    found.masks = None
    assert "segmentation" not in found.to_json()[0]
    assert json.loads(json.dumps(result().to_json())) == [
        {"id": 1, "label": 1, "name": "dog", "score": 0.75, "area": 3, "kind": "thing"},
        {"id": 9, "label": 1, "name": "dog", "score": 0.5, "area": 2, "kind": "thing"},
        {"id": 70000, "label": 2, "name": "sky", "score": 0.9, "area": 2, "kind": "stuff"},
    ]


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
    with pytest.raises(ValueError, match="holds no image"):
        result().draw()
    picture = Image.new("RGB", (4, 2), (90, 90, 90))
    assert result(image=picture).draw().size == (4, 2)
    assert result().draw(picture).size == (4, 2)


@pytest.mark.parametrize("image_id", [np.int64(4), np.array(4)[()], torch.tensor(4), "4"])
def test_coco_entries_are_plain_json(image_id):
    classes = ClassList(("cat", "dog"), (np.int64(3), np.int32(7)))
    found = Detections(
        np.array([[0.0, 1, 4, 6]], np.float32), np.array([0.5]), torch.tensor([1]), classes=classes, image_id=image_id
    )
    assert json.loads(json.dumps(found.to_coco())) == [
        {"image_id": "4" if image_id == "4" else 4, "category_id": 7, "bbox": [0.0, 1.0, 4.0, 5.0], "score": 0.5}
    ]
    segment = Segment(np.int32(1), np.int64(1), np.float32(0.5), torch.tensor(6), np.bool_(True))
    info = result(segments=[segment], classes=classes).to_coco()[1]
    assert json.loads(json.dumps(info)) == [{"id": 1, "category_id": 7, "isthing": 1, "area": 6, "score": 0.5}]


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(DetrkitError, match=r"supervision: pip install 'detrkit\[supervision\]'"):
        Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)).to_supervision()


def drawable(image=None):
    return Detections(torch.tensor([[1.0, 1, 5, 4]]), torch.tensor([0.9]), torch.tensor([0]), image=image)


def test_every_image_is_drawn_on_as_it_is_predicted_on(tmp_path):
    gray = np.linspace(0, 255, 8 * 6).reshape(6, 8).astype(np.uint8)
    rgb = np.stack([gray] * 3, -1)
    upright = Image.fromarray(rgb)
    want = drawable(upright).draw().tobytes()
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    kinds = [
        upright.convert("RGBA"),
        Image.fromarray(gray),
        Image.fromarray(gray.astype(np.uint16) * 257),
        Image.fromarray(gray.astype(np.float32) / 255),
        Image.open(tmp_path / "turned.png"),
        tmp_path / "turned.png",
        (tmp_path / "turned.png").read_bytes(),
        rgb,
        gray,
        gray[..., None],
        gray.astype(np.uint16) * 257,
        gray.astype(np.float32) / 255,
        np.dstack([rgb, gray]),
        torch.from_numpy(rgb).permute(2, 0, 1),
        torch.from_numpy(gray)[None],
        torch.from_numpy(np.dstack([rgb, gray])).permute(2, 0, 1),
    ]
    for number, image in enumerate(kinds):
        assert drawable().draw(image).tobytes() == want, number
        assert np.array_equal(np.asarray(as_rgb(image)), rgb), number
        assert drawable(upright).draw(image).tobytes() == want, number


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((6, 8, 2), np.uint8), r"^the image as an array must be \(H, W, 3\) uint8, not \(6, 8, 2\) uint8$"),
        (np.zeros((6, 8, 3), np.float64), "not .* float64"),
        (np.zeros((3, 6, 8), np.uint8), r"not \(3, 6, 8\)"),
        (np.full((6, 8), 300.0, np.float32), "floating-point pixels from 0 to 300"),
        (torch.zeros(6, 8, 3, dtype=torch.uint8), r"must be \(3, H, W\) uint8"),
        ([1, 2], "no image: list"),
        ("missing.png", "missing.png: image file is missing"),
        (Image.new("RGB", (8, 7)), r"draw on is 8 x 7 pixels, the one predicted on was 8 x 6 \(width x height\)"),
    ],
)
def test_what_cannot_be_drawn_on_is_one_line(image, message):
    for one in (drawable(Image.new("RGB", (8, 6))), result(id_map=torch.zeros(6, 8, dtype=torch.int32))):
        with pytest.raises((ValueError, DetrkitError), match=message) as error:
            one.draw(image)
        assert "\n" not in str(error.value)
