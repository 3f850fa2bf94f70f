"""The numbers of an explanation as plain JSON values; docs/explaining.md describes the fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detrkit.explanation.maps import Head, Size

if TYPE_CHECKING:
    from detrkit.explanation.result import Explanation

_PIXEL_DIGITS = 2  # decimals of pixels
_SIGNIFICANT = 4  # digits of weights and shares, whose size differs by orders of magnitude


def explanation_numbers(explanation: Explanation, pixels: Sequence[tuple[float, float]] = ()) -> dict[str, Any]:
    """Return what a model attended to as plain JSON values.

    Args:
        explanation: of an image.
        pixels: (x, y) of which the encoder's attention is included.

    Raises:
        ValueError: a pixel outside the image.
    """
    maps, image = explanation.maps, explanation.image
    miss = explanation.detections.near_miss
    return {
        "image": {"width": image.width, "height": image.height},
        "model": {
            "name": explanation.model_name,
            "attention": "sampled points" if explanation.deformable else "whole map",
            "encoder_layers": explanation.encoder_layers,
            "decoder_layers": explanation.decoder_layers,
            "heads": explanation.heads,
            "grid": list(explanation.grid),
            "levels": [list(level) for level in maps.levels],
        },
        "detections": [_detection(explanation, i) for i in range(len(explanation))],
        "near_miss": None if miss is None else {"name": miss.name, "score": miss.score, "threshold": miss.threshold},
        "pixels": [_pixel(explanation, x, y) for x, y in pixels],
    }


def _detection(explanation: Explanation, i: int) -> dict[str, Any]:
    """Return the numbers of a detection."""
    detections, layers = explanation.detections, range(explanation.decoder_layers)
    box = detections.boxes[i]
    proposal = explanation.proposal(i)
    by_head: list[Head] = list(range(explanation.heads))
    numbers: dict[str, Any] = {
        "query": int(explanation.queries[i]),
        "label": int(detections.labels[i]),
        "name": detections.names[i],
        "score": _significant(float(detections.scores[i])),
        "box": _pixels(box),
        "layer_scores": _rounded(explanation.layer_scores(i)),
        "layer_boxes": _pixels(explanation.layer_boxes(i)),
        "reference_boxes": _pixels(explanation.reference_boxes(i)),
        "proposal": None
        if proposal is None
        else {name: round(v, _PIXEL_DIGITS) for name, v in proposal._asdict().items()},
        "box_share": _significant(box_share(explanation.image_size, box)),
        "attention_in_box": [_significant(explanation.attention_inside(i, k)) for k in layers],
        "attention_in_box_by_head": [
            [_significant(explanation.attention_inside(i, k, head)) for head in by_head] for k in layers
        ],
        "weight_outside_image": [_significant(explanation.outside(i, k)) for k in layers],
        "attention": _rounded(explanation.cross_attention(i)),
    }
    if explanation.deformable:
        points, weights = explanation.sampling_points(i)
        numbers["points"], numbers["weights"] = _pixels(points), _rounded(weights)
    return numbers


def _pixel(explanation: Explanation, x: float, y: float) -> dict[str, Any]:
    """Return what the last encoder layer attends to from a pixel."""
    numbers: dict[str, Any] = {"x": x, "y": y, "attention": _rounded(explanation.self_attention(x, y))}
    if explanation.encoder_samples_points:
        points, weights = explanation.encoder_points(x, y)
        numbers["points"], numbers["weights"] = _pixels(points), _rounded(weights)
    return numbers


def box_share(image_size: Size, box: Tensor) -> float:
    """Return the share in [0, 1] of the area of an image of (h, w) that a box (4,) xyxy, in its pixels, covers."""
    height, width = image_size
    limits = box.new_tensor([width, height])
    sides = box[2:].clamp(min=0).minimum(limits) - box[:2].clamp(min=0).minimum(limits)
    return float(sides.clamp(min=0).prod()) / (width * height)


def _pixels(values: Tensor) -> Any:
    """Return coordinates in pixels as nested lists."""
    return _finite(values.double().round(decimals=_PIXEL_DIGITS)).tolist()


def _rounded(values: Tensor) -> Any:
    """Return weights or scores as nested lists, with their significant digits."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [_significant(value) for value in _finite(values).tolist()]


def _significant(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT}g}")


def _finite(values: Tensor) -> Tensor:
    """Return values that JSON can state: what is not finite as 0."""
    return torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
