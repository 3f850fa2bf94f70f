"""A model whose answers are known: it finds rectangles by their brightness, whole or cut, at the size of its input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from detrkit.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from detrkit.detector import Detector
from detrkit.models.spec import ModelSpec
from detrkit.structures.classes import ClassList
from detrkit.structures.outputs import Outputs

BACKGROUND = 20  # brightness; objects have 60, 80, 100, ... each another one
CLASSES = ClassList.contiguous({0: "bright", 1: "brighter"})
QUERIES = 12


def brightness(number: int) -> int:
    """Brightness of object `number`, by which the model knows it; its class is the number's last bit."""
    return 60 + 20 * number


class SeeingModel(nn.Module):
    """Boxes of the rectangles in an image, if they have at least `least` pixels a side; masks of them on request."""

    num_classes, num_queries, segmentation = len(CLASSES), QUERIES, None

    def __init__(self, least: int = 4) -> None:
        super().__init__()
        self.least = least
        self.inputs: list[tuple[int, int]] = []  # (height, width) of every image that was seen
        self.batches: list[int] = []

    def forward(self, batch, capture=False, defer_masks=None):
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        count = len(batch)
        logits = torch.full((count, QUERIES, len(CLASSES) + 1), -10.0)
        logits[..., -1] = 10.0
        boxes = torch.full((count, QUERIES, 4), 0.5)
        self.batches.append(count)
        for i, (height, width) in enumerate(batch.sizes):
            self.inputs.append((height, width))
            gray = ((batch.images[i, :, :height, :width] * std + mean) * 255).mean(0).round()
            for query in range(QUERIES):
                rows, columns = ((gray - brightness(query)).abs() <= 3).nonzero(as_tuple=True)
                if not len(rows):
                    continue
                x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
                if min(x1 - x0, y1 - y0) < self.least:
                    continue
                scale = torch.tensor([width, height, width, height])
                boxes[i, query] = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]) / scale
                logits[i, query, query % 2], logits[i, query, -1] = 5.0 - 0.1 * query, 0.0
        return Outputs(logits, boxes)


def seeing_detector(size: int = 64, least: int = 4) -> Detector:
    """Detector of a `SeeingModel` whose input has a short side of `size` pixels."""
    spec = ModelSpec("detr-r50", num_classes=len(CLASSES), classes=CLASSES, size=size, max_size=None)
    return Detector(SeeingModel(least), spec, device="cpu")


def picture(width: int, height: int, boxes: Sequence[tuple[int, int, int, int]]) -> Image.Image:
    """Image with rectangle k, xyxy pixels, at the brightness of object k; later ones cover earlier ones."""
    image = Image.new("RGB", (width, height), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(image)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=(brightness(number),) * 3)
    return image


def found_boxes(result) -> list[tuple[float, ...]]:
    """Boxes of a result, rounded, in the order of their places."""
    return sorted(tuple(row) for row in np.round(result.boxes.numpy().astype(float), 1).tolist())
