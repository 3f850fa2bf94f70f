"""Images that are byte for byte the same: within a split, with the same or other objects, and in two splits."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from detrkit.data.readers import Findings
from detrkit.data.tools import check_duplicates
from detrkit.data.tools.check import check
from detrkit.data.tools.check_duplicates import equal_files
from helpers.datasets import coco, write_coco


def write(root: Path, split: str, names: list[str], boxes: dict[str, list[list[int]]] | None = None) -> None:
    """A COCO split of images of 20 x 30 pixels, with one box or those stated."""
    numbers = range(1, len(names) + 1)
    images = [
        {"id": k + 100 * len(split), "file_name": name, "height": 20, "width": 30}
        for k, name in zip(numbers, names, strict=True)
    ]
    annotations: list[dict[str, Any]] = []
    for image in images:
        for box in (boxes or {}).get(image["file_name"], [[1, 2, 8, 8]]):
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], "category_id": 1, "bbox": box})
    write_coco(root, split, coco(images, annotations, {1: "a"}))


def warnings(root: Path) -> dict[str, list[str]]:
    """Warnings of each split."""
    report = check(root)
    assert report.ok
    told: dict[str, list[str]] = {}
    for fault in report.of("warning"):
        told.setdefault(fault.id, []).append(fault.reason)
    return told


def test_within_a_split_apart_by_their_objects(tmp_path: Path) -> None:
    write(tmp_path, "train", ["a.png", "b.png", "c.png", "d.png"], {"d.png": [[1, 2, 8, 8], [3, 3, 9, 9]]})
    for name in ("b.png", "d.png"):
        shutil.copy(tmp_path / "train/a.png", tmp_path / "train" / name)
    assert warnings(tmp_path) == {
        "split train": [
            "1 images are byte for byte another one, with the same objects: train/b.png = train/a.png",
            "1 images are byte for byte another one, but have other objects (train/d.png = train/a.png: 2 and 1 "
            "objects): keep the right one of each",
        ]
    }


def test_the_order_of_the_objects_does_not_count(tmp_path: Path) -> None:
    boxes = [[1, 2, 8, 8], [3, 3, 9, 9]]
    write(tmp_path, "train", ["a.png", "b.png"], {"a.png": boxes, "b.png": boxes[::-1]})
    shutil.copy(tmp_path / "train/a.png", tmp_path / "train/b.png")
    (reason,) = warnings(tmp_path)["split train"]
    assert "with the same objects" in reason


def test_in_two_splits(tmp_path: Path) -> None:
    write(tmp_path, "train", ["a.png", "b.png", "c.png"])
    write(tmp_path, "val", ["v.png", "w.png", "x.png"])
    write(tmp_path, "test", ["t.png"])
    shutil.copy(tmp_path / "train/b.png", tmp_path / "val/v.png")
    shutil.copy(tmp_path / "train/c.png", tmp_path / "val/x.png")
    shutil.copy(tmp_path / "val/w.png", tmp_path / "test/t.png")
    too_high = "will be too high; remove them from one of the two"
    assert warnings(tmp_path) == {
        "split val": [
            "2 of 3 images are also in train, byte for byte (val/v.png = train/b.png, val/x.png = train/c.png): "
            f"metrics on val {too_high}"
        ],
        "split test": [
            f"1 of 1 images are also in val, byte for byte (test/t.png = val/w.png): metrics on test {too_high}"
        ],
    }


def test_one_file_of_two_splits_is_told_once(tmp_path: Path) -> None:
    write(tmp_path, "train", ["a.png"])
    write(tmp_path, "val", ["v.png"])
    json = (tmp_path / "annotations/instances_val.json").read_text()
    (tmp_path / "annotations/instances_val.json").write_text(json.replace("v.png", "../train/a.png"))
    assert warnings(tmp_path) == {"split train": ["1 images are also in val: a.png"]}


def test_only_files_of_equal_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {"a": b"x" * 9000, "b": b"x" * 9000, "c": b"y" + b"x" * 8999, "d": b"x" * 9001, "e": b"z" * 9000}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    digested: list[str] = []
    digest = check_duplicates._digest

    def counting(file: Path) -> bytes:
        digested.append(file.name)
        return digest(file)

    monkeypatch.setattr(check_duplicates, "_digest", counting)
    files = [tmp_path / name for name in [*contents, "missing"]]
    assert equal_files(files) == [[tmp_path / "a", tmp_path / "b"]]
    assert sorted(digested) == ["a", "b", "c"]  # d has another size, e differs in the middle


def test_a_thousand_equal_images_are_one_line(tmp_path: Path) -> None:
    names = [f"{k}.png" for k in range(300)]
    write(tmp_path, "train", names)
    write(tmp_path, "val", ["v.png"])
    for name in names[1:]:
        shutil.copy(tmp_path / "train/0.png", tmp_path / "train" / name)
    shutil.copy(tmp_path / "train/0.png", tmp_path / "val/v.png")
    told = warnings(tmp_path)
    assert told["split train"][0].startswith("299 images are byte for byte another one, with the same objects: ")
    assert len(told["split val"]) == 1 and max(len(line) for lines in told.values() for line in lines) < 300


def test_many_equal_images_in_two_splits_take_no_time_each_with_each(tmp_path: Path) -> None:
    """2,000 black frames in each of two splits are four million pairs, of which none needs to be looked at."""

    class Counted(type(tmp_path)):  # type: ignore[misc]
        compared = 0

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return super().__eq__(other)

        __hash__ = type(tmp_path).__hash__

    box, label, crowd = np.array([[1.0, 2.0, 8.0, 8.0]]), np.array([0]), np.array([False])

    def record(split: str, k: int) -> SimpleNamespace:
        return SimpleNamespace(file=Counted(tmp_path / split / f"{k}.png"), boxes=box, labels=label, crowd=crowd)

    records: dict[str, Any] = {split: [record(split, k) for k in range(2000)] for split in ("train", "val")}
    for split, listed in records.items():
        (tmp_path / split).mkdir()
        for one in listed:
            one.file.write_bytes(b"x" * 100)
    findings = Findings(strict=False)
    check_duplicates.find_duplicates(records, tmp_path, findings)
    assert [fault.reason.split(" images")[0] for fault in findings.faults][-1] == "2000 of 2000"
    assert Counted.compared < 50_000
