from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detrkit.data.tools.check import Report, check
from detrkit.data.tools.convert import convert
from detrkit.utils.errors import DetrkitError
from helpers.datasets import coco, picture, write_coco


def found(report: Report) -> set[tuple[str, str, str]]:
    """(severity, file name, id) of every fault."""
    return {(f.severity, f.file.name, f.id) for f in report.faults}


def reason(report: Report, id: str) -> str:
    (fault,) = [f for f in report.faults if f.id == id]
    return fault.reason


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 100, "width": 120} for k in range(1, 8)]

    def a(id: int, image: int, category: int, *bbox: float, **more: Any) -> dict[str, Any]:
        return {"id": id, "image_id": image, "category_id": category, "bbox": list(bbox)} | more

    annotations = [
        a(1, 1, 1, 0, 0, 20, 20),
        a(2, 1, 1, 10, 10, 0, 5),  # zero area
        a(3, 1, 1, 10, 10, -4, 5),  # negative
        a(4, 1, 1, float("nan"), 10, 4, 5),
        a(5, 1, 2, 110, 90, 20, 20),  # leaves the image
        a(6, 1, 9, 0, 0, 5, 5),  # no such category
        a(1, 1, 1, 3, 3, 5, 5),  # id used twice
        a(8, 77, 1, 0, 0, 5, 5),  # no such image
        a(9, 1, 1, 0, 0, 20, 20),  # same box as 1
        a(10, 1, 2, 0, 0, 20, 20),  # same box, another class
        a(11, 2, 1, 0, 0, 50, 50, iscrowd=1),
        a(12, 6, 2, 0, 0, 100, 100),
        a(13, 6, 2, 130, 0, 10, 10),  # wholly outside
        a(14, 6, 2, 0, 0, 40, 40, area=12.0),
        a(15, 6, 2, 20, 0, 100.04, 5),  # 0.04 pixel too wide: rounding, no fault
    ]
    file = write_coco(tmp_path, "train", coco(images, annotations, {1: "a", 2: "b", 3: "never"}))
    folder = tmp_path / "train"
    (folder / "3.jpg").unlink()
    (folder / "4.jpg").write_bytes((folder / "4.jpg").read_bytes()[:900])
    picture(100, 121).save(folder / "5.jpg")
    (folder / "7.jpg").write_bytes(b"no image")
    picture(5, 5).save(folder / "extra.jpg")
    assert file.is_file()
    return tmp_path


def test_every_planted_fault_is_found(faulty: Path) -> None:
    report = check(faulty, decode=True)
    json_name = "instances_train.json"
    assert found(report) == {
        ("warning", json_name, "annotation 2"),
        ("warning", json_name, "annotation 3"),
        ("error", json_name, "annotation 4"),
        ("warning", json_name, "annotation 5"),
        ("error", json_name, "annotation 6"),
        ("error", json_name, "annotation 1"),
        ("warning", json_name, "annotation 8"),
        ("warning", json_name, "annotation 9"),
        ("info", json_name, "annotation 10"),
        ("warning", json_name, "annotation 13"),
        ("error", "3.jpg", "image 3"),
        ("error", "4.jpg", "image 4"),
        ("error", "5.jpg", "image 5"),
        ("error", "7.jpg", "image 7"),
        ("info", faulty.name, "split train"),
        ("info", "train", ""),
    }
    assert not report.ok
    assert "[10, 10, 10, 15] (xyxy) of image 1.jpg has zero area" in reason(report, "annotation 2")
    assert "negative" in reason(report, "annotation 3")
    assert "leaves image 1.jpg of 120x100 pixels: clamped" in reason(report, "annotation 5")
    assert "outside the image" in reason(report, "annotation 13")
    assert "image 77 is not in the list" in reason(report, "annotation 8")
    assert reason(report, "image 3") == "image file is missing"
    assert "truncated" in reason(report, "image 4")
    assert "is 121x100 pixels but its annotations say 120x100" in reason(report, "image 5")
    infos = [f.reason for f in report.of("info") if f.id == "split train"]
    assert infos == [
        "5 images without objects: 2.jpg, 3.jpg, 4.jpg, 5.jpg, 7.jpg",
        "1 crowd regions: left out of training, ignored in evaluation",
        "1 classes without objects: never",
    ]


def test_headers_alone_miss_only_the_truncated_file(faulty: Path) -> None:
    whole, quick = (found(check(faulty, decode=d)) for d in (True, False))
    assert whole - quick == {("error", "4.jpg", "image 4")} and not quick - whole


