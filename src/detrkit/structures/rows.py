"""Predictions as rows of plain values, with all that is known of each: answers over HTTP, and files of results."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections
from detrkit.structures.panoptic import PanopticResult
from detrkit.structures.rle import encode_masks


def detection_rows(result: Detections, *, masks: bool = True) -> list[dict[str, Any]]:
    """Return a row for each detection: box, score, label, category_id, name, query; with masks also segmentation.

    Args:
        result: of one image; boxes xyxy in pixels of the image.
        masks: encode the masks, too, as COCO's RLE.
    """
    labels = result.labels.tolist()
    queries = [None] * len(labels) if result.queries is None else result.queries.tolist()
    rows: list[dict[str, Any]] = [
        {
            "box": box,
            "score": score,
            "label": label,
            "category_id": _category_id(result.classes, label),
            "name": name,
            "query": query,
        }
        for box, score, label, name, query in zip(
            map(exact_values, result.boxes), exact_values(result.scores), labels, result.names, queries, strict=True
        )
    ]
    if masks and result.masks is not None:
        for row, rle in zip(rows, encode_masks(result.masks), strict=True):
            row["segmentation"] = rle
    return rows


def segment_rows(result: PanopticResult) -> list[dict[str, Any]]:
    """Return a row for each segment: id, score, label, category_id, name, query, kind ("thing" or "stuff") and area."""
    return [
        {
            "id": segment.id,
            "score": segment.score,
            "label": segment.label,
            "category_id": _category_id(result.classes, segment.label),
            "name": name,
            "query": segment.query,
            "kind": "thing" if segment.thing else "stuff",
            "area": segment.area,
        }
        for segment, name in zip(result.segments, result.names, strict=True)
    ]


def exact_values(values: Tensor) -> list[float]:
    """Return float32 numbers as the shortest decimals that give the same float32: 0.9, not 0.8999999761581421."""
    return [float(str(value)) for value in values.float().numpy()]


def _category_id(classes: ClassList | None, label: int) -> int:
    return label if classes is None else int(classes.ids[label])
