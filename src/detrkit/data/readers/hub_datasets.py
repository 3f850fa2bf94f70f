"""`datasets.Dataset` and `DatasetDict` of Hugging Face, in memory: a row for each image, with the lists of its objects.

- Images: the column of the feature Image (or encoded bytes, or paths); the files are decoded by detrkit, as all others.
- Objects: a column, such as `objects`, with fields bbox and category: lists, or a list of structs; or the columns bbox
  and category themselves. Their other names are below (`_BOXES`, `_CLASSES`). Optional: area (square pixels), iscrowd;
  beside them width, height (pixels) and image_id.
- Boxes are [x, y, width, height] unless `box_format` says otherwise. If no number of the split is above 1, they are
  relative to the sides of the image.
- Classes: the names of a ClassLabel in their order, category ids from 0; else the names in the column, in alphabetical
  order over all splits; numbers without names are called by their number.
- Splits: the keys of a DatasetDict; else the one that the Dataset is called after (`dataset.split`), or "all".

datasets is not imported: it is there if there is a Dataset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from detrkit.data.readers.base import Reader, Reading
from detrkit.data.readers.class_names import check_class_names
from detrkit.data.readers.common import Findings, finite, is_int, make_record, size_fault, size_or_error
from detrkit.data.readers.csv_columns import Columns, Form
from detrkit.data.readers.csv_rows import ONLY_CLASS, ImageRows, Units, are_relative, collect_objects
from detrkit.data.readers.csv_tables import Table
from detrkit.data.readers.parquet_names import find_below, label_names
from detrkit.data.sources import DatasetImage
from detrkit.structures.classes import ClassList
from detrkit.utils.documents import shown
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import first_names
from detrkit.utils.names import checked_name
from detrkit.utils.visible import first_line

DATASET = "Dataset"
_BOXES = ("bbox", "bboxes", "box", "boxes")
_CLASSES = ("category", "categories", "label", "labels", "class", "classes", "category_id", "class_id")
_ROWS = 1000  # read together
_EXPECTED = "expected a column image, and a column objects of bbox and category"


def is_hub_dataset(data: object) -> bool:
    """Tell whether something is a `datasets.Dataset` or `IterableDataset`, without importing datasets."""
    return hasattr(data, "features") and hasattr(data, "cast_column")


class _Layout(NamedTuple):
    """Columns of a Dataset.

    Attributes:
        image: of the images.
        objects: of the objects; None: their fields are columns.
        box, label: names of these fields; label is None where there is one class.
        names: of the classes, if a ClassLabel has them.
    """

    image: str
    objects: str | None
    box: str
    label: str | None
    names: list[str] | None


class _Rows(Table):
    """A Dataset as a table of boxes: what messages call it, and the form of its boxes."""

    corners_advice: ClassVar[str] = 'they are corners: pass box_format="xyxy"'

    def where(self, number: int, columns: Sequence[int] = ()) -> str:
        """Name a row by its position."""
        return f"row {number}"


class HubReader(Reader):
    """Reader of a Dataset, or of a dict of them: split -> Dataset.

    Args:
        data: the Datasets.
        root: folder that paths of images are relative to; None: the working directory.
        box_format: of the boxes; None: [x, y, width, height].

    Raises:
        DetrkitError: no columns of images and boxes, or a Dataset that streams.
    """

    name = "datasets"
    expects = "a datasets.Dataset"
    no_objects_cause = "the column of objects is empty"

    def __init__(self, data: Any, root: Path | None, box_format: Form | None) -> None:
        self._root = root
        self._form: Form = box_format or "xywh"
        if isinstance(data, Mapping):
            self._parts = {checked_name(str(split), "name of a split"): part for split, part in data.items()}
        else:
            self._parts = {str(getattr(data, "split", None) or "all"): data}
        self._layouts = {split: _find_layout(part, self._called(split)) for split, part in self._parts.items()}

    def _called(self, split: str) -> str:
        return DATASET if len(self._parts) == 1 else f"{DATASET} {split}"

    def recognize(self, path: Path) -> bool:
        """Return False: it reads no files."""
        return False

    def splits(self, path: Path) -> list[str]:
        """Return the names of the splits."""
        return list(self._parts)

    def read(self, path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None) -> Reading:
        """Read one split, as `Reader.read`.

        Raises:
            DetrkitError: masks were requested, or (strict findings) any error in the rows.
        """
        if masks:
            raise DetrkitError(f"{path}: a Dataset has no masks of its objects; open it without masks")
        findings = findings if findings is not None else Findings(hint="")
        called, layout = Path(self._called(split)), self._layouts[split]
        columns = Columns(count=1, header=True, image=0, box=(0,), form=self._form)
        table = _Rows(called, columns)
        rows = [_image_rows(row, layout, number, called, findings) for number, row in _rows_of(self._parts[split])]
        images = _images_of(self._parts[split], layout.image, self._root, called, [row.image_id for row in rows])
        classes = self._read_classes(split, rows, called, findings)
        largest = max((abs(v) for row in rows for box in row.rows.boxes for v in box if v == v), default=None)
        units = Units(table, are_relative(table, largest, findings))
        label_of = {name: label for label, name in enumerate(classes.names)}
        with ThreadPoolExecutor(8) as pool:
            sizes = list(pool.map(lambda k: rows[k].rows.size or size_or_error(images[k]), range(len(rows))))
        findings.measured.update(image for image, row in zip(images, rows, strict=True) if row.rows.size is None)
        ids = [row.image_id for row in rows]
        unique = all(map(is_int, ids)) and len({*ids}) == len(ids)
        records = []
        for number, (image, row, size) in enumerate(zip(images, rows, sizes, strict=True)):
            if isinstance(size, DetrkitError):
                findings.add("error", image, "", str(size).removeprefix(f"{image}: "))
                continue
            where = f"row {number}, object {{}}".format
            objects = collect_objects(row.rows, size, units, label_of, findings, where)
            image_id = int(row.image_id) if unique else number + 1
            records.append(make_record(image_id, image, size, objects, called, findings))
        units.check(findings)
        return Reading(classes, records, findings)

    def _read_classes(self, split: str, rows: Sequence[_Row], called: Path, findings: Findings) -> ClassList:
        """Read the classes by the rule at the top of this file.

        Raises:
            DetrkitError: no class, or (strict findings) a name that cannot be used.
        """
        names, first_id = self._layouts[split].names, 0
        if names is None:
            used = {name for row in rows for name in row.rows.labels}
            for other, part in self._parts.items():
                if other != split:
                    quiet = Findings(strict=False)  # faults of the rows are reported when that split is read
                    layout, file = self._layouts[other], Path(self._called(other))
                    for number, row in _rows_of(part):
                        used.update(_image_rows(row, layout, number, file, quiet).rows.labels)
            if not used:
                raise DetrkitError(f"{called}: no row has a box: there is no class to learn")
            numbers = all(name.isascii() and name.isdecimal() for name in used)
            names, first_id = sorted(used, key=int) if numbers else sorted(used), 1
            if numbers:
                reason = "categories are numbers without names: classes are called by them (a ClassLabel has names)"
                findings.note("info", called, "", reason)
        check_class_names(((f"class {number}", name) for number, name in enumerate(names)), called, findings)
        return ClassList(tuple(names), tuple(range(first_id, first_id + len(names))), unused=frozenset())


class _Row(NamedTuple):
    """Objects of an image, and what the row calls it."""

    rows: ImageRows
    image_id: Any


def _find_layout(data: Any, called: str) -> _Layout:
    """Find the columns of images and objects by their features.

    Raises:
        DetrkitError: there are none, or the Dataset streams.
    """
    if not hasattr(data, "num_rows"):
        raise DetrkitError(f"{called}: it streams, and training needs images in any order: load it without streaming")
    features = data.features.to_dict()
    listed = first_names(features, 8)
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    image = "image" if "image" in features else images[0] if len(images) == 1 else None
    if image is None:
        raise DetrkitError(f"{called}: no column of images: its columns are {listed}; {_EXPECTED}")
    holders = [name for name, tree in features.items() if any(find_below(tree, box) is not None for box in _BOXES)]
    if not holders and (box := _first(features, _BOXES)) is not None:
        label = _first(features, _CLASSES)
        return _Layout(image, None, box, label, label_names(features[label]) if label else None)
    if "objects" not in holders and len(holders) != 1:
        what = "no column of boxes" if not holders else f"boxes in the columns {first_names(holders)}: keep one"
        raise DetrkitError(f"{called}: {what}: its columns are {listed}; {_EXPECTED}")
    objects = "objects" if "objects" in holders else holders[0]
    tree = features[objects]
    box = next(name for name in _BOXES if find_below(tree, name) is not None)
    label = next((name for name in _CLASSES if find_below(tree, name) is not None), None)
    return _Layout(image, objects, box, label, label_names(find_below(tree, label)) if label else None)


def _first(names: Mapping[str, Any], choices: Sequence[str]) -> str | None:
    return next((name for name in choices if name in names), None)


def _rows_of(data: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows without their images."""
    images = [name for name, feature in data.features.to_dict().items() if feature.get("_type") == "Image"]
    rest = data.remove_columns(images).with_format(None)
    number = 0
    if not rest.column_names:
        yield from ((k, {}) for k in range(data.num_rows))
        return
    for batch in rest.iter(batch_size=_ROWS):
        for values in zip(*batch.values(), strict=True):
            yield number, dict(zip(batch, values, strict=True))
            number += 1


