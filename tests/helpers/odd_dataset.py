"""A small COCO dataset of everything that is odd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from helpers.datasets import picture

NAMES = {3: "a & b", 7: "traffic light", 9: "käse"}


def oriented(image: Image.Image, orientation: int) -> Image.Exif:
    exif = image.getexif()
    exif[0x0112] = orientation
    return exif


def write_odd(root: Path) -> Path:
    """A COCO dataset: EXIF, twins of names, odd suffixes, a file of two ids, crowd, boxes that leave the image."""
    folder = root / "train"
    folder.mkdir(parents=True)
    images: list[dict[str, Any]] = []

    def add(name: str, size: tuple[int, int] = (16, 24), **how: Any) -> None:
        if not (folder / name).exists():
            picture(*size, seed=len(images)).save(folder / name, **how)
        images.append({"id": 5 * len(images) + 2, "file_name": name, "width": size[1], "height": size[0]})

    for orientation in range(1, 9):
        exif = oriented(picture(16, 24), orientation)
        add(f"upright {orientation}.jpg", exif=exif)
        if orientation >= 5:
            images[-1] |= {"width": 16, "height": 24}
            add(f"stored {orientation}.png", exif=exif)
            add(f"stored {orientation}.tga.jpg", exif=exif)
    for name in (
        "A.png",
        "a.png",
        "t.jpg",
        "t.png",
        "t_2.jpg",
        "k.jpg.png",
        ".hidden.png",
        "Straße 日本.png",
        "-1 1.jpg",
    ):
        add(name)
    add("camera.jfif", format="JPEG")
    add("none", format="PNG")
    add("IMG.2020", format="PNG")
    add("scan.tga")
    add("notes.txt", format="BMP")
    add("twice.png")
    add("twice.png")
    annotations = []
    for k, image in enumerate(images[:-1]):
        for j in range(k % 4):
            x, y = 2 + j, 3 + k % 5
            box = [x, y, image["width"] - x - 2 - k % 3, 8 - j]
            annotations.append({"image_id": image["id"], "bbox": box, "category_id": sorted(NAMES)[(k + j) % 3]})
    annotations[4]["iscrowd"] = annotations[9]["iscrowd"] = 1
    annotations.append({"image_id": images[-1]["id"], "bbox": [1, 1, 6, 5], "category_id": 9})
    annotations.append({"image_id": images[0]["id"], "bbox": [-3, 2, 8, 40], "category_id": 3})  # leaves the image
    annotations.append({"image_id": images[0]["id"], "bbox": [4, 4, 0, 9], "category_id": 3})  # without area
    for k, annotation in enumerate(annotations):
        annotation["id"] = k + 1
    categories = [{"id": i, "name": n} for i, n in NAMES.items()]
    (root / "annotations").mkdir()
    value = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_train.json").write_text(json.dumps(value))
    return root
