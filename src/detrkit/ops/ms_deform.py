"""Multi-scale deformable attention (Deformable DETR, Eq. 3): weighted bilinear samples from a pyramid of maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Samples every query's points from every level and adds them up by weight.

    Pixel centres are at (i + 0.5) / size; outside a map every value is 0.

    Args:
        value: (B, S, H, D): the maps of all levels, flattened in row-major order and concatenated.
        spatial_shapes: (height, width) of each of the L levels as Python ints (tensors would wait for the device);
            S = sum of height * width.
        locations: (B, Q, H, L, P, 2) xy in [0, 1] of each level's map; may lie outside.
        weights: (B, Q, H, L, P).

    Returns:
        (B, Q, H * D).

    Raises:
        ValueError: S does not fit the shapes.
    """
    b, s, h, d = value.shape
    sizes = [height * width for height, width in spatial_shapes]
    if sum(sizes) != s:
        raise ValueError(f"value has {s} positions, the levels {list(spatial_shapes)} have {sum(sizes)}")
    q, points = locations.shape[1], locations.shape[4]
    grids = 2 * locations - 1  # grid_sample counts from -1 to 1
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split(sizes, dim=-1)  # L x (B * H, D, hw)
    samples = []
    for level, (height, width) in enumerate(spatial_shapes):
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * H, Q, P, 2)
        map_ = maps[level].unflatten(-1, (height, width))  # (B * H, D, height, width)
        samples.append(F.grid_sample(map_, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    sampled = torch.cat(samples, -1)  # (B * H, D, Q, L * P)
    by_head = weights.transpose(1, 2).reshape(b * h, 1, q, len(sizes) * points)
    out = (sampled * by_head).sum(-1)  # (B * H, D, Q)
    return out.view(b, h * d, q).transpose(1, 2)
