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
