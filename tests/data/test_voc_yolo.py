from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from detrkit.data import open_dataset
from detrkit.utils.errors import DetrkitError
from helpers.datasets import picture

OBJECT = (
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>"
    "<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>"
)


def xml(size: tuple[int, int], *objects: str) -> str:
    head = f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return head + "".join(objects) + "</annotation>"


def voc_object(name: str, *box: float, difficult: int = 0) -> str:
    return OBJECT.format(*box, name=name, difficult=difficult)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    files = {
        "b": xml((20, 30), voc_object("zebra", 1, 1, 30, 20), voc_object("ant", 2.5, 3, 8, 9, difficult=1)),
        "a": xml((20, 30), voc_object("ant", 5, 5, 5, 5), voc_object("ant", 0, 0, 40, 10)),
        "c": xml((20, 30)),
        "d": xml((0, 0), voc_object("cow", 1, 2, 3, 4)),
    }
    for stem, text in files.items():
        (root / "Annotations" / f"{stem}.xml").write_text(text)
        picture(20, 30).save(root / "JPEGImages" / (f"{stem}.PNG" if stem == "c" else f"{stem}.jpg"))
    (root / "ImageSets/Main/train.txt").write_text("b\na\nc\n")
    (root / "ImageSets/Main/val.txt").write_text("d\n")
    (root / "ImageSets/Main/ant_train.txt").write_text("b  1\na -1\nc -1\n")
    return root


def test_voc(voc: Path) -> None:
    dataset = open_dataset(voc, split="train")
    assert dataset.layout == "voc" and [r.file.stem for r in dataset.records] == ["b", "a", "c"]
    assert [r.image_id for r in dataset.records] == [1, 2, 3]
    assert dataset.class_names == ["ant", "cow", "zebra"]  # of all splits, in alphabetical order
    assert dataset.classes.ids == (1, 2, 3)
    assert dataset[0].boxes.tolist() == [[1, 1, 30, 20]] and dataset[0].labels.tolist() == [2]  # no shift by one
    assert dataset.records[0].crowd.tolist() == [False, True]
    assert dataset.records[0].boxes[1].tolist() == [2.5, 3, 8, 9]
    assert dataset[1].boxes.tolist() == [[0, 0, 30, 10]]
    assert dataset.records[1].annotation_ids.tolist() == [4]  # numbered over all objects of the split
    assert (dataset.dropped, dataset.clamped) == (1, 1)
    assert len(dataset[2].boxes) == 0 and dataset[2].image.shape == (3, 20, 30)
    crowd = dataset.ground_truth()["annotations"][1]
    assert (crowd["iscrowd"], crowd["bbox"], crowd["area"]) == (1, [2.5, 3, 5.5, 6], 33)


def test_voc_size_from_the_image_where_the_xml_has_none(voc: Path) -> None:
    record = open_dataset(voc, split="val").records[0]
    assert (record.height, record.width) == (20, 30)


def test_voc_class_order_from_a_file(voc: Path) -> None:
    (voc / "classes.txt").write_text("zebra\ncow\nant\n")
    assert open_dataset(voc, split="train")[0].labels.tolist() == [0]
    (voc / "classes.txt").write_text("zebra\ncow\n")
    with pytest.raises(DetrkitError, match=r"b\.xml: object 2: class 'ant' is not in the list"):
        open_dataset(voc, split="train")


def test_voc_lists_per_class_are_no_splits(voc: Path) -> None:
    with pytest.raises(DetrkitError, match="has the splits train, val: say which"):
        open_dataset(voc)
    for file in (voc / "ImageSets/Main").glob("*.txt"):
        file.unlink()
    dataset = open_dataset(voc)
    assert dataset.split == "all" and [r.file.stem for r in dataset.records] == ["a", "b", "c", "d"]


def test_voc_bad_files(voc: Path) -> None:
    (voc / "Annotations/a.xml").write_text("<annotation>\n<object>\n</annotation>")
    with pytest.raises(DetrkitError, match=r"a\.xml: line 3: malformed XML"):
        open_dataset(voc, split="train")
    (voc / "Annotations/a.xml").write_text(xml((20, 30), voc_object("ant", 1, 2, 3, 4).replace(">3<", "><")))
    with pytest.raises(DetrkitError, match=r"a\.xml: object 1: bndbox needs the numbers"):
        open_dataset(voc, split="train")
    (voc / "Annotations/a.xml").unlink()
    with pytest.raises(DetrkitError, match=r"a\.xml: annotation file is missing"):
        open_dataset(voc, split="train")
    (voc / "ImageSets/Main/train.txt").write_text("b\nb\n")
    with pytest.raises(DetrkitError, match=r"train\.txt: line 2: image b is listed twice"):
        open_dataset(voc, split="train")
    with pytest.raises(DetrkitError, match="no masks"):
        open_dataset(voc, split="val", masks=True)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "yolo"
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
    for name in ("a", "b", "c"):
        picture(20, 40).save(root / "images/train" / f"{name}.jpg")
    picture(10, 10).save(root / "images/val/d.png")
    (root / "labels/train/a.txt").write_text("1 0.5 0.5 0.5 0.4\n\n0 0.1 0.2 0.3 0.2\n")
    (root / "labels/train/b.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.9\n")
    (root / "labels/val/d.txt").write_text("")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 2\nnames: [bee, wasp]\n")
    return root


