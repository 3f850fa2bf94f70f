"""The first stage of two-stage models: boxes proposed by the encoder's tokens (Deformable DETR Sec. 4.2 and A.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detrkit.layers.deformable_transformer import cell_centers


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute the log-odds of x in [0, 1], clamped to those of eps (published: 1e-5; DINO: 1e-3)."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


class Anchors(NamedTuple):
    """A box for every token, which the first stage corrects.

    Attributes:
        logits: (B, S, 4) log-odds of cxcywh; infinite where there is no anchor.
        valid: (B, S) bool, False for padding and for anchors that touch the border of the image.
    """

    logits: Tensor
    valid: Tensor


def make_anchors(spatial_shapes: Sequence[tuple[int, int]], valid_sizes: Tensor, padding_mask: Tensor) -> Anchors:
    """Make the anchors: centered on the tokens' cells, with sides of 0.05 on the finest level, twice that on the next.

    Args:
        spatial_shapes: (height, width) of every level in cells.
        valid_sizes: (B, L, 2) width and height of the valid part in cells.
        padding_mask: (B, S) bool, True where padded.
    """
    centers = cell_centers(spatial_shapes, valid_sizes)  # (B, S, 2)
    sides = torch.cat([centers.new_full((h * w,), 0.05 * 2.0**i) for i, (h, w) in enumerate(spatial_shapes)])
    boxes = torch.cat([centers, sides[None, :, None].expand(len(centers), -1, 2)], -1)  # (B, S, 4) cxcywh
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~padding_mask  # (B, S)
    return Anchors((boxes / (1 - boxes)).log().masked_fill(~valid[..., None], float("inf")), valid)


def best_tokens(scores: Tensor, count: int, padding_mask: Tensor | None) -> Tensor:
    """Return the (B, Q) indices of the best tokens, best first; fewer than `count` where there are fewer.

    Args:
        scores: (B, S).
        count: how many.
        padding_mask: (B, S) bool of tokens that come last; None where padding may be chosen, too, as published.
    """
    if padding_mask is not None:
        scores = scores.masked_fill(padding_mask, float("-inf"))
    return scores.topk(min(count, scores.shape[1]), dim=1).indices


def gathered(rows: Tensor, indices: Tensor) -> Tensor:
    """Gather from (B, S, D) the rows (B, Q) of each image: (B, Q, D)."""
    return rows.gather(1, indices[..., None].expand(-1, -1, rows.shape[-1]))


def sine_of_boxes(boxes: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Encode (B, Q, 4) boxes in [0, 1] by sines and cosines, `width` channels per coordinate: (B, Q, 4 * width)."""
    index = torch.arange(width, dtype=torch.float32, device=boxes.device)
    wavelength = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / width)
    angle = boxes[..., None] * (2 * math.pi) / wavelength  # (B, Q, 4, width)
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(2)
