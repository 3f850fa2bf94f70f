"""Panoptic PNGs: colours and ids, masks, and what the pixels say about the segments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.data.panoptic import LARGEST_ID, measure_segments, read_id_map, segment_masks, write_id_map
from detrkit.utils.errors import DetrkitError


def test_colours_are_the_digits_of_the_id(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 2, 3], [255, 255, 255]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    ids = read_id_map(tmp_path / "a.png", (2, 3))
    assert ids.dtype == np.int32
    assert ids.tolist() == [[0, 1, 256], [65536, 1 + 2 * 256 + 3 * 65536, LARGEST_ID]]
    # transparency, as some drawing programs add it, says nothing
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "b.png")
    assert np.array_equal(read_id_map(tmp_path / "b.png"), ids)


@pytest.mark.parametrize("seed", [0, 1])
def test_there_and_back(tmp_path: Path, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, LARGEST_ID + 1, (37, 53), dtype=np.int32)
    write_id_map(tmp_path / "a.png", ids, compress_level=1)
    assert np.array_equal(read_id_map(tmp_path / "a.png"), ids)


def test_masks() -> None:
    ids = np.array([[5, 5, 0], [5, 9, 9]], np.int32)
    masks = segment_masks(ids, [9, 5, 4])
    assert masks.dtype == torch.bool
    assert masks.int().tolist() == [[[0, 0, 0], [0, 1, 1]], [[1, 1, 0], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert segment_masks(ids, []).shape == (0, 2, 3)


@pytest.mark.parametrize("seed", range(4))
def test_measures_equal_those_of_the_masks(seed: int) -> None:
    """Against counting pixels mask by mask; few ids in small maps, so that runs touch at the ends of rows."""
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, 40, 2))
    ids = rng.choice(np.array([0, 1, 7, 300, LARGEST_ID], np.int32), (height, width), p=[0.3, 0.4, 0.2, 0.05, 0.05])
    found = measure_segments(ids)
    expected = sorted(set(ids.ravel().tolist()) - {0})
    assert found.ids.tolist() == expected
    for segment, area, box in zip(expected, found.areas, found.boxes.tolist(), strict=True):
        rows, columns = np.nonzero(ids == segment)
        assert area == len(rows)
        assert box == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


def test_all_void() -> None:
    found = measure_segments(np.zeros((3, 4), np.int32))
    assert found.ids.shape == found.areas.shape == (0,) and found.boxes.shape == (0, 4)


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    with pytest.raises(DetrkitError, match=r"a\.png: panoptic PNG is missing"):
        read_id_map(file)
    Image.new("RGB", (6, 4)).save(file)
    with pytest.raises(DetrkitError, match=r"a\.png: panoptic PNG is 6x4 pixels but its image 4x6 \(width x height\)"):
        read_id_map(file, (6, 4))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DetrkitError, match=r"a\.png: panoptic PNG cannot be read"):
        read_id_map(file)
    Image.new("L", (6, 4)).save(file)
    with pytest.raises(DetrkitError, match=r"a\.png: pixels are L; write a panoptic PNG as RGB"):
        read_id_map(file)