def test_yolo(yolo: Path) -> None:
    dataset = open_dataset(yolo, split="train")
    assert dataset.layout == "yolo" and dataset.class_names == ["bee", "wasp"] and dataset.classes.ids == (0, 1)
    assert [(r.image_id, r.file.name, r.height, r.width) for r in dataset.records] == [
        (1, "a.jpg", 20, 40),
        (2, "b.jpg", 20, 40),
        (3, "c.jpg", 20, 40),
    ]
    # 0.1 - 0.15 leaves the image by 2 pixels
    assert dataset[0].boxes.tolist() == [[10, 6, 30, 14], pytest.approx([0, 2, 10, 6])]
    assert dataset.clamped == 1 and dataset[0].labels.tolist() == [1, 0]
    assert dataset[1].boxes.tolist() == [[10, 5, 30, 18]]  # the bounds of a polygon
    assert len(dataset[2].boxes) == 0  # no label file: a negative
    assert dataset.records[1].annotation_ids.tolist() == [3]
    assert open_dataset(yolo / "data.yaml", split="val")[0].image.shape == (3, 10, 10)


def test_yolo_polygons_as_masks(yolo: Path) -> None:
    with pytest.raises(DetrkitError, match=r"a\.txt: line 1: is a box, not a polygon"):
        open_dataset(yolo, split="train", masks=True)
    (yolo / "labels/train/a.txt").unlink()
    masks = open_dataset(yolo, split="train", masks=True)[1].masks
    assert masks is not None and masks.shape == (1, 20, 40)
    assert abs(int(masks.sum()) - 20 * 13 / 2) < 15  # a triangle with legs of 20 and 13 pixels
    assert masks[0, 6, 28] and not masks[0, 16, 12]


@pytest.mark.parametrize(
    "config",
    [
        "path: {root}\ntrain: images/train\nnames: {{0: bee, 1: wasp}}",  # absolute path, names by number
        "path: /home/somebody/yolo\ntrain: images/train\nnames: [bee, wasp]",  # another machine's path
        "path: yolo\ntrain: [images/train]\nnames: [bee, wasp]",
        "train: ../images/train\nnames: [bee, wasp]",  # Roboflow's one too many
        "train: list.txt\nnames: [bee, wasp]",
        "train: [list.txt, images/val]\nnames: [bee, wasp]",
    ],
)
def test_yolo_yaml_variants(yolo: Path, config: str) -> None:
    (yolo / "data.yaml").write_text(config.format(root=yolo))
    (yolo / "list.txt").write_text("./images/train/a.jpg\nimages/train/b.jpg\nimages/train/c.jpg\n")
    dataset = open_dataset(yolo, split="train")
    assert [r.file.name for r in dataset.records[:3]] == ["a.jpg", "b.jpg", "c.jpg"]
    assert len(dataset[0].boxes) == 2
    assert len(dataset) == (4 if "images/val" in config else 3)


def test_yolo_without_yaml(yolo: Path) -> None:
    (yolo / "data.yaml").unlink()
    (yolo / "classes.txt").write_text("bee\nwasp\n")
    assert len(open_dataset(yolo, split="train")[0].boxes) == 2
    flat = yolo.parent / "flat"
    (flat / "images").mkdir(parents=True)
    (flat / "labels").mkdir()
    picture(10, 10).save(flat / "images/x.jpg")
    (flat / "labels/x.txt").write_text("0 0.5 0.5 1 1")
    (flat / "classes.txt").write_text("thing\n")
    dataset = open_dataset(flat)
    assert dataset.split == "all" and dataset[0].boxes.tolist() == [[0, 0, 10, 10]]


def test_yolo_sizes_follow_exif(yolo: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(20, 40).save(yolo / "images/train/a.jpg", exif=exif)
    dataset = open_dataset(yolo, split="train")
    assert (dataset.records[0].height, dataset.records[0].width) == (40, 20)
    assert dataset[0].image.shape == (3, 40, 20)
    assert dataset[0].boxes[0].tolist() == [5, 12, 15, 28]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "line 1: class 2 is not one of the 2 classes"),
        ("-1 0.5 0.5 0.1 0.1", "line 1: class -1 is not"),
        ("0.5 0.5 0.5 0.1 0.1", "line 1: class 0.5 is not"),
        ("0 0.5 0.5 0.1", "line 1: 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 9", "line 1: 6 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.9 0.1", "line 1: 8 numbers"),
        ("0 0.1 0.2 nan 0.4 0.5 0.6", "line 1: polygon is not finite"),
        ("0 0.5 x 0.1 0.1", "line 1: not numbers"),
        ("0 100 50 20 20", "line 1: .* looks like pixels"),
        ("0 nan 0.5 0.1 0.1", "line 1: box .* is not finite"),
    ],
)
def test_yolo_bad_lines(yolo: Path, line: str, message: str) -> None:
    (yolo / "labels/train/b.txt").write_text(line)
    with pytest.raises(DetrkitError, match=rf"b\.txt: {message}"):
        open_dataset(yolo, split="train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", r"data\.yaml:\d: malformed YAML"),
        ("train: images/train", "field names must list the classes"),
        ("train: images/nowhere\nnames: [a]", "field train: images/nowhere does not exist"),
        ("train: labels/train\nnames: [a]", "no image found"),
        ("train: images/train\nnames: {a: b}", "names must map class numbers"),
    ],
)
def test_yolo_bad_yaml(yolo: Path, text: str, message: str) -> None:
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(DetrkitError, match=message):
        open_dataset(yolo, split="train")
