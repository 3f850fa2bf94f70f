"""Overlaps of boxes, and indices by image: what confusion and diagnosis share."""

from __future__ import annotations

import numpy as np


def groups(values: np.ndarray, count: int) -> list[np.ndarray]:
    """Return for each of 0 .. count-1 the ascending indices at which `values` holds it."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.searchsorted(values[order], np.arange(1, count)))


def overlap(a: np.ndarray, b: np.ndarray, *, crowd: bool = False) -> np.ndarray:
    """Compute the (N, M) IoU of xywh boxes (N, 4) and (M, 4); with `crowd`, the share of `a` that lies in `b`."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), -1)
    area_a, area_b = a[:, 2:].prod(1)[:, None], b[:, 2:].prod(1)[None]
    denominator = np.broadcast_to(area_a, common.shape) if crowd else area_a + area_b - common
    return np.divide(common, denominator, out=np.zeros_like(common), where=denominator > 0)
