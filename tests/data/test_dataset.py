from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from detrkit.data import open_dataset
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from helpers.datasets import coco, picture, write_coco

CATEGORIES = {7: "dog", 3: "cat"}


def images(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"id": k, "file_name": f"{k}.png", "height": h, "width": w} for k, (h, w) in enumerate(sizes, 1)]


def annotation(id: int, image: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0} | more


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Three images: objects (one crowd, one too wide, one flat), none, and one object; ids out of order."""
    value = coco(
        list(reversed(images((20, 30), (10, 10), (8, 9)))),
        [
            annotation(1, 1, 7, [2, 3, 10, 5], area=41.5),
            annotation(2, 1, 3, [25, 15, 10, 10]),
            annotation(3, 1, 3, [5, 5, 0, 4]),
            annotation(4, 1, 7, [0, 0, 30, 20], iscrowd=1, area=99),
            annotation(9, 3, 3, [1, 1, 2.5, 3.25]),
            annotation(8, 1, 3, [40, 5, 10, 4]),
        ],
        CATEGORIES,
    )
    write_coco(tmp_path / "pets", "train2017", value)
    return tmp_path / "pets"


def test_coco_samples(pets: Path) -> None:
    dataset = open_dataset(pets, split="train")
    assert (len(dataset), dataset.split, dataset.name, dataset.layout) == (3, "train2017", "pets", "coco")
    assert dataset.class_names == ["cat", "dog"] and dataset.classes.ids == (3, 7)
    assert (dataset.dropped, dataset.clamped) == (2, 1)  # the flat one and the one outside; the too wide one
    sample = dataset[0]
    assert sample.image_id == 1 and sample.orig_size == (20, 30) and sample.file == pets / "train2017" / "1.png"
    assert isinstance(sample.image, tv_tensors.Image) and sample.image.dtype == torch.uint8
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), np.asarray(picture(20, 30, 1)))
    assert isinstance(sample.boxes, tv_tensors.BoundingBoxes) and sample.boxes.dtype == torch.float32
    assert sample.boxes.tolist() == [[2, 3, 12, 8], [25, 15, 30, 20]]
    assert sample.boxes.canvas_size == (20, 30)
    assert sample.labels.tolist() == [1, 0] and sample.masks is None
    empty = dataset[1]
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,) and empty.labels.dtype == torch.int64
    assert dataset[2].boxes.tolist() == [[1, 1, 3.5, 4.25]]
    with pytest.raises(IndexError):
        dataset[3]


def test_record_keeps_crowd_and_areas(pets: Path) -> None:
    record = open_dataset(pets).records[0]
    assert record.crowd.tolist() == [False, False, True]
    assert record.areas.tolist() == [41.5, 25, 99]  # as annotated where it is, else of the clamped box: 5x5
    assert record.annotation_ids.tolist() == [1, 2, 4]


def test_official_ids(pets: Path) -> None:
    dataset = open_dataset(pets, ids="official")
    assert dataset[0].labels.tolist() == [7, 3]
    assert dataset.classes == ClassList.official(CATEGORIES) and len(dataset.classes) == 8
    assert dataset.ground_truth()["annotations"][0]["category_id"] == 7
    with pytest.raises(DetrkitError, match="ids="):
        open_dataset(pets, ids="raw")  # type: ignore[arg-type]


def test_ground_truth_is_the_file_without_empty_boxes(pets: Path) -> None:
    original = json.loads((pets / "annotations" / "instances_train2017.json").read_text())
    truth = open_dataset(pets).ground_truth()
    kept = {a["id"]: a for a in original["annotations"] if a["id"] not in (3, 8)}
    assert {a["id"]: a["bbox"] for a in truth["annotations"]} == {i: a["bbox"] for i, a in kept.items()}
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 0, 1, 0]
    assert [a["area"] for a in truth["annotations"]] == [41.5, 25, 99, 8.125]
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert sorted(i["id"] for i in truth["images"]) == [1, 2, 3]
    json.dumps(truth)


def test_ground_truth_has_no_annotation_zero(tmp_path: Path) -> None:
    value = coco(images((9, 9)), [annotation(0, 1, 3, [0, 0, 2, 2]), annotation(1, 1, 3, [2, 2, 2, 2])], CATEGORIES)
    write_coco(tmp_path, "all", value)
    assert [a["id"] for a in open_dataset(tmp_path).ground_truth()["annotations"]] == [1, 2]


def test_subset(pets: Path) -> None:
    subset = open_dataset(pets).subset([2, 0])
    assert len(subset) == 2 and [s.image_id for s in (subset[0], subset[1])] == [3, 1]
    assert subset.class_names == ["cat", "dog"]
    assert len(subset.ground_truth()["images"]) == 2


def test_masks_equal_pycocotools(tmp_path: Path) -> None:
    codec = pytest.importorskip("pycocotools.mask")
    polygons = [[2.2, 3.1, 12.7, 3.5, 8.0, 15.9], [15, 2, 28, 2, 28, 9.5, 15, 9.5]]
    disc = (np.hypot(*(np.mgrid[:20, :30] - np.array([10, 15])[:, None, None])) < 6).astype(np.uint8)
    compressed = codec.encode(np.asfortranarray(disc))
    compressed = {"size": [20, 30], "counts": compressed["counts"].decode()}
    runs = {"size": [20, 30], "counts": [5, 10, 585]}  # column-major
    value = coco(
        images((20, 30)),
        [
            annotation(1, 1, 3, [2, 2, 26, 14], segmentation=polygons),
            annotation(2, 1, 3, [9, 4, 12, 12], segmentation=compressed),
            annotation(3, 1, 7, [0, 5, 1, 10], segmentation=runs),
            annotation(4, 1, 7, [0, 0, 30, 20], segmentation=runs, iscrowd=1),
        ],
        CATEGORIES,
    )
    write_coco(tmp_path, "all", value)
    masks = open_dataset(tmp_path, masks=True)[0].masks
    assert isinstance(masks, tv_tensors.Mask) and masks.shape == (3, 20, 30) and masks.dtype == torch.bool
    expected = codec.decode(codec.merge(codec.frPyObjects(polygons, 20, 30)))
    assert np.array_equal(masks[0].numpy(), expected.astype(bool)) and masks[0].sum() > 100
    assert np.array_equal(masks[1].numpy(), disc.astype(bool))
    assert masks[2].nonzero().tolist() == [[r, 0] for r in range(5, 15)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 5}, "annotation 1: category 5 is not in the list"),
        ({"bbox": [1, 2, 3]}, r"annotation 1: bbox \[1, 2, 3\] is not"),
        ({"bbox": [1, float("nan"), 3, 4]}, "annotation 1: box .* is not finite"),
        ({"id": "x"}, "annotation 'x': annotation id must be an integer"),
    ],
)
def test_bad_annotations_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_coco(tmp_path, "all", coco(images((9, 9)), [annotation(1, 1, 3, [0, 0, 2, 2]) | change], CATEGORIES))
    with pytest.raises(DetrkitError, match=rf"instances_all\.json: {message}"):
        open_dataset(tmp_path)


def test_bad_json_is_named_with_its_line(tmp_path: Path) -> None:
    file = write_coco(tmp_path, "all", coco(images((9, 9)), [], CATEGORIES))
    file.write_text('{"images": [],\n "categories": [}')
    with pytest.raises(DetrkitError, match=r"instances_all\.json: malformed JSON in line 2, column 17"):
        open_dataset(tmp_path)
    file.write_text('{"images": []}')
    with pytest.raises(DetrkitError, match="not a COCO json"):
        open_dataset(tmp_path)
    file.write_text(json.dumps(coco([], [], CATEGORIES)))
    with pytest.raises(DetrkitError, match="has no image"):
        open_dataset(tmp_path)


def test_masks_that_are_not_there(pets: Path) -> None:
    with pytest.raises(DetrkitError, match="annotation 1: has no segmentation"):
        open_dataset(pets, masks=True)


def test_wrong_size_names_file_and_both_sizes(pets: Path) -> None:
    picture(20, 31).save(pets / "train2017" / "1.png")
    dataset = open_dataset(pets)
    with pytest.raises(DetrkitError, match=r"1\.png: the image is 31x20 pixels but its annotations say 30x20"):
        dataset[0]


def test_no_image_is_decoded_when_opening(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image, "open", refuse)
    assert len(open_dataset(pets)) == 3


def test_splits(tmp_path: Path) -> None:
    for split in ("train2014", "train2017", "val2017"):
        write_coco(tmp_path, split, coco(images((9, 9)), [], CATEGORIES))
    with pytest.raises(DetrkitError, match="splits train2014, train2017, val2017: say which"):
        open_dataset(tmp_path)
    with pytest.raises(DetrkitError, match="'train' can mean train2014 or train2017"):
        open_dataset(tmp_path, split="train")
    with pytest.raises(DetrkitError, match="no split 'test'; it has train2014"):
        open_dataset(tmp_path, split="test")
    assert open_dataset(tmp_path, split="val").split == "val2017"
    assert open_dataset(tmp_path, split="train2014").split == "train2014"


def test_json_files_in_other_places(tmp_path: Path) -> None:
    value = coco(images((9, 9)), [annotation(1, 1, 3, [0, 0, 2, 2])], CATEGORIES)
    # Roboflow: the json in each split's folder, beside its images; "val" is called valid
    for split in ("train", "valid"):
        folder = tmp_path / "robo" / split
        folder.mkdir(parents=True)
        (folder / "_annotations.coco.json").write_text(json.dumps(value))
        picture(9, 9).save(folder / "1.png")
    assert open_dataset(tmp_path / "robo", split="val").split == "valid"
    assert len(open_dataset(tmp_path / "robo" / "train")[0].boxes) == 1
    # CPPE-5: annotations/train.json and images/
    cppe = tmp_path / "cppe"
    (cppe / "annotations").mkdir(parents=True)
    (cppe / "images").mkdir()
    (cppe / "annotations" / "train.json").write_text(json.dumps(value))
    picture(9, 9).save(cppe / "images" / "1.png")
    assert open_dataset(cppe, split="train")[0].image.shape == (3, 9, 9)
    assert open_dataset(cppe / "annotations" / "train.json").name == "cppe"
    # images that are nowhere
    (cppe / "images" / "1.png").unlink()
    with pytest.raises(DetrkitError, match=r"images such as 1\.png were found in none of"):
        open_dataset(cppe)


def test_nothing_recognised(tmp_path: Path, pets: Path) -> None:
    with pytest.raises(DetrkitError, match="no such file or folder"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(DetrkitError, match=r"no layout recognized; expected COCO .* VOC .* YOLO"):
        open_dataset(tmp_path / "bare")
    with pytest.raises(DetrkitError, match="does not have the layout voc"):
        open_dataset(pets, layout="voc")
    with pytest.raises(
        DetrkitError, match="unknown layout 'kitti': choose one of coco, coco-panoptic, voc, yolo, parquet"
    ):
        open_dataset(pets, layout="kitti")  # type: ignore[arg-type]
