"""CSV of boxes: every convention gives the records of the same dataset as COCO; the unclear is refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from detrkit.cli import main
from detrkit.data import Dataset, open_dataset
from detrkit.data.readers import READERS, find_layout
from detrkit.data.readers.csv_columns import find_columns
from detrkit.data.tools.check import check
from detrkit.data.tools.convert import convert
from detrkit.data.tools.shapes import write_shapes
from detrkit.utils.errors import DetrkitError
from helpers.corpus import PICTURES, write
from helpers.csv_sets import CONVENTIONS, text_of, write_table
from helpers.datasets import picture

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("coco") / "shapes", images={"train": 8, "val": 4}, classes=3)


def with_crowd(dataset: Dataset) -> Dataset:
    """Every fifth object becomes a group."""
    for record in dataset.records:
        record.crowd[::5] = True
    return dataset


def write_set(root: Path, coco: Path, convention: str) -> dict[str, Dataset]:
    """Writes all splits in a convention; returns what must be read."""
    written = {}
    for split in SPLITS:
        dataset = open_dataset(coco, split=split)
        dataset.split = split
        if convention == "open_images":
            dataset = with_crowd(dataset)
        (root / "images").mkdir(parents=True, exist_ok=True)
        for record in dataset.records:
            shutil.copy(record.file, root / "images" / record.file.name)
        write_table(root, dataset, CONVENTIONS[convention], split)
        written[split] = dataset
    return written


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_records_are_those_of_coco(convention: str, coco: Path, tmp_path: Path) -> None:
    written = write_set(tmp_path, coco, convention)
    report = check(tmp_path)
    assert report.layout == "csv" and report.ok and not report.of("warning")
    assert [split.name for split in report.splits] == list(SPLITS)
    for split, expected in written.items():
        dataset = open_dataset(tmp_path, split=split)
        assert sorted(dataset.class_names) == dataset.class_names
        records = {record.file.name: record for record in expected.records}
        assert {r.file.name for r in dataset.records} == {n for n, r in records.items() if len(r.labels)}
        for record in dataset.records:
            other = records[record.file.name]
            assert (record.height, record.width) == (other.height, other.width)
            np.testing.assert_allclose(record.boxes, other.boxes, rtol=0, atol=1e-12)
            names = [dataset.class_names[label] for label in record.labels]
            assert names == [expected.class_names[label] for label in other.labels]
            assert record.crowd.tolist() == other.crowd.tolist()
            sides = other.boxes[:, 2:] - other.boxes[:, :2]
            np.testing.assert_allclose(record.areas, sides.prod(1), rtol=1e-12)
        ids = np.concatenate([record.annotation_ids for record in dataset.records])
        assert sorted(ids.tolist()) == list(range(1, len(ids) + 1))


def test_image_without_objects(tmp_path: Path) -> None:
    write(tmp_path, {**PICTURES, "annotations.csv": b"a.png,1,2,5,6,cat\nb.png,,,,,\n"})
    dataset = open_dataset(tmp_path)
    assert (dataset.split, dataset.class_names, [len(r.labels) for r in dataset.records]) == ("all", ["cat"], [1, 0])
    assert dataset.records[0].annotated.tolist() == [[1, 2, 4, 4]]


def test_table_without_class(tmp_path: Path) -> None:
    write(tmp_path, {f"train/{name}": data for name, data in PICTURES.items()})
    (tmp_path / "train.csv").write_text('image_id,width,height,bbox,source\na,12,9,"[1.0, 2, 4, 4.5]",usask\n')
    (tmp_path / "sample_submission.csv").write_text("image_id,PredictionString\na,1.0 0 0 50 50\n")
    dataset = open_dataset(tmp_path)
    assert (dataset.split, dataset.class_names) == ("train", ["object"])
    assert dataset.records[0].file == tmp_path / "train" / "a.png"
    assert dataset.records[0].boxes.tolist() == [[1, 2, 5, 6.5]]
    assert dataset.notes == (
        f"{tmp_path}/train.csv: has no column of the class: every box is of the one class 'object'",
    )
    unused = "1 images are in no split: b.png"
    assert unused in [fault.reason for fault in check(tmp_path).faults]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_forms_of_text(tmp_path: Path, delimiter: str, encoding: str, end: str) -> None:
    write(tmp_path, PICTURES)
    rows = [
        ["Image_Path", "Label", "x_min", "y_min", "x_max", "y_max"],
        ["./a.png", "Bär, braun", 1, 2, 5, 6],
    ]
    text = text_of([*rows, [], ["b.png", "Hund", 0, 0, 8, 16]], delimiter).replace("\n", end)
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ["Bär, braun", "Hund"]
    assert [r.boxes.tolist() for r in dataset.records] == [[[1, 2, 5, 6]], [[0, 0, 8, 16]]]


def test_split_column(tmp_path: Path) -> None:
    write(tmp_path, PICTURES)
    rows = "a.png,1,2,5,6,cat,TRAIN\nb.png,0,0,8,16,dog,Validation\nb.png,0,0,4,4,cat,Validation\n"
    (tmp_path / "boxes.csv").write_text("filename,xmin,ymin,xmax,ymax,class,split\n" + rows)
    assert READERS["csv"].splits(tmp_path) == ["train", "validation"]
    dataset = open_dataset(tmp_path, split="val")
    assert (dataset.split, dataset.class_names, len(dataset)) == ("validation", ["cat", "dog"], 1)
    assert open_dataset(tmp_path, split="train").class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.csv", "train"),
        ("train_labels.csv", "train"),
        ("_annotations.csv", "all"),
        ("oidv6-train-annotations-bbox.csv", "train"),
        ("instances_val2017.csv", "val2017"),
        ("Valid Boxes.csv", "valid"),
        ("birds.csv", "birds"),
        ("train_without_test.csv", "train_without_test"),
    ],
)
def test_split_of_a_file(tmp_path: Path, name: str, split: str) -> None:
    write(tmp_path, {**PICTURES, name: b"filename,xmin,ymin,xmax,ymax,class\na.png,1,2,5,6,cat\n"})
    assert READERS["csv"].splits(tmp_path) == [split]
    assert open_dataset(tmp_path / name).split == split


def test_classes(tmp_path: Path) -> None:
    table = b"filename,xmin,ymin,xmax,ymax,class\na.png,1,2,5,6,10\nb.png,1,2,5,6,9\n"
    write(tmp_path, {**PICTURES, "train.csv": table})
    assert open_dataset(tmp_path).classes.ids == (9, 10)
    (tmp_path / "classes.csv").write_text("10,1\n9,0\n8,2\n")
    dataset = open_dataset(tmp_path)
    assert (dataset.class_names, dataset.classes.ids) == (["9", "10", "8"], (0, 1, 2))
    (tmp_path / "classes.txt").write_text("10\n9\n")
    assert (open_dataset(tmp_path).class_names, open_dataset(tmp_path).classes.ids) == (["10", "9"], (1, 2))
    (tmp_path / "classes.txt").write_text("10\n")
    with pytest.raises(DetrkitError, match=r"train.csv: line 3: class '9' is not in the list of classes;"):
        open_dataset(tmp_path)


def test_table_beside_the_images_folder(tmp_path: Path) -> None:
    """As in TensorFlow's tutorials: data/train_labels.csv and images/."""
    write(tmp_path, {f"images/{name}": data for name, data in PICTURES.items()})
    write(tmp_path, {"data/train_labels.csv": b"filename,xmin,ymin,xmax,ymax,class\na.png,1,2,5,6,cat\n"})
    assert find_layout(tmp_path) == "csv"
    assert open_dataset(tmp_path).records[0].file.resolve() == tmp_path / "images" / "a.png"


