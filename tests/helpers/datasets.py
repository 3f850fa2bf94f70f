"""Tiny datasets and samples made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from detrkit.data.sample import Sample


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colour gradients, so that JPEG keeps them to within a few grey levels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: dict[int, str]) -> dict[str, Any]:
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in categories.items()],
    }


def write_coco(root: Path, split: str, value: dict[str, Any], *, folder: str | None = None) -> Path:
    """annotations/instances_{split}.json and a picture for every image."""
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
    images = root / (folder or split)
    images.mkdir(parents=True, exist_ok=True)
    for image in value["images"]:
        picture(image["height"], image["width"], image["id"]).save(images / image["file_name"])
    return file


def make_sample(
    height: int, width: int, boxes: list[list[float]], *, masks: torch.Tensor | None = None, seed: int = 0
) -> Sample:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Sample(
        image=tv_tensors.Image(torch.from_numpy(array).permute(2, 0, 1)),
        boxes=tv_tensors.BoundingBoxes(tensor, format="XYXY", canvas_size=(height, width)),
        labels=torch.arange(len(boxes)),
        masks=None if masks is None else tv_tensors.Mask(masks),
        image_id=7,
        orig_size=(height, width),
    )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PANOPTIC_CATEGORIES = {
    3: ("sea", 0),
    7: ("sky", 0),
    40: ("bird", 1),
    200: ("boat", 1),
}  # no "things up to 90"


def panoptic_map(*, seed: int = 0, height: int = 12, width: int = 16) -> np.ndarray:
    """(H, W) ids: sky (70001) over sea (300), a boat (5), a bird (9), another of one column (12) and a row of void."""
    ids = np.full((height, width), 70001, np.int32)
    ids[height // 2 :] = 300
    left = 1 + seed % 3
    ids[height // 2 - 2 : height // 2 + 2, left : left + 5] = 5
    ids[1:3, width - 6 : width - 3] = 9
    ids[0:4, width - 1] = 12
    ids[-1] = 0
    return ids


PANOPTIC_CLASSES = {70001: 7, 300: 3, 5: 200, 9: 40, 12: 40}


def segments_info(ids: np.ndarray, **changes: Any) -> list[dict[str, Any]]:
    """What COCO's panoptic json says about a map of `panoptic_map`; the boats are crowd if `crowd=True`."""
    segments = []
    for segment in np.unique(ids[ids > 0]).tolist():
        rows, columns = np.nonzero(ids == segment)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        category = PANOPTIC_CLASSES[segment]
        crowd = int(category == 200 and changes.get("crowd", False))
        segments.append(
            {
                "id": segment,
                "category_id": category,
                "area": len(rows),
                "bbox": [int(v) for v in box],
                "iscrowd": crowd,
            }
        )
    return segments


def panoptic_json(maps: dict[int, np.ndarray], **changes: Any) -> dict[str, Any]:
    """A COCO panoptic json of maps by image id, its images and its annotations in opposite orders."""
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": ids.shape[0], "width": ids.shape[1]} for i, ids in maps.items()
    ]
    annotations = [
        {"image_id": i, "file_name": f"{i}.png", "segments_info": segments_info(ids, **changes)}
        for i, ids in maps.items()
    ]
    categories = [{"id": i, "name": name, "isthing": thing} for i, (name, thing) in PANOPTIC_CATEGORIES.items()]
    return {"images": images, "annotations": annotations[::-1], "categories": categories}


def write_panoptic(root: Path, split: str, maps: dict[int, np.ndarray], **changes: Any) -> Path:
    """annotations/panoptic_{split}.json, panoptic_{split}/*.png and {split}/*.jpg of maps by image id."""
    from detrkit.data.panoptic import write_id_map

    file = root / "annotations" / f"panoptic_{split}.json"
    for folder in (file.parent, root / split, root / f"panoptic_{split}"):
        folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(panoptic_json(maps, **changes)))
    for image_id, ids in maps.items():
        write_id_map(root / f"panoptic_{split}" / f"{image_id}.png", ids)
        height, width = ids.shape
        picture(height, width, image_id).save(root / split / f"{image_id}.jpg")
    return file
