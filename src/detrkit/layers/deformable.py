"""Multi-scale deformable attention as a layer (Deformable DETR, Sec. 4.1 and Eq. 3; RT-DETRv2, Sec. 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.layers.linear import Linear
from detrkit.ops.ms_deform import ms_deform_attn, widths_and_heights


class DeformableAttentionOutput(NamedTuple):
    """Result of deformable attention.

    Attributes:
        output: (B, Q, D).
        sampling_locations: (B, Q, H, L, P, 2) xy, each level's padded map being [0, 1]; a point may lie outside. Under
            discrete sampling, the centers of the cells that are read.
        attention_weights: (B, Q, H, L, P); they sum to 1 over the points of a head. Where levels have different numbers
            of points, P is the largest, and points that a level does not have weigh 0.
    """

    output: Tensor
    sampling_locations: Tensor
    attention_weights: Tensor


class MSDeformAttention(nn.Module):
    """Attention of every query to a few points around its reference point, on every level.

    Args:
        width: channels D of queries, values and output.
        heads: number of heads H; divides `width`.
        levels: number of feature levels L.
        points: sampled points P per head and level; or a number for each level (RT-DETRv2, Sec. 3.1).
        discrete: read the cell that a point lies in, by the rule of RT-DETRv2, instead of four by bilinear weights. A
            cell does not change with small offsets, so that the offsets cannot be trained: as published they are
            frozen.
    """

    def __init__(
        self, width: int, heads: int, *, levels: int, points: int | Sequence[int], discrete: bool = False
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.points_by_level = (points,) * levels if isinstance(points, int) else tuple(points)
        if len(self.points_by_level) != levels:
            raise ValueError(f"points are {list(self.points_by_level)}: give one number, or one for each of {levels}")
        self.heads, self.levels, self.points = heads, levels, max(self.points_by_level)
        self.discrete = discrete
        total = heads * sum(self.points_by_level)
        self.sampling_offsets = Linear(width, total * 2)
        self.attention_weights = Linear(width, total)
        self.value_proj = Linear(width, width)
        self.output_proj = Linear(width, width)
        self.reset_parameters()
        if discrete:
            self.sampling_offsets.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Place the points on rays, one direction per head, the k-th at distance k pixels, with equal weights (A.4)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        ray = torch.stack([angle.cos(), angle.sin()], -1)  # (H, 2)
        ray = ray / ray.abs().max(-1, keepdim=True).values
        distance = torch.cat([torch.arange(1, n + 1, dtype=torch.float32) for n in self.points_by_level])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((ray[:, None] * distance[:, None]).flatten())  # (H, all points, 2)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        *,
        padding_mask: Tensor | None,
        valid_ratios: Tensor | None = None,
    ) -> DeformableAttentionOutput:
        """Attend from queries to the maps.

        Args:
            query: (B, Q, D), position added.
            reference_points: (B, Q, L, 2) xy or (B, Q, L, 4) cxcywh in [0, 1] of each level's padded map.
            memory: (B, S, D) flattened maps.
            spatial_shapes: (height, width) of every level in cells.
            padding_mask: (B, S) bool, True where padded: these values count as 0; None without padding.
            valid_ratios: (B, L, 2) width and height of the valid part as a share of the padded map, which discrete
                sampling stays in; None without padding.
        """
        b, q, _ = query.shape
        value = self.value_proj(memory)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.heads, -1))  # (B, S, H, D / H)
        # (B, Q, H, L * P * 2)
        offsets = self._by_level(self.sampling_offsets(query).view(b, q, self.heads, -1, 2)).flatten(3)
        weights = self.attention_weights(query).view(b, q, self.heads, -1).softmax(-1)
        weights = self._by_level(weights[..., None]).view(b, q, self.heads, self.levels, self.points)
        # What all heads share is repeated for the points first: broadcast along axes of 2 and 4, the encoder's 22,000
        # queries take 22 ms per layer instead of 3 ms.
        center = self._repeat_for_points(reference_points[..., :2])  # (B, Q, 1, L * P * 2)
        if reference_points.shape[-1] == 2:
            sizes = widths_and_heights(spatial_shapes, reference_points)  # (L, 2)
            locations = torch.addcdiv(center, offsets, self._repeat_for_points(sizes))  # offsets are in cells
        else:
            # offsets are in half boxes, divided into as many steps as the level has points
            offsets = offsets / self._steps(offsets)
            locations = center + offsets * self._repeat_for_points(reference_points[..., 2:]) * 0.5
        locations = locations.view(b, q, self.heads, self.levels, self.points, 2)
        if self.discrete:
            locations = _cells(locations, spatial_shapes, valid_ratios)
        out = ms_deform_attn(value, spatial_shapes, locations, weights)
        return DeformableAttentionOutput(self.output_proj(out), locations, weights)

    def _repeat_for_points(self, x: Tensor) -> Tensor:
        """Repeat a value of each level for each of the level's points: (..., L, 2) to (..., 1, L * P * 2)."""
        return x[..., None, :].expand(*x.shape[:-1], self.points, 2).flatten(-3)[..., None, :]

    def _steps(self, like: Tensor) -> Tensor | int:
        """Return the number of points of each level, repeated for its points: one number where they are equal."""
        if len(set(self.points_by_level)) == 1:
            return self.points
        steps = [n for n in self.points_by_level for _ in range(2 * self.points)]
        return torch.tensor(steps, dtype=like.dtype, device=like.device)  # (L * P * 2,)

    def _by_level(self, x: Tensor) -> Tensor:
        """Pad the points of each level with zeros to P: (B, Q, H, all points, n) to (B, Q, H, L * P, n)."""
        if len(set(self.points_by_level)) == 1:
            return x
        levels = x.split(self.points_by_level, 3)
        return torch.cat([F.pad(level, (0, 0, 0, self.points - level.shape[3])) for level in levels], 3)


def _cells(locations: Tensor, spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor | None) -> Tensor:
    """Move locations to the centers of cells, where bilinear sampling reads one cell: RT-DETRv2's discrete sampling.

    Its rule rounds the coordinate in cells, x * w, to the nearest integer, and takes the cell of that number: for a
    point right of a cell's middle that is the next cell. Weights are trained with it. A point outside reads the border.
    (The original code compares both coordinates with the height; this one is right for other maps than squares.)

    Args:
        locations: (B, Q, H, L, P, 2) xy in [0, 1] of the padded maps.
        spatial_shapes: (height, width) of every level in cells.
        valid_ratios: (B, L, 2) share of the padded maps that is valid, or None.
    """
    sizes = widths_and_heights(spatial_shapes, locations)[:, None]  # (L, 1, 2)
    valid = sizes if valid_ratios is None else (sizes * valid_ratios[:, None, None, :, None]).round()
    cells = (locations * sizes + 0.5).floor().clamp(min=0).minimum(valid - 1)
    return (cells + 0.5) / sizes
