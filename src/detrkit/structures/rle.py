"""Masks as run lengths, in COCO's format."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

_TOGETHER = 2**26  # bytes of masks that are encoded at once: each is copied, column by column


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode (N, H, W) bool masks as N compressed RLEs in COCO's format: size [H, W] and counts as text."""
    import hotcoco

    if not len(masks):
        return []
    rles: list[dict[str, Any]] = []
    for some in masks.split(max(1, _TOGETHER // max(1, masks[0].numel()))):
        columns = np.asfortranarray(some.cpu().numpy().transpose(1, 2, 0), np.uint8)  # (H, W, n)
        encoded: Any = hotcoco.mask.encode(columns)
        rles += [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in encoded]
    return rles
