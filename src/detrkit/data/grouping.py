"""Order of images by size, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def order_by_size(sizes: Sequence[tuple[int, int]], unit: int) -> list[int]:
    """Order the indices so that each run of `unit` images has about one size, and neighbors in it most of all.

    The set is halved by height or width, whichever has the larger range, at a whole number of units; the halves
    likewise, down to single images. The order depends on nothing but sizes and unit.

    Args:
        sizes: (height, width) of each image in pixels.
        unit: images per step; the remainder comes last, unordered.
    """
    whole = len(sizes) // unit * unit
    ordered = _halved(np.array(sizes).reshape(-1, 2), np.arange(whole), unit)
    return [*ordered.tolist(), *range(whole, len(sizes))]


def split_by_shape(sizes: Sequence[tuple[int, int]], most: float) -> list[list[int]]:
    """Group the indices of a batch's images, so that a tall and a wide strip are not padded to one square.

    A batch of which no more than a third is padding, or whose area is at most `most`, stays as it is. Otherwise images
    of similar shape form a group, as many as keep its padded area within that limit.

    Args:
        sizes: (height, width) of each image in pixels.
        most: pixels of a padded batch.
    """
    image_area = sum(h * w for h, w in sizes)
    most = max(most, 1.5 * image_area)
    if _padded_area(sizes) <= most:
        return [list(range(len(sizes)))]
    groups: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: sizes[i][0] / sizes[i][1]):
        if groups and _padded_area([sizes[i] for i in (*groups[-1], index)]) <= most:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _padded_area(sizes: Sequence[tuple[int, int]]) -> int:
    """Count the pixels of a batch of images of these (height, width), padding included."""
    return len(sizes) * max((h for h, _ in sizes), default=0) * max((w for _, w in sizes), default=0)


def _halved(sizes: np.ndarray, indices: np.ndarray, unit: int) -> np.ndarray:
    if len(indices) < 2:
        return indices
    axis = int(np.ptp(sizes[indices], axis=0).argmax())
    indices = indices[np.argsort(sizes[indices, axis], kind="stable")]
    units = len(indices) // unit
    half = units // 2 * unit if units > 1 else len(indices) // 2
    return np.concatenate([_halved(sizes, indices[:half], unit), _halved(sizes, indices[half:], unit)])
