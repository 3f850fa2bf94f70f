"""Sampled points of deformable attention, in pixels of the image, and their density on a grid."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SampledPoints(NamedTuple):
    """The points that deformable attention read for one query or one cell, in one layer.

    Attributes:
        points: (H, L, P, 2) xy in pixels of the image; points may lie outside.
        weights: (H, L, P); they sum to 1 over the points of a head. Where levels have different numbers of points
            (RT-DETRv2's `level_points`), P is the largest, and the points that a level does not have weigh 0.
    """

    points: Tensor
    weights: Tensor


def density(points: Tensor, weights: Tensor, *, image_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Add up the weights of sampled points on a grid over the image.

    A point gives its weight to the four nearest cells, in the shares by which bilinear interpolation reads them
    (Deformable DETR, Eq. 3, the other way round). What falls outside the image is lost, as its values count as 0.

    Args:
        points: (..., 2) xy in pixels of the image.
        weights: (...).
        image_size: (h, w) in pixels.
        grid: (h, w) in cells, spread over the whole image.

    Returns:
        (h, w) of the grid, the sum of the weights inside.
    """
    height, width = grid
    xy = points.reshape(-1, 2) / points.new_tensor([image_size[1], image_size[0]])
    xy = xy * points.new_tensor([width, height]) - 0.5  # in cells, their centers being whole numbers
    low = xy.floor()
    total = points.new_zeros(height * width)
    flat = weights.reshape(-1).to(total.dtype)
    for dx in (0, 1):
        for dy in (0, 1):
            corner = low + points.new_tensor([dx, dy])
            share = (1 - (xy - corner).abs()).prod(-1)  # bilinear
            x, y = corner.long().unbind(-1)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            total.index_add_(0, (y * width + x)[inside], (share * flat)[inside])
    return total.view(height, width)


def normalized(map_: Tensor) -> Tensor:
    """Scale a map of weights so that it sums to 1; one without any weight stays 0."""
    total = map_.sum()
    return map_ / total if float(total) > 0 else torch.zeros_like(map_)


def covered(low: float, high: float, cells: int) -> Tensor:
    """Return the share in [0, 1] of each of a row's cells, (cells,), that lies between two coordinates in cells."""
    edge = torch.arange(cells, dtype=torch.float32, device="cpu")
    return ((edge + 1).clamp(max=high) - edge.clamp(min=low)).clamp(min=0)
