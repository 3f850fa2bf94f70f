"""Parquet as the Hugging Face Hub has it for object detection, images included.

- A split is `train-00000-of-00004.parquet` and the other shards, in the folder itself or in `data/`; or
  `train.parquet`; or the numbered files in a folder of the split's name (the Hub's own conversion:
  `default/train/0000.parquet`).
- Columns: `image`, bytes or a struct with `bytes` and `path`; `objects`, a struct of lists or a list of structs, with
  `bbox` ([x, y, width, height] in pixels) and `category` (a number, or the name itself), and, optionally, `id`,
  `area` (square pixels) and `iscrowd`. Also optional: `image_id`, `width` and `height`, pixels.
- Classes: the names of category's ClassLabel, in the files' metadata or else in the README.md beside them; names in
  the column itself are put in alphabetical order, over all splits. Category ids are the numbers, from 0.
- Image and annotation ids are those of the columns if no two are equal in the split, else positions from 1. Images
  come in the order of their ids, like those of a COCO json.
- Without width and height, sizes come from the headers of the images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from detrkit.data.readers.base import Reader, Reading, register_reader
from detrkit.data.readers.class_names import check_class_names
from detrkit.data.readers.common import Findings, Objects, corners_of, is_int, make_record, size_or_error
from detrkit.data.readers.parquet_names import card_names, metadata_names
from detrkit.data.sources import IMAGE_COLUMN, ParquetImage, open_parquet, parquet_errors
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import checked_name, not_hidden

# "train-00000-of-00004", with the hash that older uploads have
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<count>\d{5})(-[0-9a-f]+)?")
# Limit of the values in a column: enough for a box per image of some hundred bytes, and for small files of anything.
_VALUES, _VALUES_PER_BYTE = 1_000_000, 16
_PLACES = ("*.parquet", "data/*.parquet", "*/*.parquet", "*/*/*.parquet")


@register_reader
class ParquetReader(Reader):
    """Reader of the Hugging Face Hub's parquet files."""

    name = "parquet"
    expects = "parquet (data/train-*.parquet)"
    no_objects_cause = "the column of objects is empty"
    divided_by = "data/train-*.parquet and data/val-*.parquet"

    def recognize(self, path: Path) -> bool:
        """Tell whether `path` is a parquet file or a folder with some."""
        if path.is_file():
            return path.suffix == ".parquet"
        return path.is_dir() and any(next(not_hidden(path, place), None) for place in _PLACES)

    def splits(self, path: Path) -> list[str]:
        """Return the names of the splits.

        Raises:
            DetrkitError: as in `_files`, or a file name gives no name of a split.
        """
        return sorted(checked_name(split, f"{path}: name of a split") for split in _files(path))

    def read(self, path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None) -> Reading:
        """Read one split, as `Reader.read`.

        Raises:
            DetrkitError: masks were requested, pyarrow, columns or class names are missing, or (strict findings) any
                error in the rows.
        """
        if masks:
            raise DetrkitError(f"{path}: parquet has no masks of its objects; open it without masks")
        findings = findings if findings is not None else Findings()
        files = _files(path)
        classes = _read_classes(path, files, split, findings)
        label_of = {name: label for label, name in enumerate(classes.names)}
        rows = [row for file in files[split] for row in _rows(file, findings)]
        image_ids = _unique([row["image_id"] for row in rows])
        annotation_ids = iter(_unique([value for row in rows for value in row["objects"]["id"]]))
        with ThreadPoolExecutor(8) as pool:
            sizes = list(pool.map(_size, rows))
        records = []
        for image_id, row, size in zip(image_ids, rows, sizes, strict=True):
            image = row["image"]
            row["objects"]["id"] = [next(annotation_ids) for _ in row["objects"]["id"]]
            if isinstance(size, DetrkitError):
                findings.add("error", image, "", str(size).removeprefix(f"{image}: "))
                continue
            objects = _objects(row["objects"], image, label_of, findings)
            records.append(make_record(image_id, image, size, objects, image.file, findings))
        return Reading(classes, sorted(records, key=lambda record: record.image_id), findings)


def _files(path: Path) -> dict[str, list[Path]]:
    """Map each split to its parquet files, in order.

    Raises:
        DetrkitError: files of one split in several folders, or some of its files are missing.
    """
    if path.is_file():
        return {_split_of(path): [path]}
    splits: dict[str, list[Path]] = {}
    for file in next(files for place in _PLACES if (files := sorted(not_hidden(path, place)))):
        splits.setdefault(_split_of(file), []).append(file)
    for split, files in splits.items():
        folders = sorted({file.parent for file in files})
        if len(folders) > 1:
            raise DetrkitError(f"{path}: split {split} is in {folders[0]} and in {folders[1]}: open one of these")
        shard = _SHARD.fullmatch(files[0].stem)
        if shard and int(shard["count"]) != len(files):
            raise DetrkitError(f"{path}: split {split} has {len(files)} of its {int(shard['count'])} parquet files")
    return splits


