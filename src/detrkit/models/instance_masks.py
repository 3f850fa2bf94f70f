"""Mask logits at stride 4, resized to masks of the original image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

MASK_STRIDE = 4  # pixels of the network's input between two cells of a mask
MASK_CHUNK = 16  # masks resized at once: at 800 x 1333 pixels they take 68 MB

Size = tuple[int, int]


@torch.no_grad()
def instance_masks(logits: Tensor, *, input_size: Size, target_size: Size, covered: Size | None = None) -> Tensor:
    """Resize mask logits of one image to its original size, as published: bilinear, above 0.5, nearest.

    Args:
        logits: (N, h, w) at stride 4.
        input_size: (height, width) in pixels of the network input without padding.
        target_size: (height, width) in pixels of the original image.
        covered: (height, width) in pixels that the logits cover, from the top left corner; by default `input_size`.

    Returns:
        (N, *target_size) bool.
    """
    height, width = input_size
    masks = [logits.new_zeros(0, *target_size, dtype=torch.bool)]
    for some in logits.float().split(MASK_CHUNK):
        enlarged = F.interpolate(some[:, None], size=covered or input_size, mode="bilinear")[..., :height, :width]
        inside = (enlarged > 0).to(torch.uint8)  # the sigmoid is above 0.5
        masks.append(F.interpolate(inside, size=target_size)[:, 0].bool())
    return torch.cat(masks)


def without_padding(masks: Tensor, input_size: Size) -> Tensor:
    """Crop (N, h, w) masks at stride 4 to a network input of (height, width) pixels."""
    height, width = input_size
    return masks[:, : -(-height // MASK_STRIDE), : -(-width // MASK_STRIDE)]


def largest(sizes: Sequence[Size]) -> Size:
    """Return the (height, width) that holds all of the sizes."""
    return max(h for h, _ in sizes), max(w for _, w in sizes)
