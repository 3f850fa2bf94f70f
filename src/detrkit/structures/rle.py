"""Masks as run lengths, in COCO's format."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode (N, H, W) bool masks as N compressed RLEs in COCO's format: size [H, W] and counts as text."""
    import hotcoco

    if not len(masks):
        return []
    columns = np.asfortranarray(masks.cpu().numpy().transpose(1, 2, 0), np.uint8)  # (H, W, N)
    rles: Any = hotcoco.mask.encode(columns)
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in rles]