HEADER = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
GOOD = "a.png,12,9,cat,1,2,5,6\n"
FAULTS = {
    "not a number": (HEADER + "a.png,12,9,cat,1,two,5,6\n", "line 2: box '1 two 5 6' is not four numbers"),
    "some numbers missing": (HEADER + "a.png,12,9,cat,1,,5,6\n", "line 2: box '1  5 6' is not four numbers"),
    "not finite": (
        HEADER + GOOD + "a.png,12,9,cat,nan,0,5,6\n",
        "line 3: box [nan, 0, 5, 6] is not finite (image a.png)",
    ),
    "no class": (HEADER + "a.png,12,9,,1,2,5,6\n" + GOOD, "line 2: has no class"),
    "no image": (HEADER + ",12,9,cat,1,2,5,6\n", "line 2: names no image"),
    "too few columns": (HEADER + "a.png,12,9\n", "line 2: has 3 columns, but the first row has 8"),
    "too many columns": (HEADER + "a, b.png,12,9,cat,1,2,5,6\n", "line 2: has 9 columns, but the first row has 8"),
    "size of zero": (HEADER + "a.png,12,0,cat,1,2,5,6\n", "line 2: height 0.0 and width 12.0 must be positive whole"),
    "two sizes": (
        HEADER + GOOD + "a.png,9,12,cat,1,2,5,6\n",
        "line 3: image a.png is 9x12 pixels here, but 12x9 in line 2",
    ),
    "open quote": (HEADER + 'a.png,12,9,"cat,1,2,5,6\n' + GOOD * 9000, "line 2: field larger than field limit"),
    "no box": (HEADER + "a.png,12,9,,,,,\n", "train.csv: no row has a box: there is no class to learn"),
    "unclear units": (HEADER + "a.png,12,9,cat,0,0,1.5,1\n", "the largest coordinate of a box is 1.5: neither"),
    "no image file": (HEADER + GOOD + "../../c.png,,,cat,1,2,5,6\n", "image 2: file_name '../../c.png' leads out of"),
    "two boxes": (
        "path,xmin,ymin,xmax,ymax,x1,y1,x2,y2\n",
        "has two boxes in a row, the columns xmin, ymin, xmax, ymax",
    ),
    "two images": ("path,File_Name,xmin,ymin,xmax,ymax\n", "has the columns File_Name, path, which can mean the same"),
    "one name twice": ("path,xmin,xmin,ymin,xmax,ymax\n", "has the columns xmin, xmin, which mean the same: keep one"),
    "polygon": ("path,x1,y1,x2,y2,x3,y3,x4,y4\n", "has x3 and y3: corners of polygons, not of boxes"),
    "crowd": ("path,xmin,ymin,xmax,ymax,iscrowd\na.png,1,2,5,6,yes\n", "line 2: 'yes' is neither 0 nor 1"),
    "pixels in open images": (
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,cat,1,5,2,6,0\n",
        "line 2: box 1 2 5 6 looks like pixels; expected values in [0, 1]",
    ),
    "corners in bbox": (
        'path,bbox\na.png,"[6, 5, 12, 9]"\n',
        "1 of 1 boxes leave their image when read as [x, y, width, height], and none as corners",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_one_line(case: str, tmp_path: Path) -> None:
    text, reason = FAULTS[case]
    write(tmp_path, {**PICTURES, "train.csv": text.encode()})
    with pytest.raises(DetrkitError) as refused:
        open_dataset(tmp_path)
    assert reason in str(refused.value) and str(refused.value).startswith(str(tmp_path))
    assert "\n" not in str(refused.value)
    report = check(tmp_path)
    assert any(
        reason in f"{fault.id}: {fault.reason}" or reason in f"{fault.file}: {fault.reason}"
        for fault in report.of("error")
    )


def test_tables_that_do_not_go_together(tmp_path: Path) -> None:
    write(tmp_path, {**PICTURES, "train.csv": (HEADER + GOOD).encode(), "train_labels.csv": (HEADER + GOOD).encode()})
    with pytest.raises(DetrkitError, match=r"split train is in train.csv and in train_labels.csv: open one of them"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path / "train.csv")) == 1
    (tmp_path / "train_labels.csv").write_text("path,xmin,ymin,xmax,ymax,set\na.png,1,2,5,6,test\n")
    with pytest.raises(DetrkitError, match=r"train_labels.csv has all splits, and train.csv is a table, too: open one"):
        open_dataset(tmp_path)
    (tmp_path / "train_labels.csv").rename(tmp_path / "val.csv")
    (tmp_path / "val.csv").write_text("path,xmin,ymin,xmax,ymax\na.png,1,2,5,6\n")
    with pytest.raises(DetrkitError, match=r"val.csv has no column of the class, but other tables have: add it"):
        open_dataset(tmp_path, split="train")


def test_other_tables_are_no_dataset(tmp_path: Path) -> None:
    write(tmp_path, {"submission.csv": b"image_id,label\n1,cat\n", "metrics.csv": b"epoch,x,y\n1,2,3\n", **PICTURES})
    with pytest.raises(
        DetrkitError, match=r"it holds 2 images and metrics.csv, whose columns \(epoch,x,y\) .* or CSV \(a table"
    ):
        find_layout(tmp_path)
    with pytest.raises(
        DetrkitError, match=r"submission.csv: no table of boxes: its first row is image_id, label; expected"
    ):
        open_dataset(tmp_path / "submission.csv")
    with pytest.raises(DetrkitError, match="does not have the layout csv"):
        find_layout(tmp_path, "csv")


def test_another_encoding(tmp_path: Path) -> None:
    write(tmp_path, {**PICTURES, "train.csv": (HEADER + "a.png,12,9,Bär,1,2,5,6\n").encode("latin-1")})
    with pytest.raises(DetrkitError, match=r"train.csv: not UTF-8 text; save it as UTF-8$"):
        open_dataset(tmp_path)
    (fault,) = check(tmp_path / "train.csv").faults
    assert fault.reason == "not UTF-8 text; save it as UTF-8"


def test_what_csv_cannot_hold(tmp_path: Path) -> None:
    """The name of a split is that of its file without words such as labels."""
    write(tmp_path, {**PICTURES, "boxes.csv": (HEADER.strip() + ",split\n" + GOOD.strip() + ",labels\n").encode()})
    with pytest.raises(DetrkitError, match="a split cannot be called labels in CSV; rename it"):
        convert(tmp_path, tmp_path.with_name("out"), to="csv")
    assert not tmp_path.with_name("out").exists()


def test_beside_yolo(tmp_path: Path) -> None:
    """YOLO has images/ and classes.txt, too: its label files decide."""
    write(tmp_path, {f"images/{name}": data for name, data in PICTURES.items()})
    write(tmp_path, {"train.csv": (HEADER + GOOD).encode(), "classes.txt": b"cat\n"})
    assert find_layout(tmp_path) == "csv"
    assert find_layout(tmp_path, "yolo") == "yolo"
    write(tmp_path, {"images/a.txt": b"0 0.5 0.5 0.5 0.5\n"})
    assert find_layout(tmp_path) == "yolo"


def test_masks_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {**PICTURES, "train.csv": (HEADER + GOOD).encode()})
    with pytest.raises(DetrkitError, match="a CSV of boxes has no masks; open it without masks"):
        open_dataset(tmp_path, masks=True)


