"""Colours, boxes and tags."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections
from detrkit.visualize import color_of, draw_boxes, draw_detections, draw_masks, instance_color, palette
from detrkit.visualize.colors import PALETTE_SIZE, contrast, text_color
from detrkit.visualize.draw import automatic_scale
from detrkit.visualize.tags import place_tag


def test_contrast_is_wcags():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.478, abs=1e-3)  # WCAG's well-known #777


def test_text_is_readable_on_every_colour():
    for color in palette(PALETTE_SIZE):
        assert contrast(color, text_color(color)) >= 4.5
        other = tuple(255 - c for c in text_color(color))
        assert contrast(color, text_color(color)) >= contrast(color, other)


def test_colours_are_distinct_and_stable():
    assert len(set(palette(PALETTE_SIZE))) == PALETTE_SIZE
    assert palette(5) == palette(90)[:5] == [color_of(i) for i in range(5)]
    assert color_of(PALETTE_SIZE + 3) == color_of(3)
    first = np.array(palette(12), float)
    apart = np.linalg.norm(first[:, None] - first[None], axis=-1)
    assert apart[~np.eye(12, dtype=bool)].min() > 60  # of 441 from black to white


def test_outline_has_the_colour_and_the_rest_is_untouched():
    image = Image.new("RGB", (100, 80), (10, 20, 30))
    drawn = np.array(draw_boxes(image, [[20, 30, 60, 70]], colors=[(200, 100, 50)], width=3))
    expected = np.full((80, 100, 3), (10, 20, 30))
    expected[30:70, 20:60] = (200, 100, 50)  # the half-open box [20, 60) x [30, 70)
    expected[33:67, 23:57] = (10, 20, 30)
    np.testing.assert_array_equal(drawn, expected)
    assert image.getcolors() == [(8000, (10, 20, 30))]


def test_boxes_out_of_the_picture_are_drawn_along_its_border():
    drawn = np.array(draw_boxes(Image.new("RGB", (50, 40)), [[-30, -9, 90, 500]], colors=[(255, 0, 0)], width=1))
    red = (drawn == (255, 0, 0)).all(-1)
    assert red.sum() == 2 * 50 + 2 * 38
    assert red[0].all()
    assert red[:, -1].all()


def test_boxes_without_area_and_tensors():
    image = Image.new("L", (30, 30), 128)
    drawn = draw_boxes(image, torch.tensor([[5.0, 5, 5, 5], [30, 30, 30, 30], [9, 9, 4, 20]]))
    assert drawn.mode == "RGB"
    assert drawn.getpixel((5, 5)) == color_of(0)
    assert drawn.getpixel((29, 29)) == color_of(1)
    for none in ([], torch.zeros(0, 4), np.zeros((0, 4))):
        assert draw_boxes(image, none, []).getcolors() == [(900, (128, 128, 128))]


def test_later_boxes_lie_on_top():
    drawn = draw_boxes(Image.new("RGB", (20, 20)), [[2, 2, 18, 18]] * 2, colors=[(255, 0, 0), (0, 0, 255)])
    assert drawn.getpixel((2, 2)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("boxes", "settings", "message"),
    [
        ([[0, 0, 1]], {}, r"\(N, 4\)"),
        ([[0, 0, 1, 1], [0, 0, float("nan"), 1]], {}, "box 1 is not finite"),
        ([[0, 0, 1, 1]], {"labels": ["a", "b"]}, "2 labels for 1 boxes"),
        ([[0, 0, 1, 1]], {"colors": []}, "0 colors for 1 boxes"),
    ],
)
def test_bad_input_is_named(boxes, settings, message):
    with pytest.raises(ValueError, match=message):
        draw_boxes(Image.new("RGB", (9, 9)), boxes, **settings)


@pytest.mark.parametrize("seed", range(5))
def test_tags_stay_inside(seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        size = tuple(int(v) for v in rng.integers(30, 700, 2))
        box = np.sort(rng.uniform(-50, 750, (2, 2)), axis=0).ravel()
        text = "traffic light 0.93"[: int(rng.integers(1, 19))]
        tag = place_tag(text, box, size, int(rng.integers(10, 30)))
        if tag is not None:
            assert 0 <= tag.left <= tag.left + tag.width <= size[0]
            assert 0 <= tag.top <= tag.top + tag.height <= size[1]


def test_tag_is_above_its_box_if_there_is_room():
    tag = place_tag("cat", (50, 60, 90, 90), (200, 200), 14)
    assert (tag.left, tag.top + tag.height) == (50, 60)
    assert place_tag("cat", (50, 0, 90, 90), (200, 200), 14).top == 0


def test_tags_do_not_cover_each_other():
    taken = []
    for _ in range(4):
        tag = place_tag("cat 0.50", (50, 60, 150, 130), (200, 200), 14, taken)
        for other in taken:
            apart = (
                tag.left >= other.left + other.width
                or other.left >= tag.left + tag.width
                or tag.top >= other.top + other.height
                or other.top >= tag.top + tag.height
            )
            assert apart
        taken.append(tag)


def test_long_names_are_shortened():
    tag = place_tag("a very long class name 0.99", (0, 20, 60, 60), (64, 64), 12)
    assert tag.text.endswith("..")
    assert tag.text.startswith("a very")
    assert place_tag("cat", (0, 0, 5, 5), (6, 6), 12) is None


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (250, 40, 25)])
def test_tag_is_filled_and_its_text_is_there(background):
    drawn = draw_boxes(Image.new("RGB", (120, 90), background), [[10, 40, 100, 80]], ["cat 0.93"], [(0, 90, 200)])
    area = np.array(drawn)[:40]
    ink = text_color((0, 90, 200))
    assert ink == (255, 255, 255)
    rows, columns = np.nonzero((area == (0, 90, 200)).all(-1))
    tag = area[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    read = [contrast(tuple(pixel), (0, 90, 200)) >= 4.5 for pixel in tag.reshape(-1, 3).tolist()]
    assert sum(read) > 40  # the letters as drawn, with their soft edges
    assert (tag == (0, 90, 200)).all(-1).mean() > 0.5
    assert (tag[0] == (0, 90, 200)).all()  # filled up to its edges, whatever lies behind
    assert (tag[:, -1] == (0, 90, 200)).all()


def test_other_alphabets_have_letters():
    """Pillow's own font shows the same empty box for every letter outside of ASCII."""
    pictures = [draw_boxes(Image.new("RGB", (80, 40)), [[0, 30, 80, 40]], [t]).tobytes() for t in ("кот", "дом", "été")]
    assert len(set(pictures)) == 3


