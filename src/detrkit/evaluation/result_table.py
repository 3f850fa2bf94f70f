"""Detection results of many images as columns: the common form of results from files, detectors and processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import hotcoco
import numpy as np

from detrkit.evaluation.ground_truth import DetectionGroundTruth, entry_columns, read_json
from detrkit.utils.errors import DetrkitError

IouType = Literal["bbox", "segm"]
OnUnknown = Literal["error", "ignore"]


@dataclass(frozen=True)
class ResultTable:
    """Detections as columns, in the order given (which breaks ties of scores).

    Attributes:
        image: (N,) position in the ground truth's `image_ids`.
        category: (N,) position in the ground truth's `category_ids`.
        boxes: (N, 4) xywh pixels; the bounding boxes of the masks if only masks were given.
        scores: (N,) float64, finite.
        segmentations: N RLEs, or None.
    """

    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    segmentations: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def load(
        cls,
        source: ResultTable | str | Path | Sequence[Mapping[str, Any]],
        ground_truth: DetectionGroundTruth,
        *,
        iou_type: IouType = "bbox",
        unknown_categories: OnUnknown = "error",
    ) -> ResultTable:
        """Read a COCO results file or its entries.

        Args:
            source: the file, or the list of entries with image_id, category_id, score and bbox (xywh pixels) or
                segmentation (RLE, or polygons as in ground truth; an empty one is a mask without a pixel).
            ground_truth: ground truth that the ids refer to.
            iou_type: "bbox" needs boxes, "segm" segmentations.
            unknown_categories: "ignore" leaves out detections of categories that the ground truth does not have, as
                pycocotools does silently.

        Raises:
            DetrkitError: with the file, the entry, the field and the fix.
        """
        if isinstance(source, ResultTable):
            return source
        name = str(source) if isinstance(source, (str, Path)) else "results"
        entries = read_json(source) if isinstance(source, (str, Path)) else source
        if not isinstance(entries, (list, tuple)):
            raise DetrkitError(f"{name}: expected a list of results, found {type(entries).__name__}; see COCO's format")
        if unknown_categories == "ignore":
            category_ids = ground_truth.category_position
            entries = [e for e in entries if not isinstance(e, Mapping) or e.get("category_id", None) in category_ids]
        with_boxes = iou_type == "bbox" or all(isinstance(e, Mapping) and "bbox" in e for e in entries)
        image, category, boxes = entry_columns(
            entries, name, ground_truth.image_position, ground_truth.category_position, boxes=with_boxes
        )
        scores = _scores(entries, name)
        if iou_type == "bbox":
            return cls(image, category, boxes, scores)
        segmentations = _rles(entries, [ground_truth.sizes[position] for position in image.tolist()], name)
        if not with_boxes:
            boxes = np.asarray(hotcoco.mask.to_bbox(segmentations), np.float64).reshape(-1, 4)
        return cls(image, category, boxes, scores, segmentations)

    def to_hotcoco(self, ground_truth: hotcoco.COCO, *, segmentation: bool) -> hotcoco.COCO:
        """Convert to hotcoco's results.

        Raises:
            DetrkitError: `segmentation` is set and there are no masks.
        """
        rows = np.column_stack([self.image, self.boxes, self.scores, self.category])
        if not segmentation:
            return ground_truth.load_res(rows)
        if self.segmentations is None and len(self):
            raise DetrkitError("results without segmentation: evaluate the boxes (--iou-type bbox)")
        # as columns: a dict for each of 100,000 masks took four times as long
        segmentations = self.segmentations or []
        results = ground_truth.load_res(rows, segmentation=segmentations)
        # small, medium and large are decided by the mask's area; COCO's code would take the box's area if it has a box
        results.update_anns(
            ids=np.arange(1, len(self) + 1), area=np.asarray(hotcoco.mask.area(segmentations), np.float64)
        )
        return results


def _scores(entries: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Read the scores (N,) float64.

    Raises:
        DetrkitError: a score is missing, no number or not finite; the message names its entry.
    """
    values = [e.get("score") for e in entries]
    if not set(map(type, values)) <= {float, int}:  # false for every valid file, and faster than the loop
        for i, value in enumerate(values):
            if not isinstance(value, Real):
                raise DetrkitError(f"{name}: entry {i}: score is {value!r}; give a number from 0 to 1")
    scores = np.array(values, np.float64)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise DetrkitError(f"{name}: entry {bad[0]}: score is {scores[bad[0]]}; NaN and infinity cannot be ranked")
    return scores


def _is_finite(value: object) -> bool:
    """Return whether a value is a finite number."""
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def has_masks(entries: Sequence[Any]) -> bool:
    """Return whether any result has a segmentation; tools write null or [] if there is none."""
    return any(isinstance(e, Mapping) and e.get("segmentation") for e in entries)


def _rles(entries: Sequence[Mapping[str, Any]], sizes: Sequence[tuple[int, int]], name: str) -> list[Any]:
    """Convert masks to RLEs for images of `sizes` (height, width); polygons are rasterized, as pycocotools does.

    Raises:
        DetrkitError: no result has a mask, or one cannot be decoded; the message names its entry.
    """
    if entries and not has_masks(entries):
        raise DetrkitError(f"{name}: no result has a segmentation: evaluate the boxes (--iou-type bbox)")
    values: list[Any] = [e.get("segmentation") for e in entries]
    for i, (value, size) in enumerate(zip(values, sizes, strict=True)):
        if isinstance(value, Mapping) and isinstance(value.get("counts"), (str, bytes, list)):
            if size != (0, 0) and value.get("size") not in (list(size), size):
                raise DetrkitError(
                    f"{name}: entry {i}: segmentation has size {value.get('size')}, the image {list(size)}; "
                    "give [height, width]"
                )
        elif not value or isinstance(value, list):
            values[i] = _rasterized(value or [], size, f"{name}: entry {i}")
        else:
            raise DetrkitError(
                f"{name}: entry {i}: segmentation is neither an RLE (an object with size [height, width] and counts) "
                "nor a list of polygons"
            )
    try:
        hotcoco.mask.area(values)  # all at once: 26 ms for 100,000; one by one 37 ms
    except (ValueError, TypeError, KeyError):
        for i, value in enumerate(values):
            try:
                hotcoco.mask.area(dict(value))
            except (ValueError, TypeError, KeyError) as error:
                raise DetrkitError(
                    f"{name}: entry {i}: segmentation cannot be decoded ({error}); encode the mask again"
                ) from error
    return values


def _rasterized(polygons: list[Any], size: tuple[int, int], where: str) -> Any:
    """Convert polygons [x0, y0, x1, y1, ...] in pixels to one RLE.

    Raises:
        DetrkitError: a polygon has fewer than three points or invalid numbers, or the image's size is unknown.
    """
    if size == (0, 0):
        raise DetrkitError(f"{where}: the ground truth has no size of the image to draw the mask in; give RLE")
    points = [p for p in polygons if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
    numbers = all(_is_finite(v) for p in points for v in p)
    if len(points) != len(polygons) or not numbers:
        raise DetrkitError(f"{where}: segmentation is no list of polygons [x0, y0, x1, y1, x2, y2, ...] in pixels")
    if not points:
        return hotcoco.mask.encode(np.zeros(size, np.uint8, order="F"))
    return hotcoco.mask.merge(hotcoco.mask.frPyObjects(points, *size))
