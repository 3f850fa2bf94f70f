"""A small replica of CPPE-5 in both of its layouts, with the faults that the real one has."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NAMES = ("Coverall", "Face_Shield", "Gloves", "Goggles", "Mask")
FEATURES = {
    "image_id": {"dtype": "int64", "_type": "Value"},
    "image": {"_type": "Image"},
    "width": {"dtype": "int32", "_type": "Value"},
    "height": {"dtype": "int32", "_type": "Value"},
    "objects": {
        "feature": {
            "id": {"dtype": "int64", "_type": "Value"},
            "area": {"dtype": "int64", "_type": "Value"},
            "bbox": {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "Sequence"},
            "category": {"names": list(NAMES), "_type": "ClassLabel"},
        },
        "_type": "Sequence",
    },
}


def picture(height: int, width: int, seed: int) -> bytes:
    """A png."""
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "png")
    return stream.getvalue()


def replica(*, misfit: bool = False) -> dict[str, tuple[dict[str, Any], dict[str, bytes]]]:
    """Split -> (COCO json, file name -> png): six images to train on and three to test on, numbered on.

    Every image has an object of each class but the last, which has none; image 2 also has a box that leaves it and
    image 3 one without area. With `misfit`, image 1 is larger than its annotations say.
    """
    splits = {}
    annotation_id = 0
    for split, ids in (("train", range(1, 7)), ("test", range(1001, 1004))):
        images, annotations, files = [], [], {}
        for image_id in ids:
            height, width = 40 + image_id % 7, 60 + image_id % 5
            images.append({"file_name": f"{image_id}.png", "height": height, "width": width, "id": image_id})
            larger = 10 if misfit and image_id == 1 else 0
            files[f"{image_id}.png"] = picture(height + larger, width + larger, image_id)
            boxes = [(c, [5 * c, 3 * c, 10 + c, 12]) for c in range(1, 6)] if image_id != ids[-1] else []
            boxes += {2: [(5, [50, 20, 30, 10])], 3: [(1, [7, 7, 0, 9])]}.get(image_id, [])
            for category, box in boxes:
                annotation_id += 1
                annotations.append(
                    {
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                        "bbox": box,
                        "category_id": category,
                        "ignore": 0,
                        "segmentation": [],
                        "image_id": image_id,
                        "id": annotation_id,
                    }
                )
        categories = [{"supercategory": "none", "id": i, "name": n} for i, n in enumerate(NAMES, 1)]
        value = {"images": images, "type": "instances", "annotations": annotations, "categories": categories}
        splits[split] = (value, files)
    return splits


def write_tar(file: Path, *, wrapped: str = "", extra: dict[str, bytes] | None = None, misfit: bool = False) -> Path:
    """The official archive: annotations/{split}.json and images/*.png, in a folder if `wrapped` names one."""
    members: dict[str, bytes] = {}
    data = replica(misfit=misfit)
    for split, (value, _) in data.items():
        members[f"annotations/{split}.json"] = json.dumps(value).encode()
    for _, files in data.values():
        members |= {f"images/{name}": content for name, content in files.items()}
    with tarfile.open(file, "w:gz") as tar:
        for name, content in {**{wrapped + k: v for k, v in members.items()}, **(extra or {})}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def write_parquet(root: Path, *, shards: int = 1, features: Any = FEATURES, misfit: bool = False) -> Path:
    """The Hub's layout: data/{split}-00000-of-00001.parquet, rows in the order of the archive's files by name."""
    (root / "data").mkdir(parents=True)
    for split, (value, files) in replica(misfit=misfit).items():
        rows = []
        for image in sorted(value["images"], key=lambda i: i["file_name"], reverse=True):
            own = [a for a in value["annotations"] if a["image_id"] == image["id"]]
            rows.append(
                {
                    "image_id": image["id"],
                    "image": {"bytes": files[image["file_name"]], "path": image["file_name"]},
                    "width": image["width"],
                    "height": image["height"],
                    "objects": {
                        "id": [a["id"] for a in own],
                        "area": [a["area"] for a in own],
                        "bbox": [a["bbox"] for a in own],
                        "category": [a["category_id"] - 1 for a in own],
                    },
                }
            )
        count = -(-len(rows) // shards)
        for k in range(shards):
            table = pa.Table.from_pylist(rows[k * count : (k + 1) * count], schema=SCHEMA)
            if features is not None:
                table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
            # as little in a row group as can be: the images of a file lie in several
            pq.write_table(table, root / "data" / f"{split}-{k:05}-of-{shards:05}.parquet", row_group_size=2)
    return root


SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("width", pa.int32()),
        ("height", pa.int32()),
        (
            "objects",
            pa.struct(
                [
                    ("id", pa.list_(pa.int64())),
                    ("area", pa.list_(pa.int64())),
                    ("bbox", pa.list_(pa.list_(pa.float32(), 4))),
                    ("category", pa.list_(pa.int64())),
                ]
            ),
        ),
    ]
)
