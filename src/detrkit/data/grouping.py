"""Pictures of like size side by side, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def order_by_size(sizes: Sequence[tuple[int, int]], unit: int) -> list[int]:
    """The indices of pictures so that each run of `unit` of them has about one size, and neighbours in it most.

    The set is halved where heights or widths are spread furthest, at a whole number of units, and so are the halves,
    down to single pictures. The order depends on nothing but sizes and unit.

    Args:
        sizes: (height, width) of each picture in pixels.
        unit: how many become one step; what is left over comes last, unordered.
    """
    whole = len(sizes) // unit * unit
    ordered = _halved(np.array(sizes).reshape(-1, 2), np.arange(whole), unit)
    return [*ordered.tolist(), *range(whole, len(sizes))]


def _halved(sizes: np.ndarray, indices: np.ndarray, unit: int) -> np.ndarray:
    if len(indices) < 2:
        return indices
    axis = int(np.ptp(sizes[indices], axis=0).argmax())
    indices = indices[np.argsort(sizes[indices, axis], kind="stable")]
    units = len(indices) // unit
    half = units // 2 * unit if units > 1 else len(indices) // 2
    return np.concatenate([_halved(sizes, indices[:half], unit), _halved(sizes, indices[half:], unit)])
