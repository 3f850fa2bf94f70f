"""Parquet as the Hugging Face Hub has it for object detection, images included.

- A split is `train-00000-of-00004.parquet` and its sisters, in the folder itself or in `data/`; or `train.parquet`; or
  the numbered files in a folder of the split's name (the Hub's own conversion: `default/train/0000.parquet`).
- Columns: `image`, bytes or a struct with `bytes` and `path`; `objects`, a struct of lists or a list of structs, with
  `bbox` ([x, y, width, height] in pixels) and `category` (a number, or the name itself), and, where there are such,
  `id`, `area` (square pixels) and `iscrowd`. Likewise optional: `image_id`, `width` and `height`, pixels.
- Classes: the names of category's ClassLabel, in the files' metadata or else in the README.md beside them; names in
  the column itself are put in alphabetical order, over all splits. Category ids are the numbers, from 0.
- Image and annotation ids are those of the columns if no two are equal in the split, else positions from 1. Images
  come in the order of their ids, like those of a COCO json.
- Without width and height, sizes come from the headers of the images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from detrkit.classes import ClassList
from detrkit.data.readers.common import Findings, Objects, corners_of, is_int, make_record, read_text, size_or_error
from detrkit.data.sample import Record
from detrkit.data.sources import IMAGE_COLUMN, ParquetImage, open_parquet, parquet_errors
from detrkit.errors import DetrkitError

# "train-00000-of-00004", with the hash that older uploads have
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<count>\d{5})(-[0-9a-f]+)?")
_PLACES = ("*.parquet", "data/*.parquet", "*/*.parquet", "*/*/*.parquet")


def recognise(path: Path) -> bool:
    """Whether `path` is a parquet file or a folder with some."""
    if path.is_file():
        return path.suffix == ".parquet"
    return path.is_dir() and any(next(path.glob(place), None) for place in _PLACES)


def _files(path: Path) -> dict[str, list[Path]]:
    """Split -> its parquet files, in order.

    Raises:
        DetrkitError: files of one split in several folders, or some of its files are missing.
    """
    if path.is_file():
        return {_split_of(path): [path]}
    splits: dict[str, list[Path]] = {}
    for file in next(found for place in _PLACES if (found := sorted(path.glob(place)))):
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
    """The split's name: that of the file without its number, or of the folder whose files have only numbers."""
    shard = _SHARD.fullmatch(file.stem)
    if shard:
        return shard["split"]
    return file.parent.name if file.stem.isdecimal() else file.stem


def splits(path: Path) -> list[str]:
    """The names of the splits."""
    return sorted(_files(path))


def read(
    path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None
) -> tuple[ClassList, list[Record], Findings]:
    """Reads one split; see `detrkit.data.readers.coco.read` for arguments and returns.

    Raises:
        DetrkitError: masks were asked for, pyarrow is missing, columns or class names are, or (strict findings) any
            error in the rows.
    """
    if masks:
        raise DetrkitError(f"{path}: parquet has no masks of its objects; open it without masks")
    findings = findings if findings is not None else Findings()
    files = _files(path)
    classes = _read_classes(path, files, split)
    label_of = {name: label for label, name in enumerate(classes.names)}
    rows = [row for file in files[split] for row in _rows(file)]
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
    return classes, sorted(records, key=lambda record: record.image_id), findings


