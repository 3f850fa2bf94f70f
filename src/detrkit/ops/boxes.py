"""Box formats and overlaps.

Boxes are (..., 4) floats, cxcywh (center, width, height) or xyxy (corners); units are the caller's. Nothing here
asserts on values: an assert on a device tensor waits for the device, and a degenerate box (a width below zero cannot
come from a sigmoid; a zero width can) gets finite numbers instead.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) cxcywh to (..., 4) xyxy."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - 0.5 * size, center + 0.5 * size], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) xyxy to (..., 4) cxcywh."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def box_area(boxes: Tensor) -> Tensor:
    """Compute the (...) areas of (..., 4) xyxy boxes."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Compute the (N, 4) xyxy of the outermost pixels of (N, H, W) bool masks; zeros for an empty mask.

    As published, an edge is the index of the last pixel, so that the box of one pixel has no area: add 1 to the second
    corner for boxes that enclose their pixels.
    """
    edges = []
    for filled in (masks.any(1), masks.any(2)):  # columns (N, W), rows (N, H)
        first = filled.int().argmax(1)
        last = filled.shape[1] - 1 - filled.flip(1).int().argmax(1)
        edges.append(torch.stack([first, last], 1) * filled.any(1, keepdim=True))  # (N, 2)
    return torch.stack(edges, 2).flatten(1).to(torch.get_default_dtype())


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute intersection and union areas of xyxy boxes that broadcast against each other."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    inner = (high - low).clamp(min=0)
    intersection = inner[..., 0] * inner[..., 1]
    return intersection, box_area(a) + box_area(b) - intersection


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide; 0 where both areas vanish (two empty boxes in one point)."""
    return numerator / denominator.clamp(min=torch.finfo(denominator.dtype).tiny)


def iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the intersection over union of every pair.

    Args:
        a: (N, 4) xyxy.
        b: (M, 4) xyxy.

    Returns:
        (N, M) IoU and (N, M) union area.
    """
    intersection, union = _overlap(a[:, None], b[None])
    return _ratio(intersection, union), union


def matched_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the intersection over union, (...), of (..., 4) xyxy boxes that broadcast together."""
    return _ratio(*_overlap(a, b))


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute generalized IoU in [-1, 1] of boxes that broadcast together (Rezatofighi et al. 2019, Alg. 1).

    Args:
        a: (..., 4) xyxy.
        b: (..., 4) xyxy.

    Returns:
        (...): IoU - (hull - union) / hull.
    """
    intersection, union = _overlap(a, b)
    low = torch.minimum(a[..., :2], b[..., :2])
    high = torch.maximum(a[..., 2:], b[..., 2:])
    side = (high - low).clamp(min=0)
    hull = side[..., 0] * side[..., 1]
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def pairwise_generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute the generalized IoU of every pair: (N, 4) and (M, 4) xyxy to (N, M)."""
    return generalized_iou(a[:, None], b[None])