def test_suffix_that_is_not_clear(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": PICTURES["a.png"], "a.jpg": PICTURES["a.png"]})
    (tmp_path / "train.csv").write_text("image_id,xmin,ymin,xmax,ymax\na,1,2,5,6\n")
    with pytest.raises(DetrkitError, match=r"image 1: 'a' can be a.jpg or a.png: write the suffix"):
        open_dataset(tmp_path)


def test_areas_and_sizes_of_the_table(tmp_path: Path) -> None:
    write(tmp_path, PICTURES)
    (tmp_path / "train.csv").write_text(
        "file,image_width,image_height,x,y,width,height,area\na.png,12,9,1,2,4,4,9.5\nb.png,0,0,1,2,4,4,-1\n"
    )
    records = open_dataset(tmp_path).records
    assert [(r.height, r.width, r.areas.tolist()) for r in records] == [(9, 12, [9.5]), (16, 8, [16])]
    (tmp_path / "train.csv").write_text(HEADER + "a.png,12,10,cat,1,2,5,6\n")
    (fault,) = check(tmp_path).of("error")
    assert fault.reason == "is 12x9 pixels but its annotations say 12x10 (width x height)"


def test_columns_by_convention() -> None:
    """What decides the meaning of a box."""
    cases = {
        "image,x,y,w,h,width,height": ("xywh", (1, 2, 3, 4), (6, 5)),
        "image,x,y,width,height": ("xywh", (1, 2, 3, 4), None),
        "image,bbox_x,bbox_y,bbox_width,bbox_height,image_width,image_height": ("xywh", (1, 2, 3, 4), (6, 5)),
        "image,xmin,ymin,width,height": ("xywh", (1, 2, 3, 4), None),
        "image,width,height,xmin,ymin,xmax,ymax": ("xyxy", (3, 4, 5, 6), (2, 1)),
        "image,x0,y0,x1,y1": ("xyxy", (1, 2, 3, 4), None),
        "image,cx,cy,w,h": ("cxcywh", (1, 2, 3, 4), None),
        "image,left,top,right,bottom": ("xyxy", (1, 2, 3, 4), None),
        "image,bbox,x,y,w,h": ("xywh", (2, 3, 4, 5), None),
    }
    for header, expected in cases.items():
        columns = find_columns(header.split(","))
        assert columns is not None
        assert (columns.form, columns.box, columns.size) == expected, header
    assert find_columns(["image_id", "class", "score"]) is None
    columns = find_columns(["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"])
    assert columns is not None and (columns.image, columns.label) == (0, 1)  # a name before a number


def test_commands(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """check, convert and preview; what converts to COCO has the same boxes."""
    write_set(tmp_path / "set", coco, "tensorflow")
    assert main(["data", "check", str(tmp_path / "set"), "--layout", "csv"]) == 0
    assert "(csv): 0 errors, 0 warnings" in capsys.readouterr().out
    assert (
        main(
            [
                "data",
                "preview",
                str(tmp_path / "set"),
                "--split",
                "train",
                "--size",
                "64",
                "--out",
                str(tmp_path / "p.png"),
            ]
        )
        == 0
    )
    convert(tmp_path / "set", tmp_path / "back", to="coco")
    for split in SPLITS:
        expected = {r.file.name: r.boxes.tolist() for r in open_dataset(tmp_path / "set", split=split).records}
        assert {r.file.name: r.boxes.tolist() for r in open_dataset(tmp_path / "back", split=split).records} == expected


@pytest.mark.parametrize("folder", ["", "images/", "images\\"])
def test_a_number_stands_for_the_image_with_zeros_before_it(tmp_path: Path, folder: str) -> None:
    (tmp_path / "images").mkdir()
    for name in ("0007.jpg", "10.jpg"):
        picture(8, 9).save(tmp_path / "images" / name)
    rows = f"image_id,x1,y1,x2,y2\n{folder}7,1,1,4,4\n{folder}10,1,1,4,4\n"
    (tmp_path / "train.csv").write_text(rows)
    assert [r.file.name for r in open_dataset(tmp_path, split="train").records] == ["0007.jpg", "10.jpg"]
    picture(8, 9).save(tmp_path / "images" / "07.png")
    with pytest.raises(DetrkitError, match=r"'.*7' can be 0007.jpg or 07.png: write the suffix"):
        open_dataset(tmp_path, split="train")
