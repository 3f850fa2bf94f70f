"""Detections of the tiles and of the whole image become those of the image: an object that several saw comes once.

Of the detections of all pieces (tiles and the whole image), and of one class:

1. Of two whole boxes with an IoU above 0.5 the one with the greater score stays: class-wise non-maximum suppression, of
   boxes of one tile, too, since a model repeats itself at an unaccustomed scale (without that AP was 25 in place of 34
   in `benchmarks/tiling.py`). Of parts (2) this holds within a tile.
2. A box that touches an edge of its tile inside the image may be part of an object. It is dropped if another piece has
   a whole box that covers half of it or more, also for a lower score, down to half of its own.
3. What remains of such parts is joined: parts of neighboring tiles are of one object if they agree on what both tiles
   saw, that is, if the boxes, clipped to what the tiles have in common, have an IoU of 0.5 or more. The object gets the
   box around its parts and the best of their scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from detrkit.tiling.tiles import Window
from detrkit.utils.vision import batched_nms

SAME_IOU = 0.5  # of two boxes of one object
COVERED_SHARE = 0.5  # of a part's area, inside a whole box of its object
SCORE_SHARE = 0.5  # of a part's score that the whole box has at least: at threshold 0 poor boxes are everywhere
EDGE_SHARE = 0.01  # of a tile's side: a box that ends nearer to an edge touches it
EDGE_PIXELS = 2.0  # at least

Boxes = np.ndarray  # (N, 4) xyxy pixels of the image


class Merged(NamedTuple):
    """What remains of the detections.

    Attributes:
        boxes: (M, 4) xyxy pixels of the image.
        members: of each the detections that it stands for, the one with the best score first: of a whole box itself
            alone, of joined parts all of them.
    """

    boxes: Boxes
    members: list[list[int]]


def touches_edge(boxes: Boxes, window: Window, height: int, width: int) -> np.ndarray:
    """Return (N,) bool: whether a box of a tile touches an edge of it that is inside the image.

    Args:
        boxes: (N, 4) xyxy pixels of the image.
        window: the tile.
        height: of the image in pixels.
        width: of the image in pixels.
    """
    x0, y0, x1, y1 = window
    margin_x, margin_y = (max(EDGE_PIXELS, EDGE_SHARE * side) for side in (x1 - x0, y1 - y0))
    cut = np.zeros(len(boxes), bool)
    if x0 > 0:
        cut |= boxes[:, 0] <= x0 + margin_x
    if y0 > 0:
        cut |= boxes[:, 1] <= y0 + margin_y
    if x1 < width:
        cut |= boxes[:, 2] >= x1 - margin_x
    if y1 < height:
        cut |= boxes[:, 3] >= y1 - margin_y
    return cut


def merge(
    boxes: Boxes,
    scores: np.ndarray,
    labels: np.ndarray,
    pieces: np.ndarray,
    cut: np.ndarray,
    windows: Sequence[Window],
) -> Merged:
    """Merge the detections of all pieces of an image by the rule of this module.

    Args:
        boxes: (N, 4) xyxy pixels of the image.
        scores: (N,).
        labels: (N,).
        pieces: (N,) int, the piece that each detection is of.
        cut: (N,) bool, as of `touches_edge`; False for the whole image.
        windows: of the pieces.

    Returns:
        What remains, in descending order of score; equal scores in the order of the arguments.
    """
    areas, kept = _areas(boxes), [[i] for i in _suppressed(boxes, scores, labels, np.flatnonzero(~cut))]
    whole = np.array([i for (i,) in kept], int)
    groups = labels * len(windows) + pieces  # parts of one object in several tiles must not suppress each other
    parts = np.array(_suppressed(boxes, scores, groups, np.flatnonzero(cut)), int)
    for label in np.unique(labels[parts]):
        some, others = parts[labels[parts] == label], whole[labels[whole] == label]
        some = some[~_covered(boxes, areas, scores, pieces, some, others)]
        kept += _joined(boxes, pieces, some, np.array(windows, float))
    kept.sort(key=lambda members: (-scores[members[0]], members[0]))
    around = [(*boxes[m, :2].min(0), *boxes[m, 2:].max(0)) for m in kept]
    return Merged(np.array(around, boxes.dtype).reshape(-1, 4), kept)


def _suppressed(boxes: Boxes, scores: np.ndarray, groups: np.ndarray, rows: np.ndarray) -> list[int]:
    """Return which of the boxes at `rows` non-maximum suppression within each group leaves, the best first: rule 1."""
    chosen = (torch.from_numpy(np.ascontiguousarray(values[rows])) for values in (boxes, scores, groups))
    some, ranks, names = chosen
    kept = batched_nms(some.float(), ranks.float(), names, SAME_IOU)
    return [int(rows[k]) for k in kept.tolist()]


def _covered(
    boxes: Boxes, areas: np.ndarray, scores: np.ndarray, pieces: np.ndarray, parts: np.ndarray, whole: np.ndarray
) -> np.ndarray:
    """Return (P,) bool: which of the boxes at `parts` a box at `whole`, of another piece, covers: rule 2."""
    covered = np.zeros(len(parts), bool)
    for i in whole:
        share = _shared(boxes[i], boxes[parts]) / np.maximum(areas[parts], 1e-9)
        good = scores[i] >= SCORE_SHARE * scores[parts]
        covered |= (share >= COVERED_SHARE) & good & (pieces[parts] != pieces[i])
    return covered


def _joined(boxes: Boxes, pieces: np.ndarray, parts: np.ndarray, windows: np.ndarray) -> list[list[int]]:
    """Return the parts, the best first, that are of one object: rule 3. Each object's best part is its first."""
    objects: list[list[int]] = []
    left = list(range(len(parts)))
    while left:
        members, queue = [left[0]], [left.pop(0)]
        while queue and left:
            one = queue.pop()
            i, others = parts[one], parts[left]
            commons = _intersections(windows[pieces[i]], windows[pieces[others]])  # (K, 4)
            mine, theirs = _clipped(boxes[i][None], commons), _clipped(boxes[others], commons)
            inner = _areas(_clipped(mine, theirs))
            iou = inner / np.maximum(_areas(mine) + _areas(theirs) - inner, 1e-9)
            same = (iou >= SAME_IOU) & (inner > 0) & (pieces[others] != pieces[i])
            found = {left[k] for k in np.flatnonzero(same)}
            left = [k for k in left if k not in found]
            members += sorted(found)
            queue += sorted(found)
        objects.append([int(parts[k]) for k in sorted(members)])
    return objects


def _areas(boxes: Boxes) -> np.ndarray:
    """Return (N,) areas; 0 of boxes that are inside out."""
    return np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)


def _shared(box: np.ndarray, boxes: Boxes) -> np.ndarray:
    """Return (N,) areas that (N, 4) boxes have in common with one."""
    return _areas(_intersections(box, boxes))


def _intersections(box: np.ndarray, boxes: Boxes) -> Boxes:
    """Return (N, 4) intersections of boxes with one; inside out where there is none."""
    return np.concatenate([np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])], 1)


def _clipped(boxes: Boxes, windows: np.ndarray) -> Boxes:
    """Return (N, 4) intersections of boxes with as many windows, or of one with all."""
    low, high = np.maximum(boxes[:, :2], windows[:, :2]), np.minimum(boxes[:, 2:], windows[:, 2:])
    return np.concatenate([low, high], 1)
