"""Panoptic pictures: colours, borders, void, and where names go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.structures.classes import ClassList
from detrkit.structures.panoptic import PanopticResult, Segment
from detrkit.visualize import (
    SheetRow,
    as_detections,
    color_of,
    comparison_sheet,
    draw_panoptic,
    instance_color,
    panoptic_sheet,
)
from detrkit.visualize.colors import PALETTE_SIZE, SHADES, instance_colors
from detrkit.visualize.panoptic import borders, index_map, place_names, segment_colors

CLASSES = ClassList(("cat", "sky"), (3, 119), (True, False))


def scene(size=(120, 160), *, ids=(7, 90000, 5)):
    """Sky above, two cats side by side below, a void strip at the right."""
    id_map = torch.zeros(size, dtype=torch.int32)
    height, width = size
    id_map[: height // 2] = ids[0]
    id_map[height // 2 :, : width // 2] = ids[1]
    id_map[height // 2 :, width // 2 :] = ids[2]
    id_map[:, width * 7 // 8 :] = 0
    areas = [int((id_map == i).sum()) for i in ids]
    rows = zip(ids, (1, 0, 0), (0.9, 0.8, 0.7), areas, (False, True, True), strict=True)
    return PanopticResult(id_map, [Segment(*row) for row in rows], CLASSES)


def test_shades_are_of_their_class_and_apart():
    for label in range(PALETTE_SIZE):
        base = np.array(color_of(label), float)
        shades = np.array([instance_color(label, i) for i in range(SHADES)], float)
        np.testing.assert_array_equal(shades[0], base)
        apart = np.linalg.norm(shades[:, None] - shades[None], axis=-1)  # of 441 from black to white
        assert apart[:8, :8][~np.eye(8, dtype=bool)].min() > 20
        assert apart[~np.eye(SHADES, dtype=bool)].min() > 10
        # nearer to their class than the other classes are
        others = np.array([color_of(i) for i in range(12) if i != label], float)
        assert apart[0, 1:].mean() < 0.6 * np.linalg.norm(others - base, axis=1).mean()
    assert instance_color(PALETTE_SIZE + 5, SHADES + 3) == instance_color(5, 3)
    assert instance_colors([4, 2, 4]) == [color_of(4), color_of(2), instance_color(4, 1)]


def test_stuff_has_the_colour_of_its_class():
    assert segment_colors(scene()) == [color_of(1), color_of(0), instance_color(0, 1)]
    twice = PanopticResult(torch.zeros(1, 2), [Segment(i, 1, 1.0, 1, False) for i in (1, 2)])
    assert segment_colors(twice) == [color_of(1)] * 2


def test_pixels_have_the_colours_of_their_segments():
    result = scene()
    image = Image.new("RGB", (160, 120), (100, 100, 100))
    drawn = np.array(draw_panoptic(image, result, names=False, opacity=1.0))
    assert (drawn[10, 10] == color_of(1)).all()
    assert (drawn[110, 10] == color_of(0)).all()
    assert (drawn[110, 100] == instance_color(0, 1)).all()
    assert image.getcolors() == [(160 * 120, (100, 100, 100))]  # the picture itself is left as it was
    # a line between all of them, lighter than both sides, and none along the picture's edge
    assert drawn[100, 80].mean() > drawn[100, 78].mean()
    assert (drawn[0, 1] == color_of(1)).all()
    # void: two greys, in stripes
    void = drawn[:, 145:]
    assert len(np.unique(void.reshape(-1, 3), axis=0)) == 2
    assert (np.ptp(void.astype(int), axis=2) < 10).all()
    half = np.array(draw_panoptic(image, result, names=False, opacity=0.5))
    np.testing.assert_allclose(half[10, 10], (np.array(color_of(1)) + 100) / 2, atol=1)
    assert (np.array(draw_panoptic(image, result, names=False, opacity=0.0))[10, 10] == 100).all()


def test_names_are_written_inside():
    result = scene()
    image = Image.new("RGB", (160, 120), (100, 100, 100))
    plain, named = (np.array(draw_panoptic(image, result, names=n)) for n in (False, True))
    changed = (plain != named).any(-1)
    for segment in result.segments:
        inside = (result.id_map == segment.id).numpy()
        assert (changed & inside).sum() > 30
    assert not (changed & (result.id_map == 0).numpy()).any()
    assert not changed[:, :2].any()
    scored = np.array(draw_panoptic(image, result, scores=True))
    assert (plain != scored).any(-1).sum() > changed.sum()  # "cat 0.80" is longer


def test_index_map_survives_large_ids_and_scaling():
    result = scene(ids=(2**24 - 1, 3, 70000))
    index = index_map(result, (160, 120))
    assert [(index == i).sum() for i in (1, 2, 3)] == [s.area for s in result.segments]
    large = index_map(result, (320, 240))
    np.testing.assert_array_equal(large[::2, ::2], index)
    np.testing.assert_array_equal(large[1::2, 1::2], index)
    without = PanopticResult(result.id_map, result.segments[1:], CLASSES)  # ids of no segment are void
    assert (index_map(without, (160, 120)) == 0).sum() == (index == 0).sum() + (index == 1).sum()
    assert not index_map(PanopticResult(result.id_map, [], CLASSES), (16, 12)).any()


def test_borders_are_as_wide_as_asked():
    index = np.zeros((20, 30), int)
    index[:, 15:] = 1
    for width in (1, 2, 3):
        line = borders(index, width)
        assert line.sum() == 20 * width
        assert line[:, 15].all()


def test_a_name_goes_where_it_has_most_room():
    index = np.zeros((100, 200), int)
    index[10:90, 10:20] = 1  # a narrow column ...
    index[60:90, 10:150] = 1  # ... on a wide foot
    (name,) = place_names(index, ["elephant"], 16)
    assert 60 < name.y < 90
    assert 40 < name.x < 120
    assert name.size == 16
    index[:] = 0
    index[40:52] = 1  # a band lower than the text: smaller letters
    (name,) = place_names(index, ["elephant"], 24)
    assert name.size < 24
    assert 40 < name.y < 52


def test_names_do_not_cover_each_other_and_stay_in_the_picture():
    rng = np.random.default_rng(0)
    index = np.kron(np.arange(1, 41).reshape(5, 8), np.ones((30, 40), int))
    index[rng.random(index.shape) < 0.01] = 0
    names = ["bear", "a much longer name", "ox", "sky, other"] * 10
    placed = place_names(index, names, 18)
    boxes = [(p.x, p.y, p.size * 0.6 * len(p.text) / 2, p.size / 2) for p in placed if p is not None]
    assert len(boxes) >= 20
    for x, y, w, h in boxes:
        assert w * 0.7 <= x <= 320 - w * 0.7
        assert h <= y <= 150 - h
    for i, (x, y, w, h) in enumerate(boxes):
        for a, b, c, d in boxes[:i]:
            assert abs(x - a) > (w + c) * 0.6 or abs(y - b) > (h + d) * 0.9


def test_tiny_segments_have_no_name():
    index = np.ones((80, 80), int)
    index[40:42, 40:42] = 2
    placed = place_names(index, ["sky", "kite"], 14)
    assert placed[0] is not None
    assert placed[1] is None
    assert place_names(np.zeros((5, 5), int), ["nowhere"], 14) == [None]


def test_nothing_found_is_all_void():
    image = Image.new("RGB", (40, 30), (200, 10, 10))
    drawn = draw_panoptic(image, PanopticResult(torch.zeros(30, 40, dtype=torch.int32), [], CLASSES), opacity=1.0)
    assert len(drawn.getcolors()) == 2


def test_another_size_is_named():
    with pytest.raises(ValueError, match="a result of 160 x 120 pixels on an image of 120 x 160"):
        draw_panoptic(Image.new("RGB", (120, 160)), scene())


def test_sheets():
    image = Image.new("RGB", (160, 120), (100, 100, 100))
    result = scene()
    sheet = np.array(panoptic_sheet([(image, result, "a.jpg")] * 2, tile=(320, 240)))
    left, masks, whole = (sheet[:, 10 + i * 330 : 330 + i * 330] for i in range(3))
    sky = color_of(1)

    def near(part, color, limit):
        return int((np.abs(part.astype(int) - color).max(-1) < limit).sum())

    assert near(left, sky, 30) == 0
    assert near(whole, sky, 30) > 2 * 320 * 240 * 0.3
    assert near(masks, (np.array(sky) + 100) / 2, 4) > 2 * 320 * 240 * 0.3
    mixed = comparison_sheet(
        [SheetRow(image, result, result), SheetRow(image, as_detections([[1, 2, 30, 40]], [0], CLASSES), None)],
        threshold=0.5,
        tile=(320, 240),
    )
    assert mixed.width == sheet.shape[1]
    with pytest.raises(ValueError, match="needs at least one image"):
        panoptic_sheet([])


@pytest.mark.parametrize("opacity", [0.0, 0.35, 0.6, 1.0])
def test_tints_against_arithmetic_in_floating_point(opacity):
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    pixels[:4] = 255
    ids = np.zeros((30, 40), np.int32)
    ids[:15, :20], ids[:15, 20:], ids[15:, 10:] = 16_777_215, 5, 70_000  # ids as large as COCO's
    segments = [Segment(70_000, 3, 1.0, 9, True), Segment(5, 1, 1.0, 9, True), Segment(16_777_215, 2, 1.0, 9, False)]
    result = PanopticResult(torch.from_numpy(ids), segments)
    drawn = np.asarray(draw_panoptic(Image.fromarray(pixels), result, opacity=opacity, names=False), float)
    colors = segment_colors(result)
    weights = np.array([0.2126, 0.7152, 0.0722])
    for segment, color in zip(segments, colors, strict=True):
        inside = ids == segment.id
        inside &= ~borders(index_map(result, (40, 30)), 1)
        pale = (pixels[inside] + (pixels[inside] @ weights)[:, None]) / 2
        expected = pale * (1 - opacity) + np.array(color) * opacity
        assert np.abs(drawn[inside] - expected).max() <= 1.01
