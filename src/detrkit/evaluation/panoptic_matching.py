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

from detrkit.evaluation.panoptic_ground_truth import PanopticGroundTruth, Segments
from detrkit.structures.panoptic import VOID
from detrkit.utils.errors import DetrkitError


class SegmentMatches(NamedTuple):
    """The matches of the segments of one image.

    Attributes:
        matched: (M,) category positions of the matched segments.
        iou: (M,) IoU of each match.
        false_positives: (F,) category positions of the false positives.
        false_negatives: (N,) category positions of the false negatives.
    """

    matched: np.ndarray
    iou: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray


class ImageMatches(NamedTuple):
    """The matches of one image with its predictions: small arrays that pickle fast between processes.

    Attributes:
        matched: (M,) category positions of the matched segments.
        iou: (M,) IoU of each match.
        false_positives: (F,) category positions of the false positives.
        false_negatives: (N,) category positions of the false negatives.
        segments_info: the predicted segments, in COCO's format.
    """

    matched: np.ndarray
    iou: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    segments_info: list[dict[str, Any]]


def score_image(
    ground_truth: PanopticGroundTruth,
    image_id: int | str,
    predicted_map: np.ndarray,
    segments_info: list[dict[str, Any]],
) -> ImageMatches:
    """Match the predicted segments of one image with its ground truth.

    Args:
        ground_truth: the ground truth of the dataset.
        image_id: the dataset's id of the image.
        predicted_map: (H, W) ids of the predicted segments.
        segments_info: these segments, in COCO's format.

    Raises:
        DetrkitError: see `match_segments`.
    """
    where = f"image {image_id!r}"
    predicted = Segments.from_info(segments_info, ground_truth.category_position, f"{where}: prediction")
    segments = ground_truth.segments[ground_truth.image_position[image_id]]
    matches = match_segments(ground_truth.id_map(image_id), segments, predicted_map, predicted, where)
    return ImageMatches(*matches, segments_info)


def match_segments(
    ground_truth_map: np.ndarray, ground_truth: Segments, predicted_map: np.ndarray, predicted: Segments, where: str
) -> SegmentMatches:
    """Match the segments of one image.

    Args:
        ground_truth_map: (H, W) ids of the annotated segments.
        ground_truth: these G segments.
        predicted_map: (H, W) ids of the predicted segments.
        predicted: these N segments.
        where: the image, for messages.

    Raises:
        DetrkitError: the maps differ in size, or one has other ids than its segments.
    """
    if ground_truth_map.shape != predicted_map.shape:
        raise DetrkitError(
            f"{where}: the prediction has {_size(predicted_map)} pixels, the ground truth {_size(ground_truth_map)}; "
            "predict at the size of the original image"
        )
    shared = shared_pixels(ground_truth_map, predicted_map)
    common = np.zeros((len(ground_truth.ids) + 1, len(predicted.ids) + 1), np.int64)  # void last
    rows = _rows(shared.ground_truth_ids, ground_truth.ids, f"{where}: ground truth")
    columns = _rows(shared.predicted_ids, predicted.ids, f"{where}: prediction")
    np.add.at(common, (rows, columns), shared.counts)
    without_pixels = np.flatnonzero(common[:, :-1].sum(0) == 0)
    if len(without_pixels):
        raise DetrkitError(
            f"{where}: prediction: segment {predicted.ids[without_pixels[0]]} is in segments_info and has no pixel; "
            "leave it out"
        )

    inside, on_void = common[:-1, :-1], common[-1, :-1]  # (G, N), (N,)
    area = common[:, :-1].sum(0)
    union = common[:-1].sum(1)[:, None] + (area - on_void)[None] - inside  # (G, N)
    iou = np.divide(inside, union, out=np.zeros(union.shape), where=union > 0)
    same = ground_truth.category[:, None] == predicted.category[None]
    match = (iou > 0.5) & same & ~ground_truth.crowd[:, None]
    g, n = np.nonzero(match)

    # A class has one crowd region in an image; if it has more, panopticapi looks at the last.
    crowd_of = {k: row for row, k in enumerate(ground_truth.category.tolist()) if ground_truth.crowd[row]}
    on_crowd = [inside[crowd_of[k], i] if k in crowd_of else 0 for i, k in enumerate(predicted.category.tolist())]
    false_positives = ~match.any(0) & ((on_void + np.array(on_crowd, np.int64)) / area <= 0.5)
    false_negatives = ~match.any(1) & ~ground_truth.crowd
    return SegmentMatches(
        matched=ground_truth.category[g],
        iou=iou[g, n],
        false_positives=predicted.category[false_positives],
        false_negatives=ground_truth.category[false_negatives],
    )


class SharedPixels(NamedTuple):
    """Numbers of pixels that pairs of segments share.

    Attributes:
        ground_truth_ids: (P,) id of the annotated segment of each pair.
        predicted_ids: (P,) id of the predicted segment.
        counts: (P,) number of pixels.
    """

    ground_truth_ids: np.ndarray
    predicted_ids: np.ndarray
    counts: np.ndarray


def shared_pixels(ground_truth_map: np.ndarray, predicted_map: np.ndarray) -> SharedPixels:
    """Count the pixels that each pair of ids shares.

    Args:
        ground_truth_map: (H, W) ids below 2**31.
        predicted_map: (H, W) ids.
    """
    a, b = ground_truth_map.ravel(), predicted_map.ravel()
    # Maps consist of runs of equal pairs, 2,000 to 10,000 in one of COCO: sorting runs instead of pixels halves the
    # time.
    starts = np.flatnonzero(np.concatenate([[True], (a[1:] != a[:-1]) | (b[1:] != b[:-1])]))
    keys = a[starts].astype(np.int64) << 32 | b[starts].astype(np.int64)
    pairs, inverse = np.unique(keys, return_inverse=True)
    counts = np.bincount(inverse, np.diff(starts, append=a.size), len(pairs)).astype(np.int64)
    return SharedPixels(pairs >> 32, pairs & 0xFFFFFFFF, counts)


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
