"""Copy-paste: objects of one image pasted onto another along their masks (Ghiasi et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from detrkit.data.geometry import crop, drop_small, rebuilt
from detrkit.data.sample import Sample
from detrkit.data.transforms import MIN_SIDE, MIN_VISIBLE
from detrkit.ops.boxes import masks_to_boxes
from detrkit.utils.vision import tv_tensors


def paste_objects(sample: Sample, source: Sample, corner: tuple[int, int]) -> Sample:
    """Paste all objects of a sample onto another one.

    A covered object loses the covered pixels of its mask, and its box becomes that of what is left. One of which less
    than a tenth is left, or less than 2 pixels in height or width, is dropped; so is a pasted object of which the edge
    of the image cuts off that much. Edges are not smoothed: the paper found no difference (section 4.2).

    Args:
        sample: with masks; it stays as it is.
        source: with masks; it may be of another size.
        corner: (top, left) of the source in pixels of the sample; negative where it juts out.

    Raises:
        ValueError: a sample without masks.
    """
    if sample.masks is None or source.masks is None:
        raise ValueError(f"{sample.file}: objects are pasted along their masks, and there are none")
    height, width = sample.boxes.canvas_size
    top, left = (max(0, c) for c in corner)
    bottom = min(height, corner[0] + source.boxes.canvas_size[0])
    right = min(width, corner[1] + source.boxes.canvas_size[1])
    inside = top - corner[0], left - corner[1], bottom - top, right - left
    source = drop_small(crop(source, *inside, min_visible=MIN_VISIBLE), MIN_SIDE)
    assert source.masks is not None
    pasted = torch.zeros(len(source.masks), height, width, dtype=torch.bool)
    pasted[:, top:bottom, left:right] = source.masks
    cover = pasted.any(0)
    image = sample.image.as_subclass(Tensor).clone()
    region = image[:, top:bottom, left:right]
    region.copy_(torch.where(cover[top:bottom, left:right], source.image.as_subclass(Tensor), region))
    kept = _uncovered(sample, cover)
    assert kept.masks is not None
    shifted = source.boxes.as_subclass(Tensor) + torch.tensor([left, top, left, top])
    return rebuilt(
        kept,
        image,
        torch.cat([kept.boxes.as_subclass(Tensor), shifted]),
        torch.cat([kept.labels, source.labels]),
        torch.cat([kept.masks, pasted]).as_subclass(tv_tensors.Mask),
    )


def _uncovered(sample: Sample, cover: Tensor) -> Sample:
    """Return the sample without what an (H, W) bool mask covers of its objects; those almost wholly covered go."""
    assert sample.masks is not None
    masks = sample.masks.as_subclass(Tensor)
    left = masks & ~cover
    area, area_left = masks.sum((1, 2)), left.sum((1, 2))
    smaller = area_left < area
    around = masks_to_boxes(left) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # the far edges of their pixels
    boxes = torch.where(smaller[:, None], around, sample.boxes.as_subclass(Tensor))
    fits = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(1)
    keep = ~smaller | ((area_left >= MIN_VISIBLE * area) & (area_left > 0) & fits)
    masks = left[keep].as_subclass(tv_tensors.Mask)
    return rebuilt(sample, sample.image.as_subclass(Tensor), boxes[keep], sample.labels[keep], masks)