def _split_of(file: Path) -> str:
    """Return the split's name: that of the file without its number, or of the folder whose files have only numbers."""
    shard = _SHARD.fullmatch(file.stem)
    if shard:
        return shard["split"]
    return file.parent.name if file.stem.isdecimal() else file.stem


def _rows(file: Path, findings: Findings) -> list[dict[str, Any]]:
    """Read the rows of a file, without the bytes of the images; an unreadable one is noted and has no objects.

    Returns:
        For each row `image` (ParquetImage), `image_id`, `width` and `height` (None if there is no such column), and
        `objects`: lists of equal length under `bbox`, `category`, `id`, `area` and `iscrowd`.

    Raises:
        DetrkitError: it lacks a column that is needed, or has it in another type; more rows than bytes.
    """
    source = open_parquet(file)
    with parquet_errors(file):
        schema = source.schema_arrow
        recorded = _recorded_names(schema, file)
        _check_counts(source.metadata, file)
        columns = [name for name in ("image_id", "width", "height") if name in schema.names]
        table = source.read(columns=[*columns, *recorded, "objects"])
        rows = _python_rows(table, file, findings)
    for number, row in enumerate(rows):
        for name in ("image_id", "width", "height"):
            row.setdefault(name, None)
        row["image"] = ParquetImage(file, number, _image_name(row, number, file, findings))
        row["objects"] = _as_lists(row.get("objects"), number, file, findings)
    return rows


def _recorded_names(schema: Any, file: Path) -> list[str]:
    """Check the columns; return that of the images' names, if there is one.

    Raises:
        DetrkitError: a column that is needed is missing, there twice, or of an unsuitable type.
    """
    from pyarrow import types

    for needed in (IMAGE_COLUMN, "objects"):
        count = schema.names.count(needed)
        if count != 1:
            names = ", ".join(schema.names)[:300]
            raise DetrkitError(f"{file}: {'no' if not count else 'more than one'} column {needed}; it has {names}")
    image, objects = schema.field(IMAGE_COLUMN).type, schema.field("objects").type
    fields = {field.name: field.type for field in image} if types.is_struct(image) else {"bytes": image}
    if not any(is_it(fields.get("bytes")) for is_it in (types.is_binary, types.is_large_binary) if "bytes" in fields):
        raise DetrkitError(
            f"{file}: column {IMAGE_COLUMN} is {_type(image)}: expected the bytes of image files, or a struct of bytes "
            "and path"
        )
    listed = any(is_it(objects) for is_it in (types.is_list, types.is_large_list, types.is_fixed_size_list))
    if not types.is_struct(objects.value_type if listed else objects):
        raise DetrkitError(
            f"{file}: column objects is {_type(objects)}: expected a struct of lists or a list of structs"
        )
    return [f"{IMAGE_COLUMN}.path"] if "path" in fields else []


def _type(of: Any) -> str:
    """Format a type of Arrow for a message."""
    return " ".join(str(of).split())[:80]


def _check_counts(metadata: Any, file: Path) -> None:
    """Refuse a small file that would fill the memory: equal values take no space in a file, but they do here.

    Raises:
        DetrkitError: many more values in a column than the file has bytes.
    """
    size = file.stat().st_size
    values = metadata.num_rows
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            values = max(values, metadata.row_group(group).column(column).num_values)
    if values > _VALUES + _VALUES_PER_BYTE * size:
        raise DetrkitError(f"{file}: says that it has {values} values in {size} bytes: not written by a usual tool")


def _python_rows(table: Any, file: Path, findings: Findings) -> list[dict[str, Any]]:
    """Convert the rows to Python's values; note and leave out those without one (invalid UTF-8, a year 300000)."""
    try:
        values: list[dict[str, Any]] = table.to_pylist()
        return values
    except (ValueError, OverflowError, TypeError):
        rows: list[dict[str, Any]] = []
        for number in range(table.num_rows):
            row: dict[str, Any] = {}
            for name in table.column_names:
                try:
                    row[name] = table[name][number].as_py()
                except (ValueError, OverflowError, TypeError) as error:
                    reason = f"column {name} cannot be read ({' '.join(str(error).split())[:80]})"
                    findings.add("error", file, f"row {number}", reason)
            rows.append(row)
        return rows


def _image_name(row: dict[str, Any], number: int, file: Path, findings: Findings) -> str:
    """Name a row's image: by the last part of its path, else by its id, else by the number of the row."""
    image = row.pop(IMAGE_COLUMN, None)
    path = image.get("path") if isinstance(image, dict) else None
    other = str(row["image_id"] if is_int(row["image_id"]) else number)
    if path is None:
        text = row["image_id"] if isinstance(row["image_id"], str) else other
    else:
        text = re.split(r"[/\\]", path)[-1] if isinstance(path, str) else ""
    try:
        return checked_name(text, str(file))
    except DetrkitError:
        if path:
            reason = f"image.path {repr(path)[:80]} does not end in the name of a file: called {other}"
            findings.add("warning", file, f"row {number}", reason)
        return other


