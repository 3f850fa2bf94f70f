"""Legends: everything is said, whatever the width."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from detrkit.visualize.legend import LegendItem, with_legend

ITEMS = [
    LegendItem("scale", "weight of a point: 0", "0.32"),
    *(LegendItem("shape", f"level {k}", number=k) for k in range(4)),
    LegendItem("cross", "reference point"),
    LegendItem("line", "layer 0", color=(200, 0, 0)),
    LegendItem("dashes", "before", color=(0, 0, 200)),
    LegendItem("none", "93% in the box"),
]


def test_the_image_is_unchanged_above():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 300, 3), dtype=np.uint8))
    page = with_legend(image, "a caption", ITEMS)
    assert page.width == 300 and np.array_equal(np.asarray(page)[:50], np.asarray(image))
    assert with_legend(image, "a caption").height < page.height


@pytest.mark.parametrize("width", [20, 60, 150, 400, 1600])
def test_nothing_is_cut_off(width):
    page = np.asarray(with_legend(Image.new("RGB", (width, 30)), "a caption of several words", ITEMS))[30:]
    assert (page[:, -3:] == 255).all() and (page[:, :3] == 255).all()
    assert page.shape[1] == width or (width < 260 <= page.shape[1])
    assert (page[-3:] == 255).all()


def test_narrow_pages_have_more_lines():
    heights = [with_legend(Image.new("RGB", (w, 30)), "c", ITEMS, letters=14).height for w in (300, 600, 1600)]
    assert heights[0] > heights[1] > heights[2]


def test_marks_have_their_colors():
    page = np.asarray(with_legend(Image.new("RGB", (900, 30)), "c", ITEMS))[30:]
    assert (page == (200, 0, 0)).all(-1).any() and (page == (0, 0, 200)).all(-1).any()


def test_names_from_files_are_one_line():
    plain = with_legend(Image.new("RGB", (900, 30)), "a")
    assert with_legend(Image.new("RGB", (900, 30)), "a\nb\x1b[31m").height == plain.height
