"""Datasets whose objects are each painted in a color of their own, so that they can be found again in the pixels."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from detrkit.data import Dataset
from detrkit.data.sample import Record
from detrkit.structures.classes import ClassList
from detrkit.structures.rle import encode_masks

# on black: an edge between the two is darker than any of these
COLORS = np.array([color for color in product((40, 140, 240), repeat=3) if max(color) == 240])
OBJECTS = 2  # an image


def painted_dataset(folder: Path, sizes: list[tuple[int, int]], *, masks: bool = True, seed: int = 0) -> Dataset:
    """One PNG a size (height, width), each with a rectangle and an ellipse; the label of an object is its color."""
    rng = np.random.default_rng(seed)
    records = []
    for index, (height, width) in enumerate(sizes):
        pixels = np.zeros((height, width, 3), np.uint8)
        labels = np.array([(OBJECTS * index + k) % len(COLORS) for k in range(OBJECTS)])
        shapes = []
        for k, label in enumerate(labels):  # one in the left half, one in the right
            half = width // 2
            w, h = int(rng.integers(half // 3, half - 2)), int(rng.integers(height // 3, height - 2))
            left, top = k * half + int(rng.integers(0, half - w)), int(rng.integers(0, height - h))
            shape = np.zeros((height, width), bool)
            y, x = np.mgrid[:h, :w]
            ellipse = ((x + 0.5) / w - 0.5) ** 2 + ((y + 0.5) / h - 0.5) ** 2 <= 0.25
            shape[top : top + h, left : left + w] = ellipse if k else True
            pixels[shape] = COLORS[label]
            shapes.append(shape)
        file = folder / f"{index}.png"
        Image.fromarray(pixels).save(file)
        stacked = np.stack(shapes)
        boxes = np.array([bounds(shape) for shape in shapes])
        records.append(
            Record(
                image_id=100 + index,
                file=file,
                height=height,
                width=width,
                boxes=boxes.astype(float),
                labels=labels,
                crowd=np.zeros(OBJECTS, bool),
                areas=stacked.sum((1, 2)).astype(float),
                segmentations=encode_masks(torch.from_numpy(stacked)),
                annotation_ids=np.arange(OBJECTS) + OBJECTS * index + 1,
            )
        )
    count = len(COLORS)
    classes = ClassList(tuple(f"color {k}" for k in range(count)), tuple(range(1, count + 1)))
    return Dataset(records, classes, name="painted", split="train", path=folder, with_masks=masks)


def bounds(mask: np.ndarray) -> list[int]:
    """The xyxy edges of the pixels of an (H, W) mask."""
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def painted_regions(image: np.ndarray, label: int) -> list[np.ndarray]:
    """The connected regions, (H, W) bool, of an (H, W, 3) image that have a label's color."""
    near = np.abs(image.astype(int) - COLORS[label]).max(2) <= 25
    numbered, count = ndimage.label(near)
    return [numbered == k for k in range(1, count + 1)]