def _as_lists(objects: Any, number: int, file: Path, findings: Findings) -> dict[str, list[Any]]:
    """Turn the objects of a row into a list for each field, whichever way round they are stored.

    Raises:
        DetrkitError: no bbox or category, or lists of different lengths (strict findings; else it has no objects).
    """
    if isinstance(objects, list):
        keys = dict.fromkeys(key for one in objects for key in one or ())
        objects = {key: [(one or {}).get(key) for one in objects] for key in keys}
        objects = objects or {"bbox": [], "category": []}
    lists = {"bbox": [], "category": []} if objects is None else dict(objects)
    count = len(lists["bbox"]) if isinstance(lists.get("bbox"), list) else 0
    reason = None
    for key in ("bbox", "category"):
        if key not in lists:
            reason = reason or f"no field {key}; it has {', '.join(lists)[:200]}"
    for key in ("bbox", "category", "id", "area", "iscrowd"):
        values = lists.get(key)
        if values is None:  # no list at all, as where there are no objects
            values = [] if key in ("bbox", "category") else [None] * count
        if not isinstance(values, list):
            reason = reason or f"{key} is {repr(values)[:80]}, not a list"
        elif len(values) != count:
            reason = reason or f"{count} values of bbox, but {len(values)} of {key}"
        lists[key] = values
    if reason is None:
        return lists
    findings.add("error", file, f"row {number}", f"column objects: {reason}")
    return {key: [] for key in ("bbox", "category", "id", "area", "iscrowd")}


def _unique(values: Sequence[Any]) -> list[int]:
    """Return the ids themselves if all are integers (of 64 bits) and no two are equal, else 1, 2, ..."""
    if all(is_int(value) and abs(value) < 1 << 63 for value in values) and len(set(values)) == len(values):
        return list(values)
    return list(range(1, len(values) + 1))


def _size(row: dict[str, Any]) -> tuple[int, int] | DetrkitError:
    """Return (height, width) in pixels, from the columns or else from the image."""
    size = row["height"], row["width"]
    return size if all(is_int(side) and side > 0 for side in size) else size_or_error(row["image"])


def _objects(lists: dict[str, list[Any]], image: ParquetImage, label_of: dict[str, int], findings: Findings) -> Objects:
    """Collect the objects of one row."""
    objects = Objects()
    for k, (bbox, category) in enumerate(zip(lists["bbox"], lists["category"], strict=True)):
        name = f"row {image.row}, object {k + 1}"
        box = corners_of(bbox) if isinstance(bbox, list) else None
        label = label_of.get(category) if isinstance(category, str) else category
        area, crowd = lists["area"][k], lists["iscrowd"][k]
        if not is_int(label) or not 0 <= label < len(label_of):
            reason = f"category {repr(category)[:80]} is not one of the {len(label_of)} classes"
        elif box is None:
            reason = f"bbox {repr(bbox)[:80]} is not [x, y, width, height] in pixels"
        elif area is not None and not (_is_number(area) and 0 <= area < math.inf):
            reason = f"area {repr(area)[:80]} is not a number of square pixels"
        elif crowd is not None and crowd not in (0, 1):
            reason = f"iscrowd {repr(crowd)[:80]} is not 0 or 1"
        else:
            objects.boxes.append(box)
            objects.annotated.append(bbox)
            objects.labels.append(label)
            objects.crowd.append(bool(crowd))
            objects.areas.append(area)
            objects.annotation_ids.append(lists["id"][k])
            objects.names.append(name)
            continue
        findings.add("error", image.file, name, reason)
    return objects


def _is_number(value: Any) -> bool:
    """Tell whether a value is an int or a float (no bool)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_classes(path: Path, files: dict[str, list[Path]], split: str, findings: Findings) -> ClassList:
    """Read the classes by the rule at the top of this file.

    Raises:
        DetrkitError: numbers without names, or (strict findings) a name that cannot be used.
    """
    first = files[split][0]
    source = open_parquet(first)
    with parquet_errors(first):
        metadata = source.schema_arrow.metadata or {}
    names = metadata_names(metadata.get(b"huggingface", b"{}"), first)
    where = first
    if names is None:
        names, where = card_names(path)
    if names is None:
        every = [file for listed in files.values() for file in listed]
        quiet = Findings(strict=False)  # faults of the rows are reported when they are read
        categories = [value for file in every for row in _rows(file, quiet) for value in row["objects"]["category"]]
        texts = {value for value in categories if isinstance(value, str)}
        if not texts or any(is_int(value) for value in categories):
            raise DetrkitError(
                f"{first}: column objects.category has numbers, and neither metadata nor README.md has their names: "
                "write dataset_info with a class_label into README.md"
            )
        names, where = sorted(texts), first
    check_class_names(((f"class {number}", name) for number, name in enumerate(names)), where, findings)
    return ClassList(tuple(names), tuple(range(len(names))), unused=frozenset())
