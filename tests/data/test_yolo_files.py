"""YOLO as other tools write it: columns, links, lists, names, labels that are elsewhere."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from detrkit.data import open_dataset
from detrkit.data.tools.check import check
from detrkit.utils.errors import DetrkitError
from helpers.datasets import picture

# 30x40 pixels: cx cy w h of [16, 10.5, 24, 19.5]
BOX = "0.5 0.5 0.2 0.3"
PIXELS = [[16, 10.5, 24, 19.5]]


def image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture(30, 40, zlib.crc32(file.name.encode())).save(file)  # no two are the same


def text(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of one class."""
    root = tmp_path / "set"
    for name in "ab":
        image(root / f"images/train/{name}.png")
        text(root / f"labels/train/{name}.txt", f"0 {BOX}\n")
    text(root / "data.yaml", "train: images/train\nnames: [cat]\n")
    return root


def told(path: Path, severity: str) -> list[tuple[str, str, str]]:
    return [(fault.file.name, fault.id, fault.reason) for fault in check(path).of(severity)]


def boxes(root: Path) -> list[list[list[float]]]:
    return [record.boxes.round(6).tolist() for record in open_dataset(root, split="train").records]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (f"0 {BOX} 0.93", f"0 {BOX}", [PIXELS, PIXELS]),
        (f"0 {BOX} 0.93 1", f"0 {BOX} 0.5 17", [PIXELS, PIXELS]),
        # one line with a fraction at the end: all are triangles
        (f"0 {BOX} 0.93 1", f"0 {BOX} 0.5 0.75", [[[8, 9, 37.2, 30]], [[8, 9, 20, 22.5]]]),
        # a polygon of more points beside it
        (f"0 {BOX} 0.93 1", "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5", [[[8, 9, 37.2, 30]], [[4, 3, 20, 15]]]),
        # as a box it would leave the image
        ("0 0 0 1 0 1 1", f"0 {BOX}", [[[0, 0, 40, 30]], PIXELS]),
    ],
)
def test_columns_after_the_box(root: Path, a: str, b: str, expected: list[list[list[float]]]) -> None:
    text(root / "labels/train/a.txt", a)
    text(root / "labels/train/b.txt", b)
    assert boxes(root) == expected
    left_out = [fault for fault in told(root, "warning") if "left out" in fault[2]]
    if expected == [PIXELS, PIXELS]:
        count = sum(len(line.split()) > 5 for line in (a, b))
        reason = f"{count} lines have columns after the box, confidence or track id: left out"
        assert left_out == [("a.txt", "line 1", reason)]
    else:
        assert left_out == []


def test_keypoints_follow_the_box(root: Path) -> None:
    text(root / "data.yaml", "train: images/train\nkpt_shape: [4, 3]\nnames: [cat]\n")
    text(root / "labels/train/a.txt", f"0 {BOX}" + " 0.31 0.30 2" * 4)
    assert boxes(root) == [PIXELS, PIXELS] and told(root, "warning") == []
    text(root / "labels/train/b.txt", f"0 {BOX} 0.62 0.29 0.60 0.24 0.62 0.23")
    assert boxes(root) == [PIXELS, PIXELS]
    reason = "has 11 numbers, but with kpt_shape a line has 5 or 17: its box is read (1 such lines)"
    assert told(root, "warning") == [("b.txt", "line 1", reason)]
    text(root / "data.yaml", "train: images/train\nkpt_shape: 17\nnames: [cat]\n")
    assert boxes(root) == [PIXELS, PIXELS] and told(root, "warning")[0][1] == "field kpt_shape"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_of_labels_and_names(root: Path, encoding: str) -> None:
    text(root / "labels/train/a.txt", f"0 {BOX}\r\n0 {BOX}\r\n".encode(encoding))
    text(root / "data.yaml", "train: images/train\r\nnames: [猫]\r\n".encode(encoding))
    assert boxes(root) == [PIXELS * 2, PIXELS] and open_dataset(root).class_names == ["猫"]