def test_small_pictures_are_enlarged_on_request():
    image = Image.new("RGB", (96, 72))
    assert draw_boxes(image, [[10, 10, 40, 40]], ["cat"]).size == (96, 72)
    drawn = draw_boxes(image, [[10, 10, 40, 40]], colors=[(255, 0, 0)], scale=None)
    assert drawn.size == (384, 288)
    assert drawn.getpixel((40, 40)) == drawn.getpixel((159, 159)) == (255, 0, 0)
    assert drawn.getpixel((160, 160)) == (0, 0, 0)
    assert [automatic_scale((s, 10)) for s in (32, 96, 200, 640, 4000)] == [12, 4, 2, 1, 1]


def detections(**changes):
    fields = {
        "boxes": torch.tensor([[10.0, 30, 60, 90], [10, 30, 60, 90]]),
        "scores": torch.tensor([0.9, 0.2]),
        "labels": torch.tensor([1, 0]),
        "classes": ClassList(("dog", "cat"), (5, 9)),
    } | changes
    return Detections(**fields)


def test_the_best_lies_on_top_in_the_colour_of_its_class():
    image = Image.new("RGB", (120, 120))
    drawn = draw_detections(image, detections())
    assert drawn.getpixel((10, 60)) == color_of(1)
    turned = draw_detections(image, detections().select(torch.tensor([1, 0])))
    assert turned.tobytes() == drawn.tobytes()
    assert detections().draw(image).tobytes() == drawn.tobytes()


def test_scores_and_names_are_written():
    image = Image.new("RGB", (200, 120))
    found = detections().select(torch.tensor([0]))
    drawn = draw_detections(image, found)
    assert drawn.tobytes() == draw_boxes(image, found.boxes, ["cat 0.90"], [color_of(1)]).tobytes()
    without = draw_detections(image, found, scores=False)
    assert without.tobytes() == draw_boxes(image, found.boxes, ["cat"], [color_of(1)]).tobytes()


