"""Conversion of outputs into a panoptic result: every pixel of an image to one segment (DETR Sec. 4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.models.postprocess import Size, check_sizes, without_padding
from detrkit.structures.classes import ClassList
from detrkit.structures.outputs import Outputs
from detrkit.structures.results import PanopticResult, Segment

MIN_SEGMENT_AREA = 4  # pixels: segments of at most this area are dropped (published)


@torch.no_grad()
def panoptic(
    outputs: Outputs,
    *,
    image_sizes: Sequence[Size],
    sizes: Sequence[Size],
    things: Sequence[bool] | None = None,
    threshold: float = 0.85,
    scores: Literal["softmax", "sigmoid"] = "softmax",
    classes: ClassList | None = None,
    duplicates: Literal["merged", "published"] = "merged",
    official: bool = False,
) -> list[PanopticResult]:
    """Turn outputs into one PanopticResult per image.

    Every pixel goes to the query with the largest mask logit there, among queries with a score above the threshold.
    The masks of one class of stuff are one segment. Segments of at most 4 pixels are dropped and their pixels
    reassigned, until there is none.

    Args:
        outputs: of a batch of B images, with masks; deferred ones are made for the confident queries alone.
        image_sizes: (height, width) in pixels of the B images as the model got them, without padding.
        sizes: (height, width) in pixels of the B original images.
        things: per label whether it is a thing; by default as `classes` says, and without them all are.
        threshold: only queries with a greater score are used (published: 0.85; sigmoid scores are lower).
        scores: "softmax" (DETR) or "sigmoid" (Deformable DETR).
        classes: names and ids to attach.
        duplicates: of stuff that was found more than once, "merged": all pixels belong to the one segment; "published":
            the pixels of all but the first mask, once merged, go to the next best mask there. Published metrics were
            measured so.
        official: as published, mistakes included: duplicates as above; masks are enlarged together with the padding of
            their batch, so that they fit the image only in a batch of one; ids start at 0, so a map without
            segments looks like one of a single segment.

    Returns:
        B results, on the device of the outputs; ids from 1 in the order of the queries, 0 is void.

    Raises:
        ValueError: an unknown value of `duplicates` or `scores`, not one size for every image, fewer marks of
            things than labels, or outputs without masks.
    """
    check_sizes(outputs, image_sizes, sizes)
    if duplicates not in ("merged", "published"):
        raise ValueError(f"duplicates is {duplicates!r}: choose merged or published")
    merged = duplicates == "merged" and not official
    values, labels, objects = _best(outputs.logits.float(), scores)  # (B, Q) each
    if things is None and classes is not None:
        things = classes.things
    num_labels = outputs.logits.shape[-1] - (scores == "softmax")
    if things is not None and len(things) < num_labels:
        raise ValueError(f"{len(things)} labels are marked as things or stuff, the model has {num_labels}")
    chosen = [keep.nonzero()[:, 0] for keep in objects & (values > threshold)]  # per image (K,)
    results = []
    for i, masks in enumerate(outputs.masks_of(chosen)):  # (K, h, w)
        if not official:
            masks = without_padding(masks, image_sizes[i])
        masks = F.interpolate(masks[:, None].float(), size=image_sizes[i], mode="bilinear")[:, 0]  # (K, h, w)
        segment_labels, confidence = labels[i, chosen[i]].tolist(), values[i, chosen[i]].tolist()
        thing = [things is None or bool(things[label]) for label in segment_labels]
        owners = _owners(segment_labels, thing)
        pixels, areas = _assign(masks, owners, sizes[i], merged=merged)
        numbers = [0] * len(segment_labels)
        segments: list[Segment] = []
        for k in (k for k, area in enumerate(areas) if area):
            numbers[k] = len(segments) + (not official)
            score = max(c for c, o in zip(confidence, owners, strict=True) if o == k) if merged else confidence[k]
            segments.append(Segment(numbers[k], segment_labels[k], score, areas[k], thing[k]))
        number = torch.tensor([*numbers, 0], dtype=torch.int32, device=pixels.device)  # -1, no mask, is the last
        results.append(PanopticResult(number[pixels], segments, classes=classes))
    return results


def _best(logits: Tensor, scores: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return score and label of the best class of every query, and whether it is an object at all, (B, Q) each."""
    if scores == "softmax":
        values, labels = logits.softmax(-1).max(-1)
        return values, labels, labels != logits.shape[-1] - 1
    if scores == "sigmoid":
        values, labels = logits.sigmoid().max(-1)
        return values, labels, torch.ones_like(labels, dtype=torch.bool)
    raise ValueError(f"scores is {scores!r}: choose softmax or sigmoid")


def _owners(labels: Sequence[int], thing: Sequence[bool]) -> list[int]:
    """Return per mask the index of its segment's first mask: its own, or for stuff the first of the class."""
    first: dict[int, int] = {}
    return [k if thing[k] else first.setdefault(label, k) for k, label in enumerate(labels)]


def _assign(masks: Tensor, owners: Sequence[int], size: Size, *, merged: bool) -> tuple[Tensor, list[int]]:
    """Assign every pixel to a segment, until no segment is too small.

    Args:
        masks: (K, h, w) logits.
        owners: K indices from `_owners`.
        size: (H, W) of the result, in which pixels are counted.
        merged: how duplicates are handled, see `panoptic`.

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
