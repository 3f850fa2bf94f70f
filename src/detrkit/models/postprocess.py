"""Outputs to detections in pixels, as the published models are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detrkit.classes import ClassList
from detrkit.models.outputs import Outputs
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.results import Detections


@torch.no_grad()
def postprocess(
    outputs: Outputs,
    sizes: Sequence[tuple[int, int]],
    *,
    scores: Literal["softmax", "sigmoid"] = "softmax",
    top_k: int = 100,
    classes: ClassList | None = None,
) -> list[Detections]:
    """Turns outputs into one Detections per image; boxes are not clipped and nothing is suppressed.

    Args:
        outputs: of a batch of B images.
        sizes: (height, width) in pixels of the B original images, to which the boxes are scaled.
        scores: "softmax" (DETR): one detection per query, in the order of the queries, with the best class but
            "no object"; "sigmoid" (Deformable DETR): the best of all queries x classes, in descending order.
        top_k: how many of them, sigmoid only (fewer when there are fewer).
        classes: names and ids to attach.

    Returns:
        B Detections, on the device of the outputs.

    Raises:
        ValueError: the number of sizes is not the batch size, or an unknown kind of scores.
    """
    if len(sizes) != len(outputs.logits):
        raise ValueError(f"{len(sizes)} image sizes for a batch of {len(outputs.logits)}")
    logits, boxes = outputs.logits.float(), outputs.boxes.float()
    if scores == "softmax":
        values, labels = logits.softmax(-1)[..., :-1].max(-1)  # (B, Q)
    elif scores == "sigmoid":
        values, index = logits.sigmoid().flatten(1).topk(min(top_k, logits[0].numel()), dim=1)  # (B, K)
        labels = index % logits.shape[-1]
        query = (index // logits.shape[-1])[..., None].expand(-1, -1, 4)
        boxes = boxes.gather(1, query)  # (B, K, 4)
    else:
        raise ValueError(f"scores is {scores!r}: choose softmax or sigmoid")
    pixels = cxcywh_to_xyxy(boxes) * _scales(sizes, boxes)[:, None]
    return [Detections(b, s, label, classes=classes) for b, s, label in zip(pixels, values, labels, strict=True)]


def _scales(sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(B, 4) width, height, width, height of every image."""
    return torch.tensor([(w, h, w, h) for h, w in sizes], dtype=like.dtype, device=like.device)
