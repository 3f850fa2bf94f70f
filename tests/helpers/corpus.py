"""Small datasets of each layout, as files in memory: what the fuzz test changes before it writes them."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

Files = dict[str, bytes]  # relative path -> content

RECIPE = """\
data: {size: 64, batch_size: 2, augment: flip}
model: {name: detr-r50, backbone: resnet10, backbone_weights: random, hidden_dim: 32, backbone_stages: [3, 4]}
optim: {epochs: 3, lr: 1.0e-4, schedule: cosine}
loss: {eos_coef: 0.1}
run: {seed: 3, out: runs/a}
"""
STUDY = """\
title: two
train: {data: {size: 64}, optim: {epochs: 2, lr_drop: 1}}
members:
  - {name: detr, model: {name: detr-r50}, published: {mAP: 0.4}}
  - {name: deformable, title: Deformable DETR, model: {name: deformable-detr-r50}, optim: {lr: 0.001}}
generate: {images: {train: 4, val: 2}, seed: 1}
"""


def picture(width: int, height: int, *, suffix: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(
        stream, {"png": "PNG", "jpg": "JPEG"}[suffix]
    )
    return stream.getvalue()


PICTURES = {"a.png": picture(12, 9), "b.png": picture(8, 16)}


def coco() -> Files:
    files: Files = {f"{split}/{name}": data for split in ("train", "val") for name, data in PICTURES.items()}
    for first, split in ((1, "train"), (3, "val")):
        value = {
            "images": [
                {"id": first, "file_name": "a.png", "width": 12, "height": 9},
                {"id": first + 1, "file_name": "b.png", "width": 8, "height": 16},
            ],
            "annotations": [
                {
                    "id": 1,
                    "image_id": first,
                    "category_id": 7,
                    "bbox": [1, 2, 4.5, 5],
                    "area": 20.5,
                    "iscrowd": 0,
                    "segmentation": [[1, 2, 5.5, 2, 5.5, 7, 1, 7]],
                },
                {
                    "id": 2,
                    "image_id": first + 1,
                    "category_id": 9,
                    "bbox": [0, 0, 8, 16],
                    "area": 128,
                    "iscrowd": 1,
                    "segmentation": {"size": [16, 8], "counts": [0, 128]},
                },
            ],
            "categories": [{"id": 7, "name": "cat", "supercategory": "animal"}, {"id": 9, "name": "dog"}],
        }
        files[f"annotations/instances_{split}.json"] = json.dumps(value).encode()
    return files


def id_map() -> bytes:
    """A PNG of 12 x 9 pixels: segment 7 on the left, 260 on the right."""
    image = Image.new("RGB", (12, 9), (7, 0, 0))
    image.paste((4, 1, 0), (5, 0, 12, 9))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def panoptic() -> Files:
    files: Files = {}
    for image_id, split in ((1, "train"), (2, "val")):
        files[f"{split}/a.png"] = PICTURES["a.png"]
        files[f"panoptic_{split}/a.png"] = id_map()
        value = {
            "images": [{"id": image_id, "file_name": "a.png", "width": 12, "height": 9}],
            "annotations": [
                {
                    "image_id": image_id,
                    "file_name": "a.png",
                    "segments_info": [
                        {"id": 7, "category_id": 1, "area": 45, "bbox": [0, 0, 5, 9], "iscrowd": 0},
                        {"id": 260, "category_id": 2, "area": 63, "bbox": [5, 0, 7, 9], "iscrowd": 0},
                    ],
                }
            ],
            "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
        }
        files[f"annotations/panoptic_{split}.json"] = json.dumps(value).encode()
    return files


VOC_XML = """\
<?xml version="1.0" encoding="UTF-8"?>
<annotation>
  <filename>{name}.png</filename>
  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>
  <object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>6</xmax><ymax>8</ymax></bndbox></object>
  <object><name>R&amp;D</name><bndbox><xmin>0.5</xmin><ymin>0</ymin><xmax>3</xmax><ymax>4e0</ymax></bndbox></object>
</annotation>
"""


def voc() -> Files:
    files: Files = {f"JPEGImages/{name}": data for name, data in PICTURES.items()}
    for name, width, height in (("a", 12, 9), ("b", 8, 16)):
        files[f"Annotations/{name}.xml"] = VOC_XML.format(name=name, width=width, height=height).encode()
    return {**files, "ImageSets/Main/train.txt": b"a\n", "ImageSets/Main/val.txt": b"b\n"}


def yolo() -> Files:
    files: Files = {f"images/{split}/{name}": data for split in ("train", "val") for name, data in PICTURES.items()}
    for split in ("train", "val"):
        files[f"labels/{split}/a.txt"] = b"0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n"
        files[f"labels/{split}/b.txt"] = b"1 0.25 0.5 0.5 1\n"
    files["data.yaml"] = b"path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n"
    return files


def parquet() -> Files:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files: Files = {}
    for split in ("train", "val"):
        table = pa.table(
            {
                "image_id": [1, 2],
                "image": [{"bytes": data, "path": name} for name, data in PICTURES.items()],
                "width": [12, 8],
                "height": [9, 16],
                "objects": [
                    {"id": [1], "bbox": [[1.0, 2.0, 4.0, 5.0]], "category": ["cat"], "area": [20.0]},
                    {
                        "id": [2, 3],
                        "bbox": [[0.0, 0.0, 8.0, 16.0], [1.0, 1.0, 2.0, 2.0]],
                        "category": ["dog", "cat"],
                        "area": [128.0, 4.0],
                    },
                ],
            }
        )
        stream = io.BytesIO()
        pq.write_table(table, stream)
        files[f"data/{split}-00000-of-00001.parquet"] = stream.getvalue()
    return files


def csv() -> Files:
    """TensorFlow's columns, with those of the area and the split, and the numbers of the classes."""
    files: Files = {f"images/{name}": data for name, data in PICTURES.items()}
    rows = "filename,width,height,class,xmin,ymin,xmax,ymax,area,split\n"
    rows += 'a.png,12,9,cat,1,2,5.5,7,20.5,train\na.png,12,9,"R&D, dog",0,0,4e0,3,,train\n'
    rows += "b.png,8,16,cat,0,0,8,16,128,train\na.png,12,9,cat,1,2,6,8,,val\nb.png,8,16,,,,,,,val\n"
    files["boxes.csv"] = rows.encode()
    return {**files, "classes.csv": b'cat,0\n"R&D, dog",1\n'}


def csv_relative() -> Files:
    """Open Images: ids of images without suffix, coordinates relative to the image, a table for each split."""
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf\n"
    rows = "a,xclick,/m/01,1,0.1,0.5,0.2,0.75,0,0\na,xclick,/m/02,1,0,1,0,1,-1,-1\nb,xclick,/m/02,1,0,1,0,0.5,0,1\n"
    tables = {f"{split}-annotations-bbox.csv": (header + rows).encode() for split in ("train", "val")}
    return {f"images/{name}": data for name, data in PICTURES.items()} | tables


def settings() -> Files:
    return {"recipe.yaml": RECIPE.encode(), "study.yaml": STUDY.encode()}


CORPUS = {
    "coco": coco,
    "panoptic": panoptic,
    "voc": voc,
    "yolo": yolo,
    "parquet": parquet,
    "csv": csv,
    "csv-relative": csv_relative,
    "settings": settings,
}


def write(root: Path, files: Files) -> None:
    """Writes the files; names that lead out of `root`, or that the disk cannot hold, are left out."""
    for name, data in files.items():
        target = root / name
        try:
            if not target.resolve().is_relative_to(root.resolve()):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        except (OSError, ValueError):
            continue
