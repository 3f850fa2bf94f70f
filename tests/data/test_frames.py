"""DataFrames: what a CSV says, a DataFrame of it says, whatever the types of its columns."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import detrkit
from detrkit.data import Dataset, open_dataset
from detrkit.data.tools.check import check
from detrkit.data.tools.shapes import write_shapes
from detrkit.utils.errors import DetrkitError
from helpers.csv_sets import CONVENTIONS, write_table


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("coco") / "shapes", images={"train": 6, "val": 3}, classes=3)


def write_csvs(root: Path, coco: Path, convention: str) -> dict[str, Path]:
    """The tables of a convention, and the images."""
    (root / "images").mkdir(parents=True)
    files = {}
    for split in ("train", "val"):
        dataset = open_dataset(coco, split=split)
        dataset.split = split
        files[split] = write_table(root, dataset, CONVENTIONS[convention], split)
        for record in dataset.records:
            target = root / "images" / record.file.name
            if not target.exists():
                target.write_bytes(record.file.read_bytes())  # type: ignore[union-attr] # a path
    return files


@pytest.fixture
def table(tmp_path: Path, coco: Path) -> pandas.DataFrame:
    """TensorFlow's columns, and one of the split."""
    files = write_csvs(tmp_path, coco, "tensorflow")
    return pandas.concat([pandas.read_csv(file).assign(split=split) for split, file in files.items()])


def equal(one: Dataset, other: Dataset) -> None:
    assert one.classes == other.classes and len(one) == len(other)
    for a, b in zip(one.records, other.records, strict=True):
        assert (a.image_id, a.file, a.height, a.width) == (b.image_id, b.file, b.height, b.width)
        for name in ("boxes", "labels", "crowd", "areas", "annotation_ids", "annotated"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("convention", sorted(CONVENTIONS))
def test_a_frame_says_what_its_csv_says(tmp_path: Path, coco: Path, convention: str) -> None:
    files = write_csvs(tmp_path, coco, convention)
    header = None if convention in ("retinanet", "automl") else "infer"
    frames = {split: pandas.read_csv(file, header=header) for split, file in files.items()}  # type: ignore[call-overload]
    one_table = len({*files.values()}) == 1  # with a column of the split
    for split in files:
        data: Any = frames["train"] if one_table else frames
        equal(open_dataset(tmp_path, split=split), open_dataset(data, split=split, root=tmp_path))


def test_values_of_any_type_are_read(table: pandas.DataFrame, tmp_path: Path) -> None:
    expected = open_dataset(table, split="train", root=tmp_path)
    assert (expected.layout, str(expected.path), expected.name, expected.split) == (
        "dataframe",
        "DataFrame",
        "DataFrame",
        "train",
    )
    for column in ("xmin", "ymin", "xmax", "ymax"):
        table[column] = table[column].astype("float64")
    table["filename"] = [tmp_path / "images" / name for name in table["filename"]]
    table["split"] = table["split"].astype("category")
    table["width"] = table["width"].astype("Int64")
    equal(open_dataset(table, split="train", root=tmp_path), expected)
    equal(open_dataset(table, split="train"), expected)  # absolute paths need no root
    boxes = table[["xmin", "ymin", "xmax", "ymax"]].to_numpy()
    table["bbox"] = [np.array([x0, y0, x1 - x0, y1 - y0]) for x0, y0, x1, y1 in boxes]
    equal(open_dataset(table.drop(columns=["xmin", "ymin", "xmax", "ymax"]), split="train"), expected)
    table["bbox"] = boxes.tolist()
    corners = table.drop(columns=["xmin", "ymin", "xmax", "ymax"])
    equal(open_dataset(corners, split="train", box_format="xyxy"), expected)
    with pytest.raises(DetrkitError, match=r'DataFrame: column of the box: \d+ of \d+ boxes .* box_format="xyxy"'):
        open_dataset(corners, split="train")


def test_missing_values_are_an_image_without_objects(table: pandas.DataFrame, tmp_path: Path) -> None:
    first = table["filename"].iloc[0]
    table.loc[table["filename"] == first, ["class", "xmin", "ymin", "xmax", "ymax"]] = [
        None,
        pandas.NA,
        None,
        None,
        None,
    ]
    dataset = open_dataset(table, split="train", root=tmp_path)
    assert dataset.records[0].file.name == first and len(dataset.records[0].boxes) == 0 and len(dataset) == 6


def test_categories_are_the_classes_in_their_order(table: pandas.DataFrame, tmp_path: Path) -> None:
    names = ["unused", *sorted(set(table["class"]), reverse=True)]
    table["class"] = pandas.Categorical(table["class"], categories=names)
    assert open_dataset(table, split="val", root=tmp_path).class_names == names


def test_samples_travel_to_workers(table: pandas.DataFrame, tmp_path: Path) -> None:
    dataset = open_dataset(table, split="val", root=tmp_path)
    sample, copy = dataset[1], pickle.loads(pickle.dumps(dataset))[1]
    assert (sample.image == copy.image).all() and (sample.boxes == copy.boxes).all()


def test_an_open_dataset_is_returned_as_it_is(table: pandas.DataFrame, tmp_path: Path) -> None:
    whole = open_dataset(table, split="train", root=tmp_path)
    parts = {"train": whole.subset(range(4)), "val": whole.subset(range(4, 6))}
    assert open_dataset(parts, split="valid") is not whole and len(open_dataset(parts, split="valid")) == 2
    equal(open_dataset(whole), whole)
    with pytest.raises(DetrkitError, match="opened without masks, but they are needed"):
        open_dataset(whole, masks=True)


def changed(frame: pandas.DataFrame, column: str, value: object, row: int = 2) -> pandas.DataFrame:
    values = frame[column].astype(object).tolist()
    values[row] = value
    return frame.assign(**{column: values})


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("xmin", "a", r"DataFrame: row 2, columns xmin, ymin, xmax, ymax: box 'a .*' is not four numbers"),
        ("xmin", float("inf"), r"DataFrame: row 2: box \[inf, .*\] is not finite"),
        ("class", None, r"DataFrame: row 2, column class: has no class"),
        ("filename", "", r"DataFrame: row 2, column filename: names no image"),
        ("width", 7.5, r"DataFrame: row 2, columns height, width: height .* and width 7.5 must be positive whole"),
        ("filename", "../../x.jpg", r"DataFrame: row 2, column filename: file_name '../../x.jpg' leads out of"),
    ],
)
def test_a_wrong_value_is_one_line_with_row_and_column(
    table: pandas.DataFrame, tmp_path: Path, column: str, value: object, message: str
) -> None:
    with pytest.raises(DetrkitError, match=message) as error:
        open_dataset(changed(table, column, value), split="train", root=tmp_path)
    assert "\n" not in str(error.value) and "data check" not in str(error.value)


