"""What `check` says of the objects as a whole: another convention, names, small objects, few examples; the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detrkit.cli.data import DataCheck, DataPreview
from detrkit.data import open_dataset
from detrkit.data.tools.check import Report, check
from detrkit.data.tools.shapes import write_shapes
from detrkit.data.tools.verdict import verdict
from detrkit.engine.facts import choose_config
from helpers.datasets import coco, picture, write_coco

CORNERS = [[35 + k, 25 + k, 60 + k, 50 + k] for k in range(12)]  # xyxy in images of 64 x 80


def write(root: Path, boxes: list[list[float]], split: str = "train", classes: dict[int, str] | None = None) -> None:
    """One image of 64 x 80 pixels for each box."""
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 64, "width": 80} for k in range(1, len(boxes) + 1)]
    annotations = [{"id": k, "image_id": k, "category_id": 1, "bbox": box} for k, box in enumerate(boxes, 1)]
    write_coco(root, split, coco(images, annotations, classes or {1: "a"}))


def of_split(report: Report, id: str = "split train") -> list[str]:
    return [fault.reason for fault in report.of("warning") if fault.id == id]


def test_corners_where_sides_are_expected(tmp_path: Path) -> None:
    write(tmp_path, CORNERS)
    reason = "12 of 12 boxes leave their image: likely corners [x1, y1, x2, y2] where [x, y, width, height] is expected"
    assert of_split(check(tmp_path)) == [f"{reason}: so read, all fit"]
    write(tmp_path, [[x, y, x1 - x, y1 - y] for x, y, x1, y1 in CORNERS])
    assert of_split(check(tmp_path)) == []
    write(tmp_path, [[x, y, 200, 200] for x, y, _, _ in CORNERS])
    assert of_split(check(tmp_path)) == [
        "12 of 12 boxes leave their image: likely another convention, or images that were resized after they were "
        "annotated"
    ]


def test_sides_where_corners_are_expected(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = ["filename,class,xmin,ymin,xmax,ymax"]
    for k, (x, y, x1, y1) in enumerate(CORNERS):
        picture(64, 80, k).save(tmp_path / "images" / f"{k}.jpg")
        rows.append(f"{k}.jpg,a,{x},{y},{x1 - x},{y1 - y}")
    (tmp_path / "train.csv").write_text("\n".join([*rows, "0.jpg,a,1,1,9,9"]))
    assert of_split(check(tmp_path)) == [
        "12 of 13 boxes end before they begin: likely [x, y, width, height] written where corners are expected"
    ]


def test_names_that_differ_by_case(tmp_path: Path) -> None:
    write(tmp_path, [[1, 1, 9, 9]], classes={1: "red cell", 2: "Red_Cell", 3: "cell"})
    assert of_split(check(tmp_path), "classes") == [
        "the names 'red cell' and 'Red_Cell' differ only by case or blanks: two classes to a model; give them one name"
    ]


def test_a_split_without_objects(tmp_path: Path) -> None:
    write(tmp_path, [[1, 1, 9, 9]])
    write(tmp_path, [[1, 1, 9, 9]], "val")
    for split, severity, reason in (
        ("val", "warning", "has no object: every image is background, and AP says nothing"),
        ("train", "error", "has no object: there is nothing to learn"),
    ):
        file = tmp_path / f"annotations/instances_{split}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
        found = [fault.reason for fault in check(tmp_path).of(severity) if fault.id == f"split {split}"]
        assert reason in found


def test_hints_count_what_is_hard_to_learn(tmp_path: Path) -> None:
    # images of 64 x 80 pixels become 256 x 320: objects of 1.9 pixels 7.6, of 2 pixels 8
    write(tmp_path, [[1, 1, 1.9, 30]] * 3 + [[1, 1, 30, 2]] * 4)
    assert check(tmp_path).hints == [
        "split train: fewer than 10 objects of 1 class (a 7): hardly enough to learn from",
        "split train: of 7 objects these have a side below 8 pixels in the model's input, where little of them is left"
        ": 3 at --size 256",
    ]
    write(tmp_path, [[1, 1, 2, 30]] * 10)
    assert check(tmp_path).hints == []
    write(tmp_path, [[1, 1, 1, 1]], "val")  # is not learned from
    assert check(tmp_path).hints == []


def turned(file: Path, seed: int) -> None:
    """An image of 80 x 64 (height x width) pixels, which EXIF turns to 64 x 80."""
    image = picture(80, 64, seed)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, exif=exif)


def test_images_that_exif_turns_without_a_size_to_tell(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for k in range(2):
        turned(tmp_path / "images" / f"{k}.jpg", k)
    table = tmp_path / "train.csv"
    table.write_text("filename,class,xmin,ymin,xmax,ymax\n0.jpg,a,10,20,40,50\n1.jpg,a,10,20,40,50\n")
    (info,) = [f.reason for f in check(tmp_path).of("info") if "EXIF" in f.reason]
    assert info.startswith("2 images have an EXIF orientation that no annotation shows (0.jpg, 1.jpg): turned upright")
    # below the upright image of 64 rows, but inside the stored one of 80
    table.write_text("filename,class,xmin,ymin,xmax,ymax\n0.jpg,a,10,20,40,50\n1.jpg,a,10,20,40,75\n")
    reasons = of_split(check(tmp_path))
    assert reasons == [
        "1 images are turned upright as EXIF says, but their boxes fit only the image as stored (1.jpg): state width "
        "and height in the annotations, or draw them anew"
    ]
    table.write_text("filename,width,height,class,xmin,ymin,xmax,ymax\n1.jpg,64,80,a,10,20,40,75\n")
    assert open_dataset(tmp_path, split="train").records[0].height == 80 and of_split(check(tmp_path)) == []


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "my shapes", images={"train": 6, "val": 4}, classes=2)


def test_the_verdict_and_the_next_command(
    shapes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shapes.parent)

    def ends(split: str | None = None) -> list[str]:
        status = DataCheck(Path("my shapes"), split=split).run()
        lines = capsys.readouterr().out.splitlines()
        (at,) = [k for k, line in enumerate(lines) if "errors, " in line]
        return [str(status), *lines[at + 1 :]]

    count = sum(len(r.boxes) for r in open_dataset(shapes, split="train").records)
    assert ends() == [
        "0",
        f"ready to train: 6 images with {count} objects, 4 images to evaluate on, 2 classes",
        "next: detrkit data preview 'my shapes'",
        "next: detrkit train 'my shapes'",
    ]
    assert ends("train") == [
        "0",
        f"split train2017 can be used: 6 images with {count} objects, 2 classes",
        "next: detrkit data preview 'my shapes' --split train",
    ]
    next((shapes / "train2017").iterdir()).write_bytes(b"no image")
    assert ends()[:2] == [
        "1",
        "not ready to train: correct 1 error first, or leave these images out with `detrkit train ... --unusable skip`",
    ]
    for file in shapes.glob("annotations/*.json"):
        file.write_text("{")
    assert ends() == ["1", "not ready to train: correct 2 errors first"]


@pytest.mark.parametrize(
    ("splits", "options", "words"),
    [
        (["train", "val", "test"], [], "2 images to evaluate on"),
        (["train", "test"], ["--train-split", "train[20%:]", "--val-split", "train[:20%]"], "no split to evaluate on"),
        (["train"], ["--train-split", "train[20%:]", "--val-split", "train[:20%]"], "no split to evaluate on"),
        (["cells"], ["--train-split", "cells[20%:]", "--val-split", "cells[:20%]"], "no split to evaluate on"),
    ],
)
def test_the_options_of_the_splits_that_there_are(
    tmp_path: Path, splits: list[str], options: list[str], words: str
) -> None:
    for k, split in enumerate(splits):
        write(tmp_path, [[1 + k, 1, 9, 9], [2, 2, 9, 9]], split)
        for name in ("1.jpg", "2.jpg"):
            picture(64, 80, 10 * k + int(name[0])).save(tmp_path / split / name)
    result = verdict(check(tmp_path))
    assert result.train_options == options and result.can_preview
    assert result.sentence == f"ready to train: 2 images with 2 objects, {words}, 1 class"
    advice = "; splits of coco are instances_train.json and instances_val.json in annotations/"
    assert result.advice.endswith(advice) if "no split" in words else result.advice == ""


def test_many_classes_are_a_short_table_and_one_fault_of_many_files_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, [[1, 1, 9, 9]] * 5, classes={k: f"class {k}" for k in range(1, 41)})
    rng = np.random.default_rng(0)
    for k in range(1, 6):
        (tmp_path / f"train/{k}.jpg").write_bytes(rng.bytes(50))
    assert DataCheck(tmp_path).run() == 1
    out = capsys.readouterr().out
    assert "28 more: --limit 0" in out and "class 20" not in out
    (line,) = [line for line in out.splitlines() if line.startswith("error ")]
    assert line.startswith("error 5 files: not an image that can be read") and line.endswith(
        "(1.jpg, 2.jpg, 3.jpg, ...)"
    )
    assert DataCheck(tmp_path, limit=0).run() == 1
    assert "class 20" in capsys.readouterr().out


def test_preview_has_the_size_of_a_training(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert DataPreview((shapes,), out=out, split="val", count=1, variants=1).run() == 0
    size = choose_config(shapes).data.size
    line, path = capsys.readouterr().out.splitlines()
    assert line == f"images of {size} pixels, as `detrkit train` would choose here; --size shows another"
    assert path == str(out) and size != 800


def test_preview_takes_the_training_split(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert DataPreview((shapes,), out=out, size=64, count=1, variants=1).run() == 0
    assert capsys.readouterr().out.splitlines() == [
        "split train2017 (6 images); --split shows another: val2017",
        str(out),
    ]