def test_masks_are_tinted():
    image = Image.new("RGB", (4, 3), (100, 100, 100))
    masks = torch.zeros(1, 3, 4, dtype=torch.bool)
    masks[0, 1, 2] = True
    drawn = np.array(draw_masks(image, masks, [(200, 0, 100)], opacity=0.5))
    expected = np.full((3, 4, 3), 100)
    expected[1, 2] = (150, 50, 100)
    np.testing.assert_array_equal(drawn, expected)
    with pytest.raises(ValueError, match="masks of shape"):
        draw_masks(image, masks.transpose(1, 2), [(0, 0, 0)])
    with_mask = detections(masks=torch.ones(2, 120, 120, dtype=torch.bool))
    assert draw_detections(Image.new("RGB", (120, 120)), with_mask).getpixel((118, 118)) != (0, 0, 0)
    with pytest.raises(ValueError, match="masks of shape"):
        draw_detections(Image.new("RGB", (120, 100)), with_mask)


def test_masks_are_outlined_and_scale_with_the_picture():
    image = Image.new("RGB", (40, 30), (100, 100, 100))
    masks = torch.zeros(2, 30, 40, dtype=torch.bool)
    masks[0, 10:20, 5:15] = masks[1, 10:20, 25:40] = True
    red = (200, 0, 0)
    drawn = np.array(draw_masks(image, masks, [red, red], opacity=0.5, outline=2))
    opaque = (drawn == red).all(-1)
    assert opaque[10:20, 5:15].sum() == 100 - 36
    assert opaque[12:18, 39].sum() == 0  # none along the picture's border
    found = Detections(
        torch.tensor([[5.0, 10, 15, 20], [25, 10, 40, 20]]), torch.tensor([0.6, 0.9]), torch.tensor([3, 3]), masks
    )
    large = np.array(draw_detections(image, found, scale=4))
    assert large.shape == (120, 160, 3)
    for box, color in (((40, 80, 100, 160), color_of(3)), ((40, 80, 20, 60), instance_color(3, 1))):
        middle = large[(box[0] + box[1]) // 2, (box[2] + box[3]) // 2]
        np.testing.assert_allclose(middle, np.array(color) * 0.45 + 55, atol=1)  # the best has the class's own colour
    assert (large[100, 80] == 100).all()


def test_tints_and_outlines_against_arithmetic_on_whole_images():
    """Only the rectangle of a mask is worked on, by tables: the same pixels as without."""
    rng = np.random.default_rng(4)
    pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    masks = np.zeros((6, 40, 50), bool)
    masks[0, 5:20, 10:30] = masks[1, :, :9] = masks[2, 30:, 30:] = masks[3, 17, 22] = True
    masks[4] = rng.random((40, 50)) < 0.5
    colors = [tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in masks]
    for opacity, outline in ((0.45, 0), (0.45, 1), (0.3, 3), (1.0, 2), (0.0, 1)):
        expected = pixels.copy()
        for mask, color in zip(masks, colors, strict=True):
            expected[mask] = (expected[mask] * (1 - opacity) + np.array(color) * opacity).round()
            if outline:
                expected[mask & ~ndimage.binary_erosion(mask, iterations=outline, border_value=1)] = color
        drawn = draw_masks(Image.fromarray(pixels), masks, colors, opacity=opacity, outline=outline)
        np.testing.assert_array_equal(np.asarray(drawn), expected)


def test_tags_are_the_same_whatever_was_drawn_before():
    image = Image.new("RGB", (300, 200), (90, 120, 40))
    boxes, names = [[20, 40, 90, 90], [21, 121, 200, 190]], ["gypsy 0.50", "gypsy 0.50"]
    first = draw_boxes(image, boxes, names, [(0, 90, 200)] * 2)
    draw_boxes(image, boxes, names, [(200, 90, 0)] * 2, font_size=9)
    again = np.asarray(draw_boxes(image, boxes, names, [(0, 90, 200)] * 2))
    np.testing.assert_array_equal(again, np.asarray(first))
    tags = [place_tag(name, box, image.size, 12) for name, box in zip(names, boxes, strict=True)]
    parts = [again[t.top : t.top + t.height, t.left : t.left + t.width] for t in tags]
    np.testing.assert_array_equal(*parts)  # wherever they are
    assert len(np.unique(parts[0].reshape(-1, 3), axis=0)) > 5