def test_counts(faulty: Path) -> None:
    (summary,) = check(faulty).splits
    assert (summary.images, summary.objects, summary.crowd, summary.empty) == (7, 7, 1, 5)
    assert (summary.dropped, summary.clamped) == (3, 1)
    rows = {c.name: (c.objects, c.images, c.small, c.medium, c.large) for c in summary.classes}
    # b: 10x10 left of annotation 5, 20x20, 100x100, area 12 as annotated, 100x5
    assert rows == {"a": (2, 1, 2, 0, 0), "b": (5, 2, 4, 0, 1), "never": (0, 0, 0, 0, 0)}


def test_a_clean_dataset_has_no_faults(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "1.jpg", "height": 10, "width": 10}
    value = coco([image], [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}], {1: "a"})
    write_coco(tmp_path, "train", value)
    report = check(tmp_path, decode=True)
    assert report.ok and report.faults == []


def test_malformed_json_is_one_line(tmp_path: Path) -> None:
    file = write_coco(tmp_path, "train", coco([], [], {1: "a"}))
    file.write_text("{")
    report = check(tmp_path)
    assert len(report.faults) == 1 and "malformed JSON" in report.faults[0].reason and not report.ok
    with pytest.raises(DetrkitError, match="no split 'val'"):
        check(tmp_path, "val")


def test_the_same_image_in_training_and_validation(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "1.jpg", "height": 10, "width": 10}
    value = coco([image], [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10]}], {1: "a"})
    for split in ("train", "val"):
        write_coco(tmp_path, split, value, folder="images")
    (fault,) = check(tmp_path).faults
    assert (fault.severity, fault.id) == (
        "warning",
        "split train",
    ) and "1 images are also in val: 1.jpg" in fault.reason


@pytest.mark.parametrize("layout", ["coco", "voc", "yolo", "parquet"])
def test_hidden_files_are_nothing(tmp_path: Path, layout: Any) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 9], "area": 90, "iscrowd": 0}
    images = [{"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}]
    file = write_coco(tmp_path / "first", "train", coco(images, [annotation], {1: "cat"}))
    file.rename(file.with_name("train.json"))  # found by its folder alone
    root = tmp_path / layout
    convert(tmp_path / "first", root, to=layout)
    if layout == "coco":
        root = tmp_path / "first"
    for path in [*root.rglob("*")]:
        if path.is_file():  # as macOS writes beside every file on foreign disks
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\xff")
    report = check(root, decode=True)
    assert [(s.images, s.objects) for s in report.splits] == [(1, 1)]
    assert not report.faults


def test_yolo_and_voc_faults(tmp_path: Path) -> None:
    yolo = tmp_path / "yolo"
    for folder in ("images/train", "labels/train"):
        (yolo / folder).mkdir(parents=True)
    picture(10, 10).save(yolo / "images/train/a.jpg")
    (yolo / "images/train/b.jpg").write_bytes(b"")
    (yolo / "labels/train/a.txt").write_text("0 0.5 0.5 1 1\n7 0.5 0.5 1 1\nx\n0 0.5 0.5 0 0.5\n")
    (yolo / "labels/train/zz.txt").write_text("")
    (yolo / "data.yaml").write_text("train: images/train\nnames: [one]\n")
    report = check(yolo)
    assert found(report) == {
        ("error", "b.jpg", ""),
        ("error", "a.txt", "line 2"),
        ("error", "a.txt", "line 3"),
        ("warning", "a.txt", "line 4"),
        ("warning", "zz.txt", ""),
        ("info", "train", ""),  # b.jpg
    }
    voc = tmp_path / "voc"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (voc / folder).mkdir(parents=True)
    picture(10, 10).save(voc / "JPEGImages/a.jpg")
    (voc / "Annotations/a.xml").write_text("<annotation><object><name>x</name></object></annotation>")
    (voc / "Annotations/b.xml").write_text("<annotation>")
    (voc / "Annotations/c.xml").write_text("<annotation/>")
    (voc / "Annotations/unused.xml").write_text("<annotation/>")
    (voc / "ImageSets/Main/train.txt").write_text("a\nb\nc\nd\na\n")
    report = check(voc)
    assert found(report) == {
        ("error", "a.xml", "object 1"),
        ("error", "b.xml", "line 1"),
        ("error", "b.xml", "image b"),
        ("error", "c.xml", "image c"),
        ("error", "d.xml", ""),
        ("error", "d.xml", "image d"),
        ("error", "train.txt", "line 5"),
        ("info", "voc", "split train"),
        ("info", "Annotations", ""),
    }
