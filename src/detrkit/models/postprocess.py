"""Conversion of outputs into detections in pixels, as the published models are evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures.classes import ClassList
from detrkit.structures.outputs import Outputs
from detrkit.structures.results import Detections

MASK_STRIDE = 4  # pixels of the network's input between two cells of a mask
MASK_CHUNK = 16  # masks resized at once: at 800 x 1333 pixels they take 68 MB

Size = tuple[int, int]


@torch.no_grad()
def postprocess(
    outputs: Outputs,
    sizes: Sequence[Size],
    *,
    scores: Literal["softmax", "sigmoid"] = "softmax",
    top_k: int = 100,
    classes: ClassList | None = None,
    image_sizes: Sequence[Size] | None = None,
    threshold: float | None = None,
    official: bool = False,
) -> list[Detections]:
    """Turn outputs into one Detections per image; boxes are not clipped and nothing is suppressed.

    Args:
        outputs: of a batch of B images.
        sizes: (height, width) in pixels of the B original images, to which the boxes are scaled.
        scores: activation of the logits. "softmax" (DETR): one detection per query, in the order of the queries, with
            the best class but "no object"; "sigmoid" (Deformable DETR): the best of all queries x classes, in
            descending order.
        top_k: number of detections, sigmoid only (fewer where there are fewer).
        classes: names and ids to attach.
        image_sizes: (height, width) in pixels of the B network inputs without padding; with them the detections of a
            model with masks have masks.
        threshold: keep detections of a greater score; no mask is computed for the others.
        official: resize masks together with the padding of their batch, as published, instead of without it.

    Returns:
        B Detections, on the device of the outputs.

    Raises:
        ValueError: the number of sizes is not the batch size, or an unknown kind of scores.
    """
    options = {"scores": scores, "top_k": top_k, "classes": classes, "image_sizes": image_sizes}
    return list(each_image(outputs, sizes, **options, threshold=threshold, official=official))  # type: ignore[arg-type]


@torch.no_grad()
def each_image(
    outputs: Outputs,
    sizes: Sequence[Size],
    *,
    scores: Literal["softmax", "sigmoid"] = "softmax",
    top_k: int = 100,
    classes: ClassList | None = None,
    image_sizes: Sequence[Size] | None = None,
    threshold: float | None = None,
    official: bool = False,
) -> Iterator[Detections]:
    """Yield the Detections of `postprocess` image by image: masks of a hundred queries on a photo take a gigabyte."""
    check_sizes(outputs, sizes, image_sizes)
    logits, boxes = outputs.logits.float(), outputs.boxes.float()
    if scores == "softmax":
        values, labels = logits.softmax(-1)[..., :-1].max(-1)  # (B, Q)
        query = torch.arange(logits.shape[1], device=logits.device).expand_as(labels)  # (B, Q)
    elif scores == "sigmoid":
        values, index = logits.sigmoid().flatten(1).topk(min(top_k, logits[0].numel()), dim=1)  # (B, K)
        labels = index % logits.shape[-1]
        query = index // logits.shape[-1]  # (B, K)
        boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))  # (B, K, 4)
    else:
        raise ValueError(f"scores is {scores!r}: choose softmax or sigmoid")
    pixels = cxcywh_to_xyxy(boxes) * _scales(sizes, boxes)[:, None]
    detections = [Detections(b, s, label, classes=classes) for b, s, label in zip(pixels, values, labels, strict=True)]
    queries = list(query)
    if threshold is not None:
        queries = [q[one.scores > threshold] for q, one in zip(queries, detections, strict=True)]
        detections = [one.above(threshold) for one in detections]
    if not outputs.has_masks or image_sizes is None:
        yield from detections
        return
    # a query can be detected as several classes: its mask is computed once
    unique = [q.unique(return_inverse=True) for q in queries]
    padded = official and outputs.mask_sizes is None
    cells_of = outputs.masks_of([q for q, _ in unique])
    for i, one in enumerate(detections):
        cells = cells_of[i] if padded else without_padding(cells_of[i], image_sizes[i])
        covered = largest(image_sizes) if padded else image_sizes[i]
        masks = instance_masks(cells, covered=covered, image_size=image_sizes[i], size=sizes[i])
        yield replace(one, masks=masks[unique[i][1]])


@torch.no_grad()
def instance_masks(logits: Tensor, *, image_size: Size, size: Size, covered: Size | None = None) -> Tensor:
    """Resize mask logits of one image to its original size, as published: bilinear, above 0.5, nearest.

    Args:
        logits: (N, h, w) at stride 4.
        image_size: (height, width) in pixels of the network input without padding.
        size: (height, width) in pixels of the original image.
        covered: (height, width) in pixels that the logits cover, from the top left corner; by default `image_size`.

    Returns:
        (N, *size) bool.
    """
    height, width = image_size
    masks = [logits.new_zeros(0, *size, dtype=torch.bool)]
    for some in logits.float().split(MASK_CHUNK):
        enlarged = F.interpolate(some[:, None], size=covered or image_size, mode="bilinear")[..., :height, :width]
        inside = (enlarged > 0).to(torch.uint8)  # the sigmoid is above 0.5
        masks.append(F.interpolate(inside, size=size)[:, 0].bool())
    return torch.cat(masks)


def without_padding(masks: Tensor, image_size: Size) -> Tensor:
    """Crop (N, h, w) masks at stride 4 to an image of (height, width) pixels."""
    height, width = image_size
    return masks[:, : -(-height // MASK_STRIDE), : -(-width // MASK_STRIDE)]


def largest(sizes: Sequence[Size]) -> Size:
    """Return the (height, width) that holds all of the sizes."""
    return max(h for h, _ in sizes), max(w for _, w in sizes)


def check_sizes(outputs: Outputs, *sizes: Sequence[Size] | None) -> None:
    """Check that there is one size for every image of the batch.

    Raises:
        ValueError: another number of sizes.
    """
    for image_sizes in sizes:
        if image_sizes is not None and len(image_sizes) != len(outputs.logits):
            raise ValueError(f"{len(image_sizes)} image sizes for a batch of {len(outputs.logits)}")


def _scales(sizes: Sequence[Size], like: Tensor) -> Tensor:
    """Return (B, 4) width, height, width, height of every image."""
    return torch.tensor([(w, h, w, h) for h, w in sizes], dtype=like.dtype, device=like.device)
