"""`datasets.Dataset` and `DatasetDict`, of every way in which the Hub has boxes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrkit.data import Dataset, open_dataset
from detrkit.data.tools.check import check
from detrkit.data.tools.shapes import write_shapes
from detrkit.utils.errors import DetrkitError

pytestmark = pytest.mark.slow  # importing datasets takes seconds

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_shapes(tmp_path_factory.mktemp("hub") / "shapes", images={"train": 6}, classes=3)
    return open_dataset(root, split="train")


def rows_of(dataset: Dataset, *, as_bytes: bool = True, corners: bool = False) -> Rows:
    """A row for each image, with lists of its objects."""
    rows = []
    for r in dataset.records:
        assert isinstance(r.file, Path)
        boxes = r.boxes if corners else np.concatenate([r.boxes[:, :2], r.boxes[:, 2:] - r.boxes[:, :2]], 1)
        image = {"bytes": r.file.read_bytes(), "path": r.file.name} if as_bytes else str(r.file)
        objects = {"bbox": boxes.tolist(), "category": r.labels.tolist()}
        rows.append({"image_id": r.image_id, "image": image, "objects": objects})
    return rows


def hub(rows: Rows, names: list[str] | None, *, structs: bool = False) -> Any:
    import datasets
    from datasets import ClassLabel, Features, Image, List, Value

    category = ClassLabel(names=names) if names else Value("int64")
    one = {"bbox": List(Value("float64")), "category": category}
    objects: Any = {name: List(feature) for name, feature in one.items()}
    if structs:
        keys = list(one)
        rows = [
            {
                **row,
                "objects": [dict(zip(keys, each, strict=True)) for each in zip(*row["objects"].values(), strict=True)],
            }
            for row in rows
        ]
        objects = List(one)
    return datasets.Dataset.from_list(
        rows, features=Features({"image_id": Value("int64"), "image": Image(), "objects": objects})
    )


def same(opened: Dataset, expected: Dataset) -> None:
    assert opened.class_names == expected.class_names and len(opened) == len(expected)
    for k, (a, b) in enumerate(zip(opened.records, expected.records, strict=True)):
        assert (a.image_id, a.file.name, a.height, a.width) == (b.image_id, b.file.name, b.height, b.width)
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=0, atol=1e-9)
        assert a.labels.tolist() == b.labels.tolist()
        assert (opened[k].image == expected[k].image).all()


@pytest.mark.parametrize("structs", [False, True])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_rows_are_those_of_the_files(shapes: Dataset, as_bytes: bool, structs: bool) -> None:
    data = hub(rows_of(shapes, as_bytes=as_bytes), shapes.class_names, structs=structs)
    opened = open_dataset(data)
    same(opened, shapes)
    assert (opened.layout, opened.split, str(opened.path)) == ("datasets", "all", "Dataset")
    same(pickle.loads(pickle.dumps(opened)), shapes)  # as to a worker process
    same(open_dataset(data.with_format("torch")), shapes)


def test_corners_have_to_be_stated(shapes: Dataset) -> None:
    data = hub(rows_of(shapes, corners=True), shapes.class_names)
    same(open_dataset(data, box_format="xyxy"), shapes)
    with pytest.raises(DetrkitError, match='none as corners: they are corners: pass box_format="xyxy"'):
        open_dataset(data)


def test_splits_are_the_keys(shapes: Dataset, tmp_path: Path) -> None:
    import datasets

    data = hub(rows_of(shapes), shapes.class_names)
    both = datasets.DatasetDict({"train": data.select([0, 1, 2, 3]), "validation": data.select([5, 4])})
    opened = open_dataset(both, split="val")
    assert [r.image_id for r in opened.records] == [shapes.records[5].image_id, shapes.records[4].image_id]
    both.save_to_disk(str(tmp_path / "saved"))
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))
    assert (open_dataset(loaded, split="val")[0].image == shapes[5].image).all()
    with pytest.raises(DetrkitError, match="Dataset has no split 'test'; it has train, validation"):
        open_dataset(both, split="test")
    report = check(both)
    assert report.ok and [s.images for s in report.splits] == [4, 2]


def test_names_and_numbers_of_classes(shapes: Dataset) -> None:
    import datasets

    numbers = open_dataset(hub(rows_of(shapes), None))
    used = sorted({int(label) for r in shapes.records for label in r.labels})
    assert numbers.class_names == [str(label) for label in used] and "numbers without names" in numbers.notes[0]
    rows = rows_of(shapes)
    for row in rows:  # other names of fields, texts as classes
        labels = [shapes.class_names[k] for k in row["objects"]["category"]]
        row["annotations"] = {"boxes": row.pop("objects")["bbox"], "label": labels}
    data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    assert open_dataset(data).class_names == sorted({n for row in rows for n in row["annotations"]["label"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [[1.0, 2.0, 3.0]], "category": [0]}, r"Dataset: row 2, object 1, field bbox: .* is not four numbers"),
        ({"bbox": [[1.0, 2, 3, 4]], "category": [0, 1]}, r"Dataset: row 2, column objects: 1 values of bbox, but 2 of"),
        (
            {"bbox": [[1.0, 2, 3, 4]], "category": [None]},
            r"Dataset: row 2, object 1, field category: .* is not one of the classes",
        ),
        ({"bbox": [[1.0, 2, float("inf"), 4]], "category": [0]}, r"Dataset: row 2, object 1: box .* is not finite"),
    ],
)
def test_a_wrong_value_is_one_line_with_row_and_field(shapes: Dataset, change: dict[str, Any], message: str) -> None:
    rows = rows_of(shapes)
    rows[2]["objects"] = change
    with pytest.raises(DetrkitError, match=message):
        open_dataset(hub(rows, shapes.class_names))


def test_what_cannot_be_opened_says_why(shapes: Dataset) -> None:
    data = hub(rows_of(shapes), shapes.class_names)
    for other, message in (
        (data.to_iterable_dataset(), "Dataset: it streams"),
        (data.remove_columns("image"), "Dataset: no column of images: its columns are image_id, objects; expected"),
        (data.remove_columns("objects"), "Dataset: no column of boxes: its columns are image_id, image; expected"),
    ):
        with pytest.raises(DetrkitError, match=message):
            open_dataset(other)
    with pytest.raises(DetrkitError, match="a Dataset has no masks"):
        open_dataset(data, masks=True)


def test_an_image_that_is_not_there_names_its_row(shapes: Dataset) -> None:
    rows = rows_of(shapes)
    rows[1]["image"] = {"bytes": b"no image", "path": None}
    with pytest.raises(DetrkitError, match=r"Dataset, row 1 \(2\): not an image that can be read"):
        open_dataset(hub(rows, shapes.class_names))
