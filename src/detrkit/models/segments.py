"""Assignment of every pixel of an image to one of several masks (DETR Sec. 4.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detrkit.models.instance_masks import Size

MIN_SEGMENT_AREA = 4  # pixels: segments of at most this area are dropped (published)


def segment_owners(labels: Sequence[int], thing: Sequence[bool]) -> list[int]:
    """Return per mask the index of its segment's first mask: its own, or for stuff the first of the class."""
    first: dict[int, int] = {}
    return [k if thing[k] else first.setdefault(label, k) for k, label in enumerate(labels)]


def assign_pixels(masks: Tensor, owners: Sequence[int], size: Size, *, merged: bool) -> tuple[Tensor, list[int]]:
    """Assign every pixel to a segment, until no segment is too small.

    Args:
        masks: (K, h, w) logits.
        owners: K indices from `segment_owners`.
        size: (H, W) of the result, in which pixels are counted.
        merged: how duplicates are handled, see `PostProcessor`.

    Returns:
        (H, W) index of the owner of every pixel, -1 where there is no mask; and K areas in pixels.
    """
    rows, columns = (_nearest(a, b, masks.device) for a, b in zip(masks.shape[1:], size, strict=True))
    index = torch.arange(len(masks), device=masks.device)
    owner = torch.tensor(owners, dtype=torch.int64, device=masks.device)
    while len(masks):
        pixels = owner[masks.argmax(0)][rows][:, columns]  # (H, W)
        areas = pixels.flatten().bincount(minlength=len(owners))
        large = areas[owner if merged else index] > MIN_SEGMENT_AREA
        if large.all():
            return pixels, areas.tolist()
        masks, index, owner = masks[large], index[large], owner[large]
        if not merged:
            owner = index
    return torch.full(size, -1, device=masks.device), [0] * len(owners)


def _nearest(before: int, after: int, device: torch.device) -> Tensor:
    """Return the (after,) positions that a side of `before` pixels is read at: the centers of the new pixels.

    They are summed step by step, as in Pillow: centers on the border of two pixels then go to the same one.
    """
    steps = np.full(after, before / after)
    steps[0] /= 2
    return torch.from_numpy(steps.cumsum().astype(np.int64).clip(max=before - 1)).to(device)
