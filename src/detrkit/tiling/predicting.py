"""Prediction of images in tiles: in batches, so that memory holds no more of them than one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrkit.structures.detections import Detections, NearMiss
from detrkit.structures.panoptic import Prediction
from detrkit.tiling.merging import merge, touches_edge
from detrkit.tiling.tiles import Tiling, Window
from detrkit.utils.errors import SettingError
from detrkit.utils.memory import machine_memory

WHOLE = -1  # in `Detections.tiles`: of the whole image

Detect = Callable[[Sequence[Image.Image]], Sequence[Prediction]]


class MaskMemoryError(SettingError):
    """The masks of an image in tiles take more memory than they may."""


class MaskPart(NamedTuple):
    """The part of a mask in which it is true, to save memory.

    Attributes:
        x, y: of its top left corner in pixels of the image.
        pixels: (h, w) bool.
    """

    x: int
    y: int
    pixels: Tensor


def refuse_segments(panoptic: bool) -> None:
    """Refuse tiles for a panoptic model.

    Raises:
        SettingError: it is one.
    """
    if panoptic:
        raise SettingError(
            "tile: a panoptic model assigns every pixel of the whole image to one segment, and segments of stuff have "
            "no boxes by which those of tiles could be told apart: predict without tiles"
        )


def predict_images(
    images: Sequence[Image.Image], tiling: Tiling, detect: Detect, *, batch_size: int
) -> list[Prediction]:
    """Predict images, those that are larger than a tile by their tiles.

    Args:
        images: upright RGB images.
        tiling: how they are cut.
        detect: predicts a batch of images.
        batch_size: tiles at once.

    Returns:
        Detections of each image: of one that is not larger than a tile as `detect` predicts it.

    Raises:
        MaskMemoryError: the masks of an image take more memory than they may.
    """
    small = [i for i, image in enumerate(images) if not tiling.cuts(image.height, image.width)]
    results: dict[int, Prediction] = {}
    if small:
        results.update(zip(small, detect([images[i] for i in small]), strict=True))
    for i, image in enumerate(images):
        if i not in results:
            results[i] = predict_tiles(image, tiling, detect, batch_size=batch_size)
    return [results[i] for i in range(len(images))]


def predict_tiles(image: Image.Image, tiling: Tiling, detect: Detect, *, batch_size: int) -> Detections:
    """Predict one image by its tiles and as a whole, and merge the detections (`detrkit.tiling.merging`).

    Args, result and errors: as `predict_images`.
    """
    height, width = image.height, image.width
    windows = [(0, 0, width, height), *tiling.windows(height, width)]
    found: list[Detections] = []
    cut: list[np.ndarray] = []
    masks: list[MaskPart] = []
    held = 0  # bytes of them
    for window, one in zip(windows, _predicted(image, windows, detect, batch_size), strict=True):
        moved, edge = _moved(one, window, height, width)
        if moved.masks is not None:
            parts = _mask_parts(moved.masks, window)
            held += sum(part.pixels.numel() for part in parts)
            _check_masks(held, tiling)
            masks += parts
        cut.append(edge)
        found.append(replace(moved, masks=None, image=None))
    counts = [len(one) for one in found]
    pieces = np.repeat(np.arange(len(windows)), counts)
    boxes, scores, labels = (torch.cat([getattr(one, n) for one in found]) for n in ("boxes", "scores", "labels"))
    merged = merge(boxes.numpy(), scores.numpy(), labels.numpy(), pieces, np.concatenate(cut), windows)
    most = tiling.max_detections
    members = merged.members[:most]
    first = torch.tensor([m[0] for m in members], dtype=torch.int64)
    queries = [one.queries for one in found]
    result = Detections(
        torch.from_numpy(merged.boxes[:most]).to(boxes.dtype),
        scores[first],
        labels[first],
        classes=found[0].classes,
        queries=None if any(q is None for q in queries) else torch.cat([q for q in queries if q is not None])[first],
        tiles=torch.from_numpy(pieces)[first] + WHOLE,
        near_miss=None if len(members) else _nearest(found, windows),
    )
    if one.masks is not None:
        _check_masks(held + len(members) * height * width, tiling)
        result.masks = _whole_masks(masks, members, height, width)
    return result


def _predicted(image: Image.Image, windows: Sequence[Window], detect: Detect, batch_size: int) -> Iterator[Detections]:
    """Yield the detections of the pieces at `windows`, the first of which is the whole image."""
    rest = iter(windows)
    while batch := list(islice(rest, batch_size)):
        whole = (0, 0, *image.size)
        for one in detect([image if window == whole else image.crop(window) for window in batch]):
            assert isinstance(one, Detections)
            yield one


def _moved(one: Detections, window: Window, height: int, width: int) -> tuple[Detections, np.ndarray]:
    """Return the detections of a piece in pixels of the image, and (N,) bool: which may be parts of objects.

    The boxes of parts are clipped to the tile.
    """
    x0, y0, x1, y1 = window
    boxes = one.boxes + one.boxes.new_tensor([x0, y0, x0, y0])
    cut = touches_edge(boxes.numpy(), window, height, width)
    parts = torch.from_numpy(cut)
    low, high = boxes.new_tensor([x0, y0, x0, y0]), boxes.new_tensor([x1, y1, x1, y1])
    boxes = torch.where(parts[:, None], boxes.maximum(low).minimum(high), boxes)
    return replace(one, boxes=boxes), cut


def _nearest(found: Sequence[Detections], windows: Sequence[Window]) -> NearMiss | None:
    """Return the best of the detections that the threshold left out of all pieces, in pixels of the image."""
    misses = []
    for one, (x0, y0, _, _) in zip(found, windows, strict=True):
        miss = one.near_miss
        if miss is not None:
            box = miss.box and (miss.box[0] + x0, miss.box[1] + y0, miss.box[2] + x0, miss.box[3] + y0)
            misses.append(miss._replace(box=box))
    return max(misses, key=lambda miss: miss.score / max(miss.threshold, 1e-6), default=None)


def _mask_parts(masks: Tensor, window: Window) -> list[MaskPart]:
    """Return the parts of (N, h, w) masks of a piece in which they are true."""
    parts = []
    for mask in masks:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        if not len(rows):
            parts.append(MaskPart(0, 0, mask[:0, :0].clone()))
            continue
        top, left = int(rows[0]), int(columns[0])
        pixels = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1].clone()  # a view would keep all masks
        parts.append(MaskPart(window[0] + left, window[1] + top, pixels))
    return parts


def _check_masks(needed: int, tiling: Tiling) -> None:
    """Check that the masks of an image, a byte for each pixel, may take so many bytes.

    At a low threshold every query of every tile has a mask, and each that remains the size of the whole image.

    Raises:
        MaskMemoryError: they take more than the tiling allows, or than this machine has.
    """
    limit = machine_memory() if tiling.max_mask_bytes is None else tiling.max_mask_bytes
    if limit is not None and needed > limit:
        raise MaskMemoryError(
            f"the masks of an image in {tiling} take {needed:,} bytes or more, and may take {limit:,}: "
            "choose a greater threshold"
        )


def _whole_masks(parts: Sequence[MaskPart], members: Sequence[Sequence[int]], height: int, width: int) -> Tensor:
    """Return (N, height, width) bool masks, each of the parts of its members."""
    masks = torch.zeros(len(members), height, width, dtype=torch.bool)
    for mask, numbers in zip(masks, members, strict=True):
        for x, y, pixels in (parts[i] for i in numbers):
            h, w = pixels.shape
            mask[y : y + h, x : x + w] |= pixels
    return masks
