"""Every image is covered, every tile has its full size, and small objects are whole in one of them."""

import itertools

import numpy as np
import pytest

from detrkit.tiling import Tiling
from detrkit.utils.errors import SettingError


@pytest.mark.parametrize(
    ("tile", "overlap", "height", "width"),
    [(64, 0.2, 64, 65), (64, 0.2, 200, 333), (64, 0.0, 128, 128), (33, 0.9, 100, 70), (100, 0.25, 50, 999)],
)
def test_tiles_cover_the_image_at_full_size_and_overlap(tile, overlap, height, width):
    tiling = Tiling(tile, overlap)
    windows = tiling.windows(height, width)
    seen = np.zeros((height, width), int)
    for x0, y0, x1, y1 in windows:
        assert (x1 - x0, y1 - y0) == (min(tile, width), min(tile, height))
        assert x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height
        seen[y0:y1, x0:x1] += 1
    assert seen.min() >= 1 and len(windows) == len(set(windows)) == tiling.count(height, width)
    for axis in (0, 1):
        starts = sorted({w[axis] for w in windows})
        assert all(b - a <= tile - overlap * tile for a, b in itertools.pairwise(starts))


def test_an_object_as_large_as_the_overlap_is_whole_in_a_tile():
    tiling = Tiling(50, 0.3)
    windows = tiling.windows(50, 237)
    for x in range(237 - 15 + 1):
        assert any(x0 <= x and x + 15 <= x1 for x0, _, x1, _ in windows), x


def test_tiles_are_counted_without_a_list_of_them():
    """A file may state any size: of 2^31 pixels a list would have 700 million entries."""
    assert Tiling(32, 0.9).count(1, 2**31 - 1) == (2**31 - 1 - 32 + 2) // 3 + 1
    assert Tiling(640).count(4000, 4000) == 64 and Tiling(320).count(4000, 4000) == 256


def test_an_image_no_larger_than_a_tile_is_not_cut():
    assert not Tiling(64).cuts(64, 64) and Tiling(64).cuts(64, 65) and Tiling(64).cuts(65, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "tile is 0: must be at least 32"),
        ((31,), "tile is 31: must be at least 32"),
        ((64.0,), "tile is 64.0: must be a whole number"),
        ((True,), "tile is True: must be a whole number"),
        ((64, 1), "overlap is 1: must be at most 0.9"),
        ((64, -0.1), "overlap is -0.1: must be at least 0"),
        ((64, float("nan")), "overlap is nan: must be a finite number"),
    ],
)
def test_values_out_of_range_are_named(arguments, message):
    with pytest.raises(SettingError, match=message):
        Tiling(*arguments)