def _rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file without the bytes of the images.

    Returns:
        For each row `image` (ParquetImage), `image_id`, `width` and `height` (None if there is no such column), and
        `objects`: lists of equal length under `bbox`, `category`, `id`, `area` and `iscrowd`.

    Raises:
        DetrkitError: it lacks a column that is needed.
    """
    source = open_parquet(file)
    names = source.schema_arrow.names
    for needed in (IMAGE_COLUMN, "objects"):
        if needed not in names:
            raise DetrkitError(f"{file}: no column {needed}; it has {', '.join(names)}")
    columns = [name for name in ("image_id", "width", "height") if name in names]
    with parquet_errors(file):
        rows: list[dict[str, Any]] = source.read(columns=[*columns, f"{IMAGE_COLUMN}.path", "objects"]).to_pylist()
    for number, row in enumerate(rows):
        recorded = (row.pop(IMAGE_COLUMN, None) or {}).get("path") or str(row.get("image_id", number))
        row["image"] = ParquetImage(file, number, Path(recorded).name)
        for name in ("image_id", "width", "height"):
            row.setdefault(name, None)
        row["objects"] = _as_lists(row["objects"], f"{file}: row {number}: column objects")
    return rows


def _as_lists(objects: Any, where: str) -> dict[str, list[Any]]:
    """The objects of a row as a list for each field, whichever way round they are stored.

    Raises:
        DetrkitError: no bbox or category, or lists of different lengths.
    """
    if isinstance(objects, list):
        keys = dict.fromkeys(key for one in objects for key in one or ())
        objects = {key: [(one or {}).get(key) for one in objects] for key in keys} or {"bbox": [], "category": []}
    lists = {key: value or [] for key, value in (objects or {"bbox": [], "category": []}).items()}
    for needed in ("bbox", "category"):
        if needed not in lists:
            raise DetrkitError(f"{where}: no field {needed}; it has {', '.join(lists)}")
    count = len(lists["bbox"])
    for optional in ("id", "area", "iscrowd"):
        lists.setdefault(optional, [None] * count)
    for key in ("category", "id", "area", "iscrowd"):
        if len(lists[key]) != count:
            raise DetrkitError(f"{where}: {count} values of bbox, but {len(lists[key])} of {key}")
    return lists


def _unique(values: Sequence[Any]) -> list[int]:
    """The ids themselves if all are integers and no two are equal, else 1, 2, ..."""
    if all(is_int(value) for value in values) and len(set(values)) == len(values):
        return list(values)
    return list(range(1, len(values) + 1))


def _size(row: dict[str, Any]) -> tuple[int, int] | DetrkitError:
    """(height, width) in pixels, from the columns or else from the image."""
    size = row["height"], row["width"]
    return size if all(is_int(side) and side > 0 for side in size) else size_or_error(row["image"])


def _objects(lists: dict[str, list[Any]], image: ParquetImage, label_of: dict[str, int], findings: Findings) -> Objects:
    """The objects of one row."""
    objects = Objects()
    for k, (bbox, category) in enumerate(zip(lists["bbox"], lists["category"], strict=True)):
        name = f"row {image.row}, object {k + 1}"
        box = corners_of(bbox)
        label = label_of.get(category) if isinstance(category, str) else category
        if not is_int(label) or not 0 <= label < len(label_of):
            findings.add("error", image.file, name, f"category {category!r} is not one of the {len(label_of)} classes")
        elif box is None:
            findings.add("error", image.file, name, f"bbox {bbox} is not [x, y, width, height] in pixels")
        else:
            area = lists["area"][k]
            objects.boxes.append(box)
            objects.annotated.append(bbox)
            objects.labels.append(label)
            objects.crowd.append(bool(lists["iscrowd"][k]))
            objects.areas.append(area if isinstance(area, int | float) else None)
            objects.annotation_ids.append(lists["id"][k])
            objects.names.append(name)
    return objects


def _read_classes(path: Path, files: dict[str, list[Path]], split: str) -> ClassList:
    """The classes by the rule at the top of this file.

    Raises:
        DetrkitError: numbers without names.
    """
    first = files[split][0]
    metadata = open_parquet(first).schema_arrow.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        features = {}
    names = _label_names(_below(_below(features, "objects"), "category")) or _card_names(path)
    if names is None:
        every = [file for listed in files.values() for file in listed]
        found = {value for file in every for row in _rows(file) for value in row["objects"]["category"]}
        if not found or not all(isinstance(value, str) for value in found):
            raise DetrkitError(
                f"{first}: column objects.category has numbers, and neither metadata nor README.md has their names: "
                "write dataset_info with a class_label into README.md"
            )
        names = sorted(found)
    return ClassList(tuple(names), tuple(range(len(names))))


def _card_names(path: Path) -> list[str] | None:
    """The names in the dataset card, the YAML at the top of README.md.

    Raises:
        DetrkitError: malformed YAML.
    """
    folder = path if path.is_dir() else path.parent
    card = next((f for f in (folder / "README.md", folder.parent / "README.md") if f.is_file()), None)
    if card is None:
        return None
    front = re.match(r"---\n(.*?)\n---", read_text(card), re.DOTALL)
    try:
        value = yaml.safe_load(front[1]) if front else None
        return _label_names(_below(_below(_below(value, "dataset_info"), "objects"), "category"))
    except yaml.YAMLError as error:
        raise DetrkitError(f"{card}: malformed YAML ({getattr(error, 'problem', error)})") from error
    except ValueError as error:
        raise DetrkitError(f"{card}: the names of class_label must be numbered 0, 1, ... ({error})") from error


def _below(tree: Any, name: str) -> Any:
    """What the first entry called `name` holds, in nested mappings ({name: ...}) and lists ([{"name": name, ...}])."""
    if isinstance(tree, dict):
        if name in tree:
            return tree[name]
        if tree.get("name") == name:
            return {key: value for key, value in tree.items() if key != "name"}
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return next((found for value in values if (found := _below(value, name)) is not None), None)


def _label_names(tree: Any) -> list[str] | None:
    """The names of a ClassLabel, as the metadata ({"_type": "ClassLabel"}) or the card ("class_label") describe it."""
    label = tree if isinstance(tree, dict) and tree.get("_type") == "ClassLabel" else _below(tree, "class_label")
    names = label.get("names") if isinstance(label, dict) else None
    if isinstance(names, dict):  # the card's: {"0": name, ...}
        names = [names[key] for key in sorted(names, key=int)]
    if names:
        return [str(name) for name in names]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return next((found for value in values if (found := _label_names(value)) is not None), None)