def _image_rows(row: Mapping[str, Any], layout: _Layout, number: int, called: Path, findings: Findings) -> _Row:
    """Collect the objects of a row as texts of classes and numbers; a wrong one is noted and left out."""
    image = ImageRows(str(number), number)
    height, width = row.get("height"), row.get("width")
    if height and width:
        reason = size_fault(height, width)
        if reason is None:
            image.size = int(height), int(width)
        else:
            findings.add("error", called, f"row {number}, columns width, height", reason)
    fields = row if layout.objects is None else row.get(layout.objects)
    try:
        lists = _as_lists(fields, layout)
    except ValueError as error:
        findings.add("error", called, f"row {number}, column {layout.objects or layout.box}", str(error))
        return _Row(image, row.get("image_id"))
    for k, (bbox, category, area, crowd) in enumerate(zip(*lists, strict=True), 1):
        where = f"row {number}, object {k}"
        box = _four(bbox)
        name = _class_name(category, layout)
        if box is None:
            findings.add("error", called, f"{where}, field {layout.box}", f"{shown(bbox)} is not four numbers")
        elif name is None:
            findings.add(
                "error", called, f"{where}, field {layout.label}", f"{shown(category)} is not one of the classes"
            )
        else:
            image.boxes.append(box)
            image.labels.append(name)
            image.crowd.append(crowd in (1, True))
            size = finite(area)
            image.areas.append(size if size is not None and size > 0 else None)
            image.lines.append(k)
            image.numbers.append(0)
    return _Row(image, row.get("image_id"))


