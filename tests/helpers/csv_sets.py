"""One dataset of boxes as CSV, in the convention of each tool that has one."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from detrkit.data import Dataset
from detrkit.data.sample import Record

Rows = Iterable[Sequence[object]]
Convention = Callable[[Dataset], tuple[str, Rows]]


def boxes(record: Record, classes: Sequence[str]) -> list[tuple[list[float], str, bool]]:
    """xyxy, class and crowd of each object."""
    return [
        (box, classes[label], crowd)
        for box, label, crowd in zip(record.boxes.tolist(), record.labels.tolist(), record.crowd.tolist(), strict=True)
    ]


def rows_of(dataset: Dataset, row: Callable[[Record, list[float], str, bool], Sequence[object]]) -> Rows:
    return [row(r, *each) for r in dataset.records for each in boxes(r, dataset.classes.names)]


def tensorflow(dataset: Dataset) -> tuple[str, Rows]:
    header = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
    return "{}_labels.csv", [header, *rows_of(dataset, lambda r, b, c, _: [r.file.name, r.width, r.height, c, *b])]


def wheat(dataset: Dataset) -> tuple[str, Rows]:
    """Kaggle's global wheat detection, with the class for its constant source."""

    def row(r: Record, b: list[float], c: str, _: bool) -> Sequence[object]:
        return [r.file.stem, r.width, r.height, [b[0], b[1], b[2] - b[0], b[3] - b[1]], c]

    return "{}.csv", [["image_id", "width", "height", "bbox", "class"], *rows_of(dataset, row)]


def corner_and_sides(dataset: Dataset) -> tuple[str, Rows]:
    header = ["image_id", "x", "y", "w", "h", "label"]
    return "{}.csv", [
        header,
        *rows_of(dataset, lambda r, b, c, _: [r.file.name, b[0], b[1], b[2] - b[0], b[3] - b[1], c]),
    ]


def center_and_sides(dataset: Dataset) -> tuple[str, Rows]:
    def row(r: Record, b: list[float], c: str, _: bool) -> Sequence[object]:
        w, h = b[2] - b[0], b[3] - b[1]
        relative = [(b[0] + w / 2) / r.width, (b[1] + h / 2) / r.height, w / r.width, h / r.height]
        return [c, *relative, f"images/{r.file.name}"]

    return "{}.csv", [["class_name", "x_center", "y_center", "width", "height", "image_path"], *rows_of(dataset, row)]


def retinanet(dataset: Dataset) -> tuple[str, Rows]:
    """keras-retinanet: no header; an image without objects has empty fields."""
    rows: list[Sequence[object]] = []
    for record in dataset.records:
        listed = boxes(record, dataset.classes.names)
        rows += [[record.file.name, *box, name] for box, name, _ in listed] or [[record.file.name, *[""] * 5]]
    return "{}_annotations.csv", rows


def open_images(dataset: Dataset) -> tuple[str, Rows]:
    header = ["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsOccluded", "IsGroupOf"]

    def row(r: Record, b: list[float], c: str, crowd: bool) -> Sequence[object]:
        x, y = [v / r.width for v in b[::2]], [v / r.height for v in b[1::2]]
        return [r.file.stem, "xclick", c, 1, *x, *y, -1, int(crowd)]

    return "{}-annotations-bbox.csv", [header, *rows_of(dataset, row)]


def automl(dataset: Dataset) -> tuple[str, Rows]:
    def row(r: Record, b: list[float], c: str, _: bool) -> Sequence[object]:
        x0, y0, x1, y1 = b[0] / r.width, b[1] / r.height, b[2] / r.width, b[3] / r.height
        return [dataset.split.upper(), f"gs://bucket/{r.file.name}", c, x0, y0, "", "", x1, y1, "", ""]

    return "automl.csv", rows_of(dataset, row)


CONVENTIONS: dict[str, Convention] = {
    f.__name__: f for f in (tensorflow, wheat, corner_and_sides, center_and_sides, retinanet, open_images, automl)
}


def text_of(rows: Rows, delimiter: str = ",") -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def write_table(root: Path, dataset: Dataset, convention: Convention, split: str) -> Path:
    """Writes the table of a split; a table of all splits is continued."""
    name, rows = convention(dataset)
    file = root / name.format(split)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(text_of(rows))
    return file
