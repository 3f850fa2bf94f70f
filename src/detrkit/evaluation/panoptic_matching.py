"""Matching of predicted and annotated segments of one image, by the rules of panoptic quality.

As in Kirillov et al. (2019) and panopticapi:

- A predicted segment matches an annotated one of its class if their IoU is above 0.5; at most one does.
- Pixels that are void in the ground truth are subtracted from the union.
- An annotated segment without a match is a false negative, unless it is crowd.
- A predicted segment without a match is a false positive, unless more than half of it lies on void and on crowd of its
  class.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from detrkit.evaluation.panoptic_truth import VOID, PanopticTruth, Segments
from detrkit.utils.errors import DetrkitError


class ImageMatches(NamedTuple):
    """The matches of one image: small arrays that pickle fast between processes.

    Attributes:
        matched: (M,) category positions of the matched segments.
        iou: (M,) IoU of each match.
        invented: (F,) category positions of the false positives.
        missed: (N,) category positions of the false negatives.
        segments_info: the predicted segments, in COCO's format.
    """

    matched: np.ndarray
    iou: np.ndarray
    invented: np.ndarray
    missed: np.ndarray
    segments_info: list[dict[str, Any]]


def score_image(
    truth: PanopticTruth, image_id: int | str, found_map: np.ndarray, segments_info: list[dict[str, Any]]
) -> ImageMatches:
    """Match the predicted segments of one image with its ground truth.

    Args:
        truth: the ground truth of the dataset.
        image_id: the dataset's id of the image.
        found_map: (H, W) ids of the predicted segments.
        segments_info: these segments, in COCO's format.

    Raises:
        DetrkitError: see `match_segments`.
    """
    where = f"image {image_id!r}"
    predicted = Segments.from_info(segments_info, truth.category_position, f"{where}: prediction")
    segments = truth.segments[truth.image_position[image_id]]
    return ImageMatches(*match_segments(truth.id_map(image_id), segments, found_map, predicted, where), segments_info)


def match_segments(
    truth_map: np.ndarray, truth: Segments, found_map: np.ndarray, found: Segments, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Match the segments of one image.

    Args:
        truth_map: (H, W) ids of the annotated segments.
        truth: these G segments.
        found_map: (H, W) ids of the predicted segments.
        found: these N segments.
        where: the image, for messages.

    Returns:
        (M,) category positions of the matched segments, (M,) their IoU, and the category positions of the false
        positives and of the false negatives.

    Raises:
        DetrkitError: the maps differ in size, or one has other ids than its segments.
    """
    if truth_map.shape != found_map.shape:
        raise DetrkitError(
            f"{where}: the prediction has {_size(found_map)} pixels, the ground truth {_size(truth_map)}; predict at "
            "the size of the original image"
        )
    truth_ids, found_ids, counts = shared_pixels(truth_map, found_map)
    common = np.zeros((len(truth.ids) + 1, len(found.ids) + 1), np.int64)  # void last
    rows = _rows(truth_ids, truth.ids, f"{where}: ground truth")
    columns = _rows(found_ids, found.ids, f"{where}: prediction")
    np.add.at(common, (rows, columns), counts)
    absent = np.flatnonzero(common[:, :-1].sum(0) == 0)
    if len(absent):
        raise DetrkitError(
            f"{where}: prediction: segment {found.ids[absent[0]]} is in segments_info and has no pixel; leave it out"
        )

    inside, on_void = common[:-1, :-1], common[-1, :-1]  # (G, N), (N,)
    area = common[:, :-1].sum(0)
    union = common[:-1].sum(1)[:, None] + (area - on_void)[None] - inside  # (G, N)
    iou = np.divide(inside, union, out=np.zeros(union.shape), where=union > 0)
    same = truth.category[:, None] == found.category[None]
    match = (iou > 0.5) & same & ~truth.crowd[:, None]
    g, n = np.nonzero(match)

    # A class has one crowd region in an image; if it has more, panopticapi looks at the last.
    crowd_of = {k: row for row, k in enumerate(truth.category.tolist()) if truth.crowd[row]}
    on_crowd = [inside[crowd_of[k], i] if k in crowd_of else 0 for i, k in enumerate(found.category.tolist())]
    invented = ~match.any(0) & ((on_void + np.array(on_crowd, np.int64)) / area <= 0.5)
    missed = ~match.any(1) & ~truth.crowd
    return truth.category[g], iou[g, n], found.category[invented], truth.category[missed]


def shared_pixels(truth: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the pixels that each pair of ids shares: (P,) ids in `truth`, (P,) ids in `found`, (P,) counts.

    Args:
        truth: (H, W) ids below 2**31.
        found: (H, W) ids.
    """
    a, b = truth.ravel(), found.ravel()
    # Maps consist of runs of equal pairs, 2,000 to 10,000 in one of COCO: sorting runs instead of pixels halves the
    # time.
    starts = np.flatnonzero(np.concatenate([[True], (a[1:] != a[:-1]) | (b[1:] != b[:-1])]))
    keys = a[starts].astype(np.int64) << 32 | b[starts].astype(np.int64)
    pairs, inverse = np.unique(keys, return_inverse=True)
    counts = np.bincount(inverse, np.diff(starts, append=a.size), len(pairs)).astype(np.int64)
    return pairs >> 32, pairs & 0xFFFFFFFF, counts


def _rows(values: np.ndarray, ids: np.ndarray, where: str) -> np.ndarray:
    """Return the position in `ids` of each of the map's values; void gets the number of ids.

    Raises:
        DetrkitError: a value is neither void nor one of the ids.
    """
    position = {int(i): row for row, i in enumerate(ids)}
    position.setdefault(VOID, len(ids))
    for value in values.tolist():
        if value not in position:
            raise DetrkitError(
                f"{where}: id {value} is in the map and not in segments_info; write both from one result"
            )
    return np.array([position[value] for value in values.tolist()], np.int64)


def _size(id_map: np.ndarray) -> str:
    """Format a map's size as is usual for images: width x height."""
    return " x ".join(str(side) for side in id_map.shape[::-1])