def _as_lists(fields: Any, layout: _Layout) -> list[list[Any]]:
    """Return boxes, categories, areas and crowd of a row as lists of one length, whichever way they are stored.

    Raises:
        ValueError: lists of different lengths.
    """
    names = (layout.box, layout.label, "area", "iscrowd")
    if isinstance(fields, list):  # of structs
        return [[None if one is None or name is None else one.get(name) for one in fields] for name in names]
    boxes = list((fields or {}).get(layout.box) or [])
    lists: list[list[Any]] = [boxes]
    for name in names[1:]:
        values = None if name is None or fields is None else fields.get(name)
        if not isinstance(values, list) or (not values and name != layout.label):
            values = [None] * len(boxes)
        if len(values) != len(boxes):
            raise ValueError(f"{len(boxes)} values of {layout.box}, but {len(values)} of {name}")
        lists.append(values)
    return lists


def _four(bbox: Any) -> tuple[float, float, float, float] | None:
    """Return four numbers, or None; they may be infinite or NaN, which are faults later on."""
    if not isinstance(bbox, list | tuple) or len(bbox) != 4:
        return None
    if not all(type(value) in (int, float) for value in bbox):
        return None
    a, b, c, d = map(float, bbox)
    return a, b, c, d


def _class_name(category: Any, layout: _Layout) -> str | None:
    """Return the name of an object's class, or None if it has none."""
    if layout.label is None:
        return ONLY_CLASS
    if layout.names is not None and is_int(category):
        return layout.names[category] if 0 <= category < len(layout.names) else None
    if isinstance(category, str):
        return category.strip() or None
    return str(category) if is_int(category) else None


def _images_of(
    data: Any, column: str, root: Path | None, called: Path, image_ids: Sequence[Any]
) -> list[Path | DatasetImage]:
    """Return the source of each row's image: the row itself, or a file where the row has only its path.

    Raises:
        DetrkitError: the column holds no images.
    """
    encoded = data.select_columns([column]).with_format(None)
    feature = data.features[column]
    if hasattr(feature, "decode"):
        try:
            encoded = encoded.cast_column(column, type(feature)(decode=False))
        except Exception as error:  # whatever Arrow raises on a column of another type
            raise DetrkitError(f"{called}: column {column} cannot be read as images ({first_line(error)})") from error
    images: list[Path | DatasetImage] = []
    for number, (path, has_bytes) in enumerate(_places(encoded, column, called)):
        name = _image_name(path, image_ids[number], number)
        if has_bytes or not path:
            images.append(DatasetImage(encoded, column, number, name, str(called)))
        else:
            images.append((root or Path.cwd()) / path)
    return images


def _places(encoded: Any, column: str, called: Path) -> Iterator[tuple[str | None, bool]]:
    """Yield the path of each row's image, and whether the row holds its bytes, without reading these.

    Raises:
        DetrkitError: the column holds neither.
    """
    for table in encoded.with_format("arrow").iter(batch_size=_ROWS):
        for chunk in table[column].chunks:
            kind = str(chunk.type)
            fields = {field.name: chunk.field(field.name) for field in chunk.type} if kind.startswith("struct") else {}
            if kind in ("string", "large_string"):
                yield from ((path, False) for path in chunk.to_pylist())
            elif kind in ("binary", "large_binary"):
                yield from ((None, valid) for valid in chunk.is_valid().to_pylist())
            elif "bytes" in fields and "path" in fields:
                valid = fields["bytes"].is_valid().to_pylist()
                yield from zip(fields["path"].to_pylist(), valid, strict=True)
            else:
                raise DetrkitError(f"{called}: column {column} is {kind[:80]}: expected images, their bytes or paths")


def _image_name(path: Any, image_id: Any, number: int) -> str:
    """Name a row's image: by the last part of its path, else by its id, else by the number of the row."""
    for text in (re.split(r"[/\\]", path)[-1] if path else "", str(image_id) if image_id is not None else ""):
        with suppress(DetrkitError):
            return checked_name(text, "")
    return str(number)