def test_check_goes_on_after_a_bad_file(root: Path) -> None:
    for name in "cd":
        image(root / f"images/train/{name}.png")
    text(root / "images/train/._d.png", b"\0\5\26\7Mac OS X")
    text(root / "labels/train/._a.txt", b"\0\5\26\7Mac OS X")
    text(root / "labels/train/a.txt", b"\xff\xfe\x00")
    text(root / "labels/train/b.txt", f"0 {BOX}\n9 {BOX}\n")
    text(root / "labels/train/c.txt", "x")
    (root / "labels/train/d.txt").mkdir()
    assert told(root, "error") == [
        ("a.txt", "", "not UTF-8 text (byte 2); save it as UTF-8"),
        ("b.txt", "line 2", "class 9 is not one of the 1 classes"),
        ("c.txt", "line 1", "not numbers: 'x'"),
        ("d.txt", "", "not a regular file"),
    ]
    assert told(root, "warning") == []


def test_labels_that_are_not_found(root: Path) -> None:
    (root / "images").rename(root / "imgs")
    text(root / "data.yaml", "train: imgs/train\nnames: [cat]\n")
    with pytest.raises(DetrkitError) as error:
        open_dataset(root)
    message = str(error.value)
    assert message.startswith(f"{root}/data.yaml: split train: no label file for any of the 2 images: looked for ")
    assert f"{root}/imgs/train/a.txt" in message
    assert f"2 text files called as the images are in {root}/labels/train: name the folders images/" in message
    text(root / "imgs/train/b.txt", "")
    assert boxes(root) == [[], []]  # said to be without objects


def test_several_folders_called_images(tmp_path: Path) -> None:
    root = tmp_path / "images" / "set"
    image(root / "images/train/images/a.png")
    text(root / "labels/train/images/a.txt", f"0 {BOX}")
    text(root / "data.yaml", "train: images/train\nnames: [cat]\n")
    assert boxes(root) == [PIXELS]
    text(root / "images/train/labels/a.txt", f"0 {BOX}\n0 {BOX}\n")  # the last one counts
    assert boxes(root) == [PIXELS * 2]


def test_folders_behind_links(root: Path, tmp_path: Path) -> None:
    image(tmp_path / "elsewhere/i/c.png")
    text(tmp_path / "elsewhere/l/c.txt", f"0 {BOX}")
    (root / "images/train/more").symlink_to(tmp_path / "elsewhere/i")
    (root / "labels/train/more").symlink_to(tmp_path / "elsewhere/l")
    (root / "images/train/broken.png").symlink_to("nowhere.png")
    (root / "images/train/other").symlink_to("more")  # twice the same folder
    (root / "images/train/cycle").symlink_to("..")
    (root / "images/train/disk").symlink_to("/")
    dataset = open_dataset(root)
    assert [r.file.name for r in dataset.records] == ["a.png", "b.png", "c.png"]
    assert [len(r.boxes) for r in dataset.records] == [1, 1, 1]
    assert told(root, "warning") == [("broken.png", "", "a symbolic link that leads nowhere: left out")]


def test_many_links_to_a_folder_are_read_once(root: Path) -> None:
    """Two links from each of 40 folders to the next are 2^40 paths."""
    for k in range(40):
        (root / f"images/train/{k}").mkdir()
        for name in ("x", "y"):
            (root / f"images/train/{k}/{name}").symlink_to(f"../{k + 1}")
    image(root / "images/train/40/z.png")
    assert len(open_dataset(root)) == 3


def test_lists(root: Path) -> None:
    text(root / "lists/train.txt", "images/train/a.png\n./images/train/b.png\r\n/content/set/images/train/a.png\n")
    text(root / "data.yaml", "path: .\ntrain: lists/train.txt\nnames: [cat]\n")
    assert boxes(root) == [PIXELS, PIXELS]
    reason = "1 lines name an image that a line before names, first a.png (line 1): each image is read once"
    assert told(root, "warning") == [("train.txt", "line 3", reason)]
    text(root / "lists/train.txt", f"images/train/a.png\n\nimages/train/q.png\n{'n' * 5000}\nd\0g\n")
    assert [(name, where) for name, where, _ in told(root, "error")] == [
        ("train.txt", "line 3"),
        ("train.txt", "line 4"),
        ("train.txt", "line 5"),
    ]
    with pytest.raises(DetrkitError, match=r"lists/train\.txt: line 3: image 'images/train/q\.png' is not there"):
        open_dataset(root)


