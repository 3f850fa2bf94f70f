"""Drawing of attention, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from detrkit.visualize.attention import (
    OBJECT_COLORS,
    dimmed,
    draw_cross,
    draw_heat,
    draw_objects_heat,
    draw_points,
    heat_color,
    object_color,
    opacity,
    upsampled,
)
from detrkit.visualize.colors import luminance
from detrkit.visualize.query_boxes import LARGE_TALL, LARGE_WIDE, SMALL, box_colors, draw_unit_square

BLACK, WHITE = Image.new("RGB", (40, 40)), Image.new("RGB", (40, 40), (255, 255, 255))


def test_the_scale_is_viridis_and_grows_brighter():
    for value in (0.0, 0.3, 1.0):
        assert heat_color(value) == tuple((np.array(colormaps["viridis"](value)[:3]) * 255).round())
    steps = [luminance(heat_color(value)) for value in np.linspace(0, 1, 20)]
    assert steps == sorted(steps)


def test_opacity():
    assert opacity(np.array([0.0, 1.0])).tolist() == [0.0, 0.92]
    assert opacity(np.array(0.5)) == pytest.approx(0.92 * 0.5**0.8)


def test_where_nothing_is_attended_to_the_photograph_is_seen():
    gradient = Image.linear_gradient("L").resize((40, 40)).convert("RGB")
    assert np.array_equal(np.asarray(draw_heat(gradient, np.zeros((2, 2)))), np.asarray(dimmed(gradient)))


def test_dark_and_bright_photographs_look_alike():
    noise = np.random.default_rng(0).integers(0, 40, (40, 40, 1)).repeat(3, 2).astype(np.uint8)
    dark, bright = dimmed(Image.fromarray(noise)), dimmed(Image.fromarray(noise + 200))
    assert np.abs(np.asarray(dark).astype(int) - np.asarray(bright)).max() <= 8
    assert np.asarray(dark).max() == 128  # half of white


def test_the_heat_of_one_cell():
    heat = np.zeros((2, 2))
    heat[0, 1] = 0.3  # the largest there is, so the brightest
    pixels = np.asarray(draw_heat(BLACK, heat))
    want = 0.92 * np.array(heat_color(1.0))
    assert np.abs(pixels[9, 30] - want).max() <= 1 and pixels[35, 5].max() <= 3
    halved = np.asarray(draw_heat(BLACK, heat, limit=0.6))[9, 30]
    assert np.abs(halved - opacity(np.array(0.5)) * np.array(heat_color(0.5))).max() <= 4


def test_cells_are_spread_over_the_whole_image():
    heat = np.zeros((4, 4), np.float32)
    heat[2, 1] = 1.0
    shown = upsampled(heat, (120, 80))
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    assert 49 <= y < 51 and 44 <= x < 46  # center of row 2 of 4 in 80 pixels, of column 1 of 4 in 120
    assert shown.min() == 0 and shown.shape == (80, 120)


def test_each_object_in_its_color_and_their_mixture():
    left, right = np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 0.0, 2.0]])
    middle = np.array([[0.0, 1.0, 0.0]])
    wide = Image.new("RGB", (60, 20))
    pixels = np.asarray(draw_objects_heat(wide, [left, right], [(200, 0, 0), (0, 0, 100)])).astype(float)
    assert np.abs(pixels[10, 8] - [184, 0, 0]).max() <= 2  # 92 %
    assert np.abs(pixels[10, 52] - [0, 0, 92]).max() <= 2  # relative to its own largest
    both = np.asarray(draw_objects_heat(wide, [middle, middle], [(200, 0, 0), (0, 0, 100)])).astype(float)
    assert np.abs(both[10, 30] - [92, 0, 46]).max() <= 2  # the mean
    # 1 beside 1/2: squares 1 and 1/4
    more = np.array([[1.0, 0.5, 0.0]])
    pixels = np.asarray(draw_objects_heat(wide, [middle, more], [(200, 0, 0), (0, 0, 100)])).astype(float)
    assert np.abs(pixels[10, 29:31].mean(0) - [0.92 * 160, 0, 0.92 * 20]).max() <= 4


def test_points_have_the_color_and_the_size_of_their_weight():
    canvas = Image.new("RGB", (700, 700), (90, 90, 90))
    points = np.array([[100.0, 100.0], [400.0, 400.0], [5000.0, -1e9]])
    draw_points(canvas, points, np.array([1.0, 0.25, 0.5]), np.array([0, 1, 2]))
    pixels = np.asarray(canvas)
    assert tuple(pixels[100, 100]) == heat_color(1.0) and tuple(pixels[400, 400]) == heat_color(0.25)
    large = (pixels[80:121, 80:121] == heat_color(1.0)).all(-1).sum()
    small = (pixels[380:421, 380:421] == heat_color(0.25)).all(-1).sum()
    assert large > 2 * small > 40
    assert (pixels != 90).any(-1).sum() < 1200  # nothing else was drawn


def test_the_heaviest_point_is_on_top():
    canvas = Image.new("RGB", (300, 300))
    draw_points(canvas, np.array([[50.0, 50.0], [50.0, 50.0]]), np.array([0.9, 0.1]), np.array([0, 0]))
    assert canvas.getpixel((50, 50)) == heat_color(1.0)


def test_levels_have_shapes_of_their_own():
    masks = []
    for level in range(5):
        canvas = Image.new("RGB", (600, 600))
        draw_points(canvas, np.array([[300.0, 300.0]]), np.ones(1), np.array([level]))
        masks.append(np.asarray(canvas).any(-1))
    for a in range(5):
        for b in range(a):
            assert (masks[a] != masks[b]).sum() > 20
        assert 100 < masks[a].sum() < 300  # about as large


def test_a_cross_outside_is_at_the_border():
    canvas = BLACK.copy()
    draw_cross(canvas, (-500, 20.5))
    assert canvas.getpixel((0, 20)) == (255, 255, 255) and not np.asarray(canvas)[:, 30:].any()


def test_colors_of_objects_are_bright_and_repeat():
    assert len(set(OBJECT_COLORS)) == 7 and object_color(7) == object_color(0)
    assert min(map(luminance, OBJECT_COLORS)) > 0.14  # seen on the dark photograph, whose white is 0.22


def test_colors_of_boxes():
    boxes = np.array([[0.5, 0.5, 0, 0], [0.5, 0.5, 1, 0.5], [0.5, 0.5, 0.5, 1], [0.5, 0.5, 0.5, 0.5]])
    small, wide, tall, square = box_colors(boxes)
    assert np.abs(small - SMALL).max() < 1
    assert wide.tolist() == list(LARGE_WIDE) and tall.tolist() == list(LARGE_TALL)
    assert square.tolist() == [(a + b) / 2 for a, b in zip(LARGE_WIDE, LARGE_TALL, strict=True)]


def test_points_are_at_the_centers_of_the_boxes():
    square = np.asarray(draw_unit_square(np.array([[0.25, 0.75, 0.01, 0.01]]), 200))
    inside = np.argwhere((square[2:-2, 2:-2] != 255).any(-1)) + 2
    assert np.abs(inside.mean(0) - [150, 50]).max() < 1.5  # row 150, column 50


def test_centers_at_the_border_and_outside_are_inside_the_square():
    square = draw_unit_square(np.array([[0.0, 1.0, 1, 1], [1.5, -3.0, 1, 1]]), 100)
    assert (np.asarray(square)[3:-3, 3:-3] == 255).all()
