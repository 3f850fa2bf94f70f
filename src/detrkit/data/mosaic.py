"""Mosaic and mixup: several images in one, side by side (Bochkovskiy et al. 2020) or blended (Zhang et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from detrkit.data.draws import chance, integer, uniform
from detrkit.data.geometry import Geometry, rebuilt
from detrkit.data.sample import Sample
from detrkit.data.transforms import MIN_SIDE, MIN_VISIBLE
from detrkit.utils.vision import tv_tensors

_ZOOMS = 1.0, 2.0  # of the smallest scale at which an image fills its tile
_LONGEST = 8  # sides of the tile: a strip is squeezed before it becomes longer


class Tile(NamedTuple):
    """Rectangle of a canvas: (top, left) of its corner and (height, width), all in pixels."""

    corner: tuple[int, int]
    size: tuple[int, int]


def mosaic_tiles(size: tuple[int, int], generator: Generator) -> list[Tile]:
    """Draw the center of a mosaic, in the middle half of its height and width, and return its four quadrants.

    Args:
        size: (height, width) of the canvas in pixels, each at least 2.
        generator: to draw from.
    """
    (h, w), (y, x) = size, (integer(max(1, side // 4), side - max(1, side // 4), generator) for side in size)
    return [
        Tile((0, 0), (y, x)),
        Tile((0, x), (y, w - x)),
        Tile((y, 0), (h - y, x)),
        Tile((y, x), (h - y, w - x)),
    ]


def tile_geometry(height: int, width: int, size: tuple[int, int], generator: Generator) -> Geometry:
    """Draw how an image fills a tile: mirrored or not, at a random scale, and cut at a random place.

    The scale is one to two times the smallest one at which the image fills the tile. For a tile of a quarter of the
    canvas this is half to once the scale of a plain image.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        size: (height, width) of the tile in pixels.
        generator: to draw from.
    """
    flipped = chance(generator) < 0.5
    scale = uniform(*_ZOOMS, generator) * max(size[0] / height, size[1] / width)
    scaled = tuple(
        min(max(round(side * scale), tile), _LONGEST * tile) for side, tile in zip((height, width), size, strict=True)
    )
    top, left = (integer(0, side - tile, generator) for side, tile in zip(scaled, size, strict=True))
    return Geometry(
        hflip=flipped,
        pre_crop_size=(scaled[0], scaled[1]),
        crop=(top, left, *size),
        size=size,
        min_visible=MIN_VISIBLE,
        min_side=MIN_SIDE,
    )


def join(samples: Sequence[Sample], corners: Sequence[tuple[int, int]]) -> Sample:
    """Put samples side by side on one canvas that they fill.

    Args:
        samples: the parts; the result has the id, file and original size of the first.
        corners: (top, left) of each in pixels.
    """
    sizes = [sample.boxes.canvas_size for sample in samples]
    height = max(top + h for (top, _), (h, _) in zip(corners, sizes, strict=True))
    width = max(left + w for (_, left), (_, w) in zip(corners, sizes, strict=True))
    image = torch.empty(3, height, width, dtype=torch.uint8)
    boxes: list[Tensor] = []
    masks: list[Tensor] = []
    for sample, (top, left), (h, w) in zip(samples, corners, sizes, strict=True):
        image[:, top : top + h, left : left + w] = sample.image
        boxes.append(sample.boxes.as_subclass(Tensor) + torch.tensor([left, top, left, top]))
        if sample.masks is not None:
            placed = torch.zeros(len(sample.masks), height, width, dtype=torch.bool)
            placed[:, top : top + h, left : left + w] = sample.masks
            masks.append(placed)
    labels = torch.cat([sample.labels for sample in samples])
    joined = torch.cat(masks).as_subclass(tv_tensors.Mask) if masks else None
    return rebuilt(samples[0], image, torch.cat(boxes), labels, joined)


def blend(sample: Sample, other: Sample, ratio: float) -> Sample:
    """Blend two samples of one size; the result has the objects of both.

    Args:
        sample: the first, whose id, file and original size remain.
        other: the second.
        ratio: share of the first in each pixel.
    """
    first, second = (s.image.as_subclass(Tensor).float() for s in (sample, other))
    image = second.lerp_(first, ratio).round_().to(torch.uint8)
    boxes = torch.cat([s.boxes.as_subclass(Tensor) for s in (sample, other)])
    masks = None
    if sample.masks is not None and other.masks is not None:
        masks = torch.cat([sample.masks, other.masks]).as_subclass(tv_tensors.Mask)
    return rebuilt(sample, image, boxes, torch.cat([sample.labels, other.labels]), masks)
