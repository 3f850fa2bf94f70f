from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from detrkit.data import Dataset, open_dataset
from detrkit.data.tools.convert import convert
from detrkit.data.tools.shapes import write_shapes
from detrkit.utils.errors import DetrkitError
from helpers.datasets import coco, picture, write_coco


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Fractional boxes, a crowd region, an image without objects and one box without area; ids with gaps."""
    rng = np.random.default_rng(0)
    sizes = [(97, 131), (480, 641), (33, 57)]
    images = [{"id": 10 * k + 5, "file_name": f"im {k}.jpg", "height": h, "width": w} for k, (h, w) in enumerate(sizes)]
    annotations = []
    for image in images[:2]:
        for _ in range(20):
            x, y = rng.uniform(0, [image["width"] - 5, image["height"] - 5])
            w, h = rng.uniform(1, [image["width"] - x, image["height"] - y])
            category = int(rng.choice([2, 40, 90]))
            box = [round(v, 2) for v in (x, y, w, h)]
            annotations.append(
                {"id": len(annotations) + 100, "image_id": image["id"], "category_id": category, "bbox": box}
            )
    annotations[3]["iscrowd"] = 1
    annotations[4]["bbox"][2] = 0
    value = coco(images, annotations, {90: "a & b", 40: "käse", 2: "zoo"})
    write_coco(tmp_path / "source", "train2017", value)
    return tmp_path / "source"


def same_objects(a: Dataset, b: Dataset, *, relative: float, crowd: bool = True) -> None:
    assert a.class_names == b.class_names
    assert [r.file.name for r in a.records] == [r.file.name for r in b.records]
    for x, y in zip(a.records, b.records, strict=True):
        keep = np.ones(len(x.labels), bool) if crowd else ~x.crowd
        assert (x.height, x.width) == (y.height, y.width)
        np.testing.assert_allclose(y.boxes / y.width, x.boxes[keep] / x.width, rtol=0, atol=relative)
        assert y.labels.tolist() == x.labels[keep].tolist()
        assert y.crowd.tolist() == x.crowd[keep].tolist()
        assert y.file.read_bytes() == x.file.read_bytes()


def test_coco_voc_coco(source: Path, tmp_path: Path) -> None:
    (done,) = convert(source, tmp_path / "voc", to="voc")
    assert (done.images, done.objects, done.dropped, done.lost_crowd) == (3, 39, 1, 0)
    original = open_dataset(source)
    voc = open_dataset(tmp_path / "voc", split="train")
    assert voc.layout == "voc"
    same_objects(original, voc, relative=0)
    convert(tmp_path / "voc", tmp_path / "back", to="coco")
    back = open_dataset(tmp_path / "back")
    assert back.layout == "coco" and back.classes.ids == (1, 2, 3)
    same_objects(original, back, relative=1e-14)  # xywh to xyxy and back


def test_coco_yolo_coco(source: Path, tmp_path: Path) -> None:
    (done,) = convert(source, tmp_path / "yolo", to="yolo")
    assert (done.objects, done.dropped, done.lost_crowd) == (38, 1, 1)
    original = open_dataset(source)
    yolo = open_dataset(tmp_path / "yolo", split="train")
    assert yolo.layout == "yolo" and yolo.dropped == yolo.clamped == 0
    same_objects(original, yolo, relative=1e-6, crowd=False)
    convert(tmp_path / "yolo", tmp_path / "back", to="coco")
    same_objects(yolo, open_dataset(tmp_path / "back"), relative=1e-14)


def test_coco_to_coco_keeps_ids_areas_and_segmentations(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", images={"train": 3, "val": 2}, sides=(32, 48))
    convert(shapes, tmp_path / "copy", to="coco")
    for split in ("train2017", "val2017"):
        old, new = (
            json.loads((r / f"annotations/instances_{split}.json").read_text()) for r in (shapes, tmp_path / "copy")
        )
        key = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
        assert [[a[k] for k in key] for a in old["annotations"]] == [[a[k] for k in key] for a in new["annotations"]]
        assert [i["id"] for i in old["images"]] == [i["id"] for i in new["images"]]


def test_only_one_split(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", images={"train": 2, "val": 1}, sides=(32, 48))
    (done,) = convert(shapes, tmp_path / "voc", to="voc", split="val")
    assert done.name == "val2017" and len(open_dataset(tmp_path / "voc")) == 1


@pytest.mark.parametrize("how", ["copy", "hardlink", "symlink"])
def test_images_copied_or_linked(source: Path, tmp_path: Path, how: str) -> None:
    convert(source, tmp_path / "out", to="yolo", images=how)  # type: ignore[arg-type]
    new, old = tmp_path / "out/images/train2017/im 0.jpg", source / "train2017/im 0.jpg"
    assert new.read_bytes() == old.read_bytes()
    assert new.is_symlink() == (how == "symlink")
    assert os.path.samefile(new, old) == (how != "copy")


def test_images_of_the_same_name(tmp_path: Path) -> None:
    """Two folders with a 1.jpg each: VOC has one folder, so that one is renamed."""
    for split, size in (("train", 10), ("val", 12)):
        image = {"id": 1, "file_name": "1.jpg", "height": size, "width": size}
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, size, size]}
        write_coco(tmp_path / "source", split, coco([image], [box], {1: "a"}))
    convert(tmp_path / "source", tmp_path / "voc", to="voc")
    sizes = {s: open_dataset(tmp_path / "voc", split=s)[0].boxes.tolist() for s in ("train", "val")}
    assert sizes == {"train": [[0, 0, 10, 10]], "val": [[0, 0, 12, 12]]}
    assert sorted(f.name for f in (tmp_path / "voc/JPEGImages").iterdir()) == ["1.jpg", "1_2.jpg"]


def test_nothing_is_left_after_an_error(source: Path, tmp_path: Path) -> None:
    (source / "train2017/im 2.jpg").unlink()
    with pytest.raises(DetrkitError, match=r"im 2\.jpg: image file is missing"):
        convert(source, tmp_path / "out", to="voc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_refusals(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", to="voc")
    with pytest.raises(DetrkitError, match="exists already"):
        convert(source, tmp_path / "out", to="yolo")
    convert(source, tmp_path / "out", to="yolo", force=True)
    assert open_dataset(tmp_path / "out").layout == "yolo" and not (tmp_path / "out/JPEGImages").exists()
    for inside in (source, source.parent):
        with pytest.raises(DetrkitError, match="would replace the source"):
            convert(source, inside, to="voc", force=True)
    with pytest.raises(DetrkitError, match="layout 'kitti'"):
        convert(source, tmp_path / "x", to="kitti")  # type: ignore[arg-type]
    with pytest.raises(DetrkitError, match="images="):
        convert(source, tmp_path / "x", to="voc", images="move")  # type: ignore[arg-type]


def test_splits_with_different_classes(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "1.jpg", "height": 9, "width": 9}
    write_coco(tmp_path / "source", "train", coco([image], [], {1: "a"}))
    write_coco(tmp_path / "source", "val", coco([image], [], {1: "b"}))
    with pytest.raises(DetrkitError, match="split val has other classes than train"):
        convert(tmp_path / "source", tmp_path / "out", to="yolo")
    convert(tmp_path / "source", tmp_path / "out", to="coco")
    assert open_dataset(tmp_path / "out", split="val").class_names == ["b"]


def test_yolo_needs_the_size_of_the_file(source: Path, tmp_path: Path) -> None:
    picture(99, 99).save(source / "train2017/im 0.jpg")
    with pytest.raises(DetrkitError, match=r"im 0\.jpg: the image is 99x99 pixels but its annotations say 131x97"):
        convert(source, tmp_path / "out", to="yolo")
