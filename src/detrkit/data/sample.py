"""`Sample`: one image with its objects; `Record`: the same before the image is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from detrkit.data.sources import ImageSource
from detrkit.utils.vision import tv_tensors


@dataclass(frozen=True)
class Record:
    """One image of a dataset as its files describe it; every reader gives a list of these, nothing decoded.

    Attributes:
        image_id: the id in the dataset's files (COCO json) or the position in the sorted file list.
        file: the image file, or the row of a parquet file that holds it; both have a name.
        height, width: pixels, after EXIF orientation.
        boxes: (N, 4) float64 xyxy pixels, clamped to the image, no zero-area box.
        labels: (N,) int64, into the dataset's ClassList.
        crowd: (N,) bool: regions that are neither objects nor background (COCO iscrowd).
        areas: (N,) float64 square pixels as annotated (COCO's segment area), else the box area.
        segmentations: per object a COCO polygon list or RLE, or None where there is none.
        annotation_ids: (N,) int64, unique in the dataset; 0 where the files have none.
        annotated: (N, 4) float64 xywh pixels exactly as the files have them, before clamping; empty where the files
            hold other numbers (YOLO). COCO's evaluation uses these.
        panoptic_file: the PNG whose colors say to which segment a pixel belongs, or None: no panoptic dataset.
        segment_ids: (N,) int64, the objects' ids in that PNG; empty without one.
    """

    image_id: int
    file: ImageSource
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    segmentations: list[Any] = field(default_factory=list)
    annotation_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    annotated: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    panoptic_file: Path | None = None
    segment_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass
class Sample:
    """One decoded image with its objects (crowd left out). Transforms map Sample to Sample.

    Attributes:
        image: (3, H, W) RGB; uint8 as decoded, float and normalized after the last transform.
        boxes: (N, 4) float32 xyxy pixels of their canvas: the image, unless that was decoded smaller and is not resized
            yet (`Dataset.load`).
        labels: (N,) int64, contiguous from 0 into the dataset's class list.
        masks: (N, H, W) bool, or None when the dataset was opened without masks.
        image_id: the dataset's id.
        orig_size: (height, width) in pixels of the image file.
        file: where the image is, to name it in messages.
    """

    image: tv_tensors.Image
    boxes: tv_tensors.BoundingBoxes
    labels: Tensor
    masks: tv_tensors.Mask | None
    image_id: int
    orig_size: tuple[int, int]
    file: ImageSource | None = None