def test_check_lists_every_fault_of_a_frame(table: pandas.DataFrame, tmp_path: Path) -> None:
    frame = changed(changed(table, "xmin", "a", 1), "xmax", "b", 3)
    report = check(frame, root=tmp_path)
    assert report.layout == "dataframe" and [fault.id for fault in report.of("error")] == [
        "row 1, columns xmin, ymin, xmax, ymax",
        "row 3, columns xmin, ymin, xmax, ymax",
    ]


def test_what_cannot_be_opened_says_what_can(table: pandas.DataFrame, tmp_path: Path) -> None:
    def refused(data: Any, match: str, **options: Any) -> None:
        with pytest.raises(DetrkitError, match=match):
            open_dataset(data, **options)

    refused(table, "DataFrame has the splits train, val: say which one", root=tmp_path)
    refused(table, "DataFrame has no split 'test'; it has train, val", split="test", root=tmp_path)
    refused([1], "data: list is no dataset: expected a path, a pandas DataFrame")
    refused({}, "data: an empty dict")
    refused({"a": table, "b": open_dataset(table, split="val", root=tmp_path)}, "a dict of several kinds")
    refused(
        table.drop(columns="filename"), "DataFrame: no table of boxes: its columns are width, height, class, .*bbox"
    )
    refused(table.rename(columns={"xmin": "x1"}).assign(x1b=1), "no table of boxes")
    refused(table, r"DataFrame: root='.*nowhere': there is no such folder", root=tmp_path / "nowhere")
    refused(table, "layout='csv' is for files", layout="csv", root=tmp_path)
    refused(table, "box_format='xywh', but the names of its columns say xyxy", box_format="xywh", split="train")
    refused(table, 'choose "xywh", "xyxy" or "cxcywh"', box_format="yolo")
    refused(tmp_path, "root is for data in memory", root=tmp_path)
    refused(table, "a table of boxes has no masks", split="train", masks=True, root=tmp_path)
    refused(":memory:/DataFrame", r"hand it over in Python, as in detrkit.train\(config, resume=True, data=...\)")
    file = next(iter(write_csvs(tmp_path / "more", detrkit_shapes(tmp_path), "retinanet").values()))
    refused(pandas.read_csv(file), "its columns are named as the first image: read it with header=None")


def detrkit_shapes(folder: Path) -> Path:
    assert detrkit.open_dataset is open_dataset
    return write_shapes(folder / "shapes", images={"train": 2, "val": 1}, classes=2)
