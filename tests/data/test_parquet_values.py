"""Parquet with columns and values of any kind: one line with the row, and nothing that fills the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from detrkit.data import open_dataset
from detrkit.data.tools.check import check
from detrkit.utils.errors import DetrkitError
from helpers.cppe5 import picture

FEATURES = {"objects": {"category": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COUNT = 3  # rows, of one object each


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path / "home"))


def write(root: Path, features: Any = FEATURES, **columns: Any) -> Path:
    """Three images of 30x40 pixels with a cat each; `columns` are given as pyarrow arrays."""
    images = [{"bytes": picture(30, 40, k), "path": f"{k}.png"} for k in range(COUNT)]
    whole = {
        "image": pa.array(images, IMAGE),
        "objects": pa.array([{"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [0]}] * COUNT),
    }
    root.mkdir(parents=True, exist_ok=True)
    table = pa.table(whole | columns)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    pq.write_table(table.replace_schema_metadata(metadata), root / "train.parquet")
    return root / "train.parquet"


def objects(*rows: Any) -> pa.Array:
    return pa.array([*rows, *[{"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [0]}] * (COUNT - len(rows))])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": pa.array([1, 2, 3])}, "column image is int64: expected the bytes of image files"),
        ({"image": pa.array(["a", "b", "c"])}, "column image is string: expected the bytes"),
        ({"image": pa.array([{"path": "a"}] * 3)}, r"column image is struct<path: string>: expected the bytes"),
        ({"image": pa.array([{"bytes": [1]}] * 3)}, r"column image is struct<bytes: list.*: expected the bytes"),
        ({"objects": pa.array([1, 2, 3])}, "column objects is int64: expected a struct of lists or a list of structs"),
        ({"objects": pa.array([["a"]] * 3)}, "column objects is list<.*: expected a struct of lists"),
        (
            {"objects": pa.array([[("k", 1)]] * 3, pa.map_(pa.string(), pa.int64()))},
            "column objects is map<.*: expected",
        ),
        ({"objects": pa.array([{"bbox": [[1.0] * 4]}] * 3)}, "row 0: column objects: no field category; it has bbox"),
        ({"objects": pa.array([{"bbox": 1, "category": [0]}] * 3)}, "row 0: column objects: bbox is 1, not a list"),
        ({"objects": objects({"bbox": [None], "category": [0]})}, "row 0, object 1: bbox None is not"),
        ({"objects": objects({"bbox": [[1.0, None, 3.0, 4.0]], "category": [0]})}, r"object 1: bbox \[1.0, None"),
        (
            {"objects": objects({"bbox": [[1.0, float("nan"), 3.0, 4.0]], "category": [0]})},
            "object 1: box .* not finite",
        ),
        ({"objects": pa.array([{"bbox": [b"abcd"], "category": [0]}] * 3)}, "row 0, object 1: bbox b'abcd' is not"),
        ({"objects": pa.array([{"bbox": [[[1.0]] * 4], "category": [0]}] * 3)}, r"object 1: bbox \[\[1.0\]"),
        (
            {"objects": objects({"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [2**62]})},
            "category 46.* is not one of the 2",
        ),
        ({"objects": pa.array([{"bbox": [[1.0] * 4], "category": [[[0]]]}] * 3)}, r"category \[\[0\]\] is not one of"),
        ({"objects": pa.array([{"bbox": [[1.0] * 4], "category": [0.5]}] * 3)}, "category 0.5 is not one of"),
        (
            {"objects": pa.array([{"bbox": [[1.0] * 4], "category": [0], "area": [float("nan")]}] * 3)},
            "row 0, object 1: area nan is not a number of square pixels",
        ),
        (
            {"objects": pa.array([{"bbox": [[1.0] * 4], "category": [0], "area": ["12"]}] * 3)},
            "row 0, object 1: area '12' is not a number",
        ),
        (
            {"objects": pa.array([{"bbox": [[1.0] * 4], "category": [0], "iscrowd": [float("nan")]}] * 3)},
            "row 0, object 1: iscrowd nan is not 0 or 1",
        ),
        ({"image": pa.array([{"bytes": b"no image", "path": "a"}] * 3)}, r"row 0 \(a\): not an image"),
        ({"image": pa.array([None] * 3, IMAGE)}, r"row 0 \(0\): column image has no image bytes"),
    ],
)
def test_values_of_any_kind(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    file = write(tmp_path, **columns)
    with pytest.raises(DetrkitError, match=message) as error:
        open_dataset(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 700
    assert check(file).of("error")


def test_check_tells_every_row(tmp_path: Path) -> None:
    rows = objects({"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": []}, {"bbox": [None], "category": [0]})
    found = check(write(tmp_path, objects=rows)).of("error")
    assert [(fault.id, fault.reason) for fault in found] == [
        ("row 0", "column objects: 1 values of bbox, but 0 of category"),
        ("row 1, object 1", "bbox None is not [x, y, width, height] in pixels"),
    ]


def test_nulls_are_rows_without_objects(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path, objects=objects(None, {"bbox": None, "category": None})))
    assert [len(record.boxes) for record in dataset.records] == [0, 0, 1]


def test_text_that_is_none(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffc")]
    )
    bytes_only = pa.array([picture(30, 40, k) for k in range(COUNT)])
    file = write(tmp_path, image=bytes_only, image_id=broken)
    with pytest.raises(DetrkitError, match=r"row 1: column image_id cannot be read \('utf-?8' codec"):
        open_dataset(file)


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_ids_beyond_64_bits_become_positions(tmp_path: Path, value: int) -> None:
    ids = pa.array([value, value - 1, value - 2], pa.uint64())
    assert [record.image_id for record in open_dataset(write(tmp_path, image_id=ids)).records] == [1, 2, 3]


def test_names_of_images_are_no_paths(tmp_path: Path) -> None:
    paths = ["/etc/../a.png", "..", "C:\\x\\b.png"]
    images = [{"bytes": picture(30, 40, k), "path": path} for k, path in enumerate(paths)]
    file = write(tmp_path, image=pa.array(images, IMAGE))
    assert [record.file.name for record in open_dataset(file).records] == ["a.png", "1", "b.png"]
    (fault,) = check(file).of("warning")
    assert (fault.id, fault.reason) == ("row 1", "image.path '..' does not end in the name of a file: called 1")
    ids = pa.array(["../x", "n" * 300, "fine"])
    file = write(tmp_path, image=pa.array([image["bytes"] for image in images]), image_id=ids)
    assert [record.file.name for record in open_dataset(file).records] == ["0", "1", "fine"]


def test_names_of_classes(tmp_path: Path) -> None:
    names = {"objects": {"category": {"names": ["cat", "dog", "cat", " "], "_type": "ClassLabel"}}}
    assert [(f.id, f.reason) for f in check(write(tmp_path, names)).of("error")] == [
        ("class 2", "'cat' is also the name of class 0: give each class its own"),
        ("class 3", "has no name"),
    ]
    deep = {"objects": {"category": json.loads("[" * 800 + "]" * 800)}}
    (tmp_path / "README.md").write_text(
        "---\ndataset_info: {objects: {category: {class_label: {names: {'0': no, '1': 1e3}}}}}\n---\n"
    )
    assert open_dataset(write(tmp_path, deep)).class_names == ["no", "1e3"]


def test_a_small_file_of_many_rows(tmp_path: Path) -> None:
    """Equal values take no place in a file: 8 million rows in some kB."""
    count = 8_000_000
    image = pa.StructArray.from_arrays([pa.nulls(count, pa.binary())], ["bytes"])
    boxes = pa.StructArray.from_arrays(
        [pa.nulls(count, pa.list_(pa.list_(pa.float32()))), pa.nulls(count, pa.list_(pa.int64()))], ["bbox", "category"]
    )
    pq.write_table(pa.table({"image": image, "objects": boxes}), tmp_path / "train.parquet")
    with pytest.raises(DetrkitError, match=r"says that it has 8000000 values in \d+ bytes"):
        open_dataset(tmp_path)


def test_names_of_splits(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.rename(tmp_path / "a\nb.parquet")
    with pytest.raises(DetrkitError, match=r"name of a split: 'a\\nb' holds a control character"):
        open_dataset(tmp_path)