@pytest.mark.parametrize(
    "entry",
    [
        "train: /content/ds/images/train",
        "path: /content/ds\ntrain: images/train",
        r"train: 'C:\Users\me\set\images\train'",
        "path: D:/sets/set\ntrain: images/train",
        "train: ../../set/images/train",
        "train: [/content/ds/images/train/a.png, /content/ds/images/train/b.png]",
    ],
)
def test_paths_of_another_machine(root: Path, entry: str) -> None:
    text(root / "data.yaml", f"{entry}\nnames: [cat]\n")
    assert boxes(root) == [PIXELS, PIXELS]


def test_paths_that_are_nowhere(root: Path) -> None:
    for entry in ("/content/ds/pictures", "a/../../b", "n" * 5000, '"a\\0b"'):
        text(root / "data.yaml", f"train: {entry}\nnames: [cat]\n")
        with pytest.raises(DetrkitError, match=r"data\.yaml, field train: .* does not exist \(looked for"):
            open_dataset(root, split="train")


@pytest.mark.parametrize(
    ("yaml", "severity", "fault"),
    [
        ("nc: 3\nnames: [no, yes]", "warning", ("field nc", "is '3', but names lists 2 classes: names counts")),
        ("names: [cat, dog, cat]", "error", ("class 2", "'cat' is also the name of class 0: give each class its own")),
        ("names: {0: cat, 00: dog}", "error", ("class 0", "is named twice in the field names")),
        ('names: [cat, " "]', "error", ("class 1", "has no name")),
        ('names: [cat, "a\\0b"]', "error", ("class 1", "'a\\x00b' holds a control character")),
    ],
)
def test_names_of_classes(root: Path, yaml: str, severity: str, fault: tuple[str, str]) -> None:
    text(root / "data.yaml", f"train: images/train\n{yaml}\n")
    assert told(root, severity) == [("data.yaml", *fault)]


def test_names_are_the_text_of_the_file(root: Path) -> None:
    text(root / "data.yaml", "train: images/train\nnames: [no, 1e3, 2024-01-01, ~]\n")
    assert open_dataset(root).class_names == ["no", "1e3", "2024-01-01", "~"]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: {-1: cat}", "field names must map class numbers to names, not '-1': 'cat'"),
        (f"names: {{{'9' * 900}: cat}}", "field names must map class numbers"),
        ("names: [[cat]]", "field names must map class numbers"),
        ("names: cat", "field names must list the classes"),
        ("names: [cat]\n../victim: images/train", r"name of a split: '\.\./victim' is a path, not a name"),
        ("names: [cat]\n/etc: images/train", "name of a split: '/etc' is a path"),
        ("a: &a [b, b]\nc: &c [*a, *a]\nnames: &n [*n]", "holds more than 100000 values"),
    ],
)
def test_yaml_that_cannot_be_meant(root: Path, yaml: str, message: str) -> None:
    text(root / "data.yaml", f"train: images/train\n{yaml}\n")
    with pytest.raises(DetrkitError, match=rf"data\.yaml.*{message}"):
        open_dataset(root, split="train")


def test_folders_as_splits(root: Path) -> None:
    (root / "data.yaml").unlink()
    text(root / "classes.txt", "cat\n")
    (root / "images/.ipynb_checkpoints").mkdir()
    image(root / "images/loose.png")
    assert open_dataset(root).split == "train"
    reason = "1 images are in no split: they are beside the folders of the splits"
    assert told(root, "warning") == [("images", "", reason)]
    (root / "images/a\nb").mkdir()
    with pytest.raises(DetrkitError, match=r"name of a split: .* holds a control character"):
        open_dataset(root)
    os.rmdir(root / "images/a\nb")
    text(root / "classes.txt", "cat\n\ndog\n")
    assert told(root, "error") == [("classes.txt", "line 2", "is empty, but the lines number the classes: remove it")]


def test_two_images_with_one_label_file(root: Path) -> None:
    image(root / "images/train/a.jpg")
    (fault,) = told(root, "warning")
    assert fault[0] == "a.png" and fault[2].startswith("has the label file of a.jpg")
