"""Writer of a split as parquet, with the columns that detrkit's reader and the Hugging Face Hub know."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detrkit.data.dataset import Dataset
from detrkit.data.sources import ImageSource, TableImage
from detrkit.data.tools.placing import ImagePlacer
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import below

FILE_BYTES = 500 << 20  # images in one file, as the Hub splits datasets
_GROUP_BYTES = 32 << 20  # images in one row group, which are in memory together
_GROUP_ROWS = 100
_INT64 = range(-(1 << 63), 1 << 63)


def write_parquet(root: Path, split: str, dataset: Dataset, placer: ImagePlacer) -> list[str]:
    """Write data/{split}-00000-of-00001.parquet and, beyond `FILE_BYTES` of images, further shards.

    Returns:
        The names of the images, in order.

    Raises:
        DetrkitError: pyarrow is not installed, images that cannot be read, or an id that is no 64-bit integer.
        OSError: a file that cannot be written.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DetrkitError("writing parquet needs pyarrow: pip install pyarrow") from error
    if placer.how != "copy":
        raise DetrkitError("parquet holds the images themselves: use --images copy")
    folder = root / "data"
    folder.mkdir(exist_ok=True)
    schema = _schema(dataset.classes)
    names: list[str] = []
    parts: list[Path] = []
    writer = None
    room = 0
    try:
        for rows, size in _groups(dataset, placer, folder / split):
            if writer is None or room < size:
                if writer is not None:
                    writer.close()
                parts.append(below(folder, f"{split}.part{len(parts)}", where="name of a split"))
                writer, room = pyarrow.parquet.ParquetWriter(parts[-1], schema), FILE_BYTES
            room -= size
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            names += [row["image"]["path"] for row in rows]
    finally:
        if writer is not None:
            writer.close()
    for k, part in enumerate(parts):
        part.rename(folder / f"{split}-{k:05}-of-{len(parts):05}.parquet")
    return names


def _groups(dataset: Dataset, placer: ImagePlacer, folder: Path) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Yield the rows of each row group and the bytes of their images; one empty group if there is no image."""
    rows: list[dict[str, Any]] = []
    size = 0
    for row in _rows(dataset, placer, folder):
        length = len(row["image"]["bytes"])
        if rows and (len(rows) == _GROUP_ROWS or size + length > _GROUP_BYTES):
            yield rows, size
            rows, size = [], 0
        rows.append(row)
        size += length
    yield rows, size


def _rows(dataset: Dataset, placer: ImagePlacer, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield one row for each image."""
    ground_truth = dataset.ground_truth()
    label_of = dataset.classes.label_of
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in ground_truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    for record in dataset.records:
        if record.image_id not in _INT64:
            raise DetrkitError(f"{record.file}: image id {record.image_id} is no 64-bit integer, which parquet needs")
        annotations = objects[record.image_id]
        yield {
            "image_id": record.image_id,
            "image": {"bytes": _content(record.file), "path": placer.name(record.file, folder)[0]},
            "width": record.width,
            "height": record.height,
            "objects": {
                "id": [a["id"] for a in annotations],
                "area": [a["area"] for a in annotations],
                "bbox": [a["bbox"] for a in annotations],
                "category": [label_of[a["category_id"]] for a in annotations],
                "iscrowd": [bool(a["iscrowd"]) for a in annotations],
            },
        }


def _content(file: ImageSource) -> bytes:
    """Return the encoded image.

    Raises:
        DetrkitError: it cannot be read.
    """
    if isinstance(file, TableImage):
        return file.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise DetrkitError(f"{file}: cannot be read ({error.strerror or error})") from error


def _schema(classes: ClassList) -> Any:
    """Return the columns, with the metadata in which the Hub's `datasets` finds the names of the classes."""
    import pyarrow as pa

    lists = {
        "id": pa.list_(pa.int64()),
        "area": pa.list_(pa.float64()),
        "bbox": pa.list_(pa.list_(pa.float64(), 4)),
        "category": pa.list_(pa.int64()),
        "iscrowd": pa.list_(pa.bool_()),
    }
    features = {
        "image_id": _value("int64"),
        "image": {"_type": "Image"},
        "width": _value("int32"),
        "height": _value("int32"),
        "objects": {
            "feature": {
                "id": _value("int64"),
                "area": _value("float64"),
                "bbox": {"feature": _value("float64"), "length": 4, "_type": "Sequence"},
                "category": {"names": list(classes.names), "_type": "ClassLabel"},
                "iscrowd": _value("bool"),
            },
            "_type": "Sequence",
        },
    }
    return pa.schema(
        [
            ("image_id", pa.int64()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("objects", pa.struct(lists.items())),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def _value(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}
