"""Pictures of explanations: colors, marks and layout, against the numbers that they show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.explanation import explain
from detrkit.explanation.numbers import explanation_numbers
from detrkit.explanation.picture_parts import PICTURE_SIDE, where
from detrkit.explanation.pictures import _legend
from detrkit.explanation.subjects import DetectionSubject, PixelSubject, share_words
from detrkit.visualize.attention import dimmed, heat_color, object_color
from detrkit.visualize.tags import Tag
from helpers.explanations import KINDS, noise, tiny_detector, tiny_explanation


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("kind", KINDS)
def test_the_brightest_pixel_of_a_map_is_in_the_cell_with_the_most_attention(kind):
    e = tiny_explanation(kind)
    heat = e.cross_attention(1).numpy()
    picture = np.asarray(e.draw(1, show="map", legend=False, scale=8)).astype(int)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    height, width = e.grid
    cell = picture[row * 512 // height : (row + 1) * 512 // height, column * 768 // width : (column + 1) * 768 // width]
    yellow = np.array(heat_color(1.0))
    base = np.asarray(dimmed(e.image.resize((768, 512), Image.Resampling.LANCZOS))).astype(float)
    # 92 % of the color, 8 % of the photograph, at the center of the cell
    y, x = int((row + 0.5) * 512 / height), int((column + 0.5) * 768 / width)
    assert np.abs(picture[y, x] - (0.92 * yellow + 0.08 * base[y, x])).max() <= 6
    box_free = picture.reshape(-1, 3)
    nearest = np.abs(cell - yellow).sum(-1).min()
    assert nearest <= np.abs(box_free - yellow).sum(-1).min() + 12


def test_the_cross_is_at_the_pixel():
    e = tiny_explanation("plain")
    picture = np.asarray(e.draw(pixel=(40.25, 20.25), legend=False, scale=4))
    white = np.argwhere((picture == 255).all(-1))
    assert np.abs(white.mean(0) - [20.25 * 4 - 0.5, 40.25 * 4 - 0.5]).max() <= 0.5


def test_the_reference_point_is_where_the_layer_starts_from():
    e = tiny_explanation("deformable")
    for layer in range(2):
        x0, y0, x1, y1 = e.reference_boxes(0)[layer].tolist()
        picture = np.asarray(e.draw(0, layer=layer, legend=False, scale=8))
        white = np.argwhere((picture == 255).all(-1))
        y, x = np.median(white, 0)
        assert abs(x - (x0 + x1) / 2 * 8) < 12 and abs(y - (y0 + y1) / 2 * 8) < 12


def test_all_objects_have_their_colors_where_they_attend_alone():
    e = tiny_explanation("plain")
    picture = np.asarray(e.draw([0], legend=False, scale=8)).astype(float)
    heat = e.cross_attention(0).numpy()
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    y, x = int((row + 0.5) * 512 / e.grid[0]), int((column + 0.5) * 768 / e.grid[1])
    base = np.asarray(dimmed(e.image.resize((768, 512), Image.Resampling.LANCZOS))).astype(float)
    assert np.abs(picture[y, x] - (0.92 * np.array(object_color(0)) + 0.08 * base[y, x])).max() <= 6


def test_i_and_several_and_negative_numbers():
    e = tiny_explanation("two-stage")
    assert same(e.draw(-1), e.draw(len(e) - 1))
    assert same(e.draw(np.int64(1)), e.draw(1)) and same(e.draw(torch.tensor([0, 1])), e.draw((0, 1)))
    assert same(e.draw(), e.draw(range(len(e)))) and not same(e.draw(), e.draw([0]))


def test_words_say_which_layer_and_head_and_how_many_there_are():
    e = tiny_explanation("plain")
    object_0, pixel = DetectionSubject(e, 0), PixelSubject(e, 1, 1)
    assert where(object_0, -1, "mean", "map") == "decoder layer 1 (last), mean of 4 heads"
    assert where(object_0, 0, 2, "map") == "decoder layer 0 (last: 1), head 2 (last: 3)"
    assert where(pixel, -2, 3, None) == f"encoder layer 0 (last: {e.encoder_layers - 1}), head 3 (last)"


@pytest.mark.parametrize(
    ("share", "words"),
    [(1.0, "100%"), (0.9287, "93%"), (0.0312, "3%"), (0.0096, "1%"), (0.0094, "0.9%"), (0.00042, "0.04%"), (0.0, "0%")],
)
def test_a_small_share_is_not_rounded_to_nothing(share, words):
    assert share_words(share) == words


def test_the_legend_sets_the_share_inside_the_box_beside_that_of_the_image():
    e = tiny_explanation("two-stage")
    inside, area = e.attention_inside(0), explanation_numbers(e)["detections"][0]["box_share"]
    _, items = _legend(DetectionSubject(e, 0), -1, "mean", "points")
    assert items[-1].text == f"{share_words(inside)} in the box, which is {share_words(area)} of the image"


def test_a_sheet_of_points_says_what_their_shapes_and_the_cross_are():
    with pytest.MonkeyPatch.context() as patch:
        items = []
        patch.setattr(
            "detrkit.explanation.picture_sheets.with_legend", lambda image, caption, found, **_: items.append(found)
        )
        e = tiny_explanation("two-stage")
        e.draw(0, layer="all"), e.draw(pixel=(1, 1), head="all"), e.draw(0, layer="all", show="map")
    levels = [f"level {k}: {w} x {h} cells" for k, (h, w) in enumerate(e.maps.levels)]
    assert [[item.text for item in found] for found in items] == [
        [*levels, "reference point"],
        [*levels, "the pixel"],
        [],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sheet_has_a_column_for_each_layer_and_a_row_for_each_detection(kind):
    e = tiny_explanation(kind)
    sheet, one = e.draw([0, 1], layer="all", scale=2), e.draw(0, layer="all", scale=2)
    assert sheet.width == one.width == 6 + 2 * (192 + 6)  # two layers, gaps of 6 pixels
    assert sheet.height - one.height >= 128 - 40  # another row; its caption may be shorter


def test_a_sheet_of_heads_and_layers_of_one_detection():
    e = tiny_explanation("two-stage")
    rows = e.draw(0, layer="all", head="all", scale=1)
    assert rows.height > 4 * 64 and 2 * 96 < rows.width < 3 * 96
    with pytest.raises(ValueError, match="all layers and all heads are a picture of one detection"):
        e.draw(layer="all", head="all")


def test_pixels_around_an_image():
    e = tiny_explanation("plain")
    picture = e.draw(pixel=[(10, 10), (50, 30), (90, 60)], scale=4)
    assert picture.width > 2 * 96 * 4 and picture.height > 64 * 4
    pixels = np.asarray(picture)
    for number in range(3):  # the frame of each map is of the marker's color
        assert (pixels == object_color(number)).all(-1).sum() > 500
    assert not (pixels == object_color(3)).all(-1).any()


@pytest.mark.parametrize("corner", [(0.5, 0.5), (95.5, 0.5), (0.5, 63.5), (95.5, 63.5)])
def test_numbers_of_pixels_cover_no_cross(corner):
    """A tag that was pushed into the image's corner hid the cross there, in the image and in its own map."""
    e = tiny_explanation("plain")
    with pytest.MonkeyPatch.context() as patch:
        tags, crosses = [], []
        patch.setattr("detrkit.explanation.picture_sheets.paint_tag", lambda canvas, tag, *_: tags.append(tag))
        patch.setattr(
            "detrkit.explanation.picture_sheets.draw_cross", lambda canvas, center, **_: crosses.append(center)
        )
        e.draw(pixel=[corner, (48, 32), (50, 30)], scale=4)
    assert len(tags) == 6 and len(crosses) == 3
    for tag in tags[:3]:  # of the image; the others are of its maps, half as large
        assert not any(covers(tag, cross) for cross in crosses)
    for tag, (x, y) in zip(tags[3:], crosses, strict=True):
        assert not covers(tag, (x / 2 + 3, y / 2 + 3))


def covers(tag: Tag, center: tuple[float, float]) -> bool:
    return tag.left < center[0] < tag.left + tag.width and tag.top < center[1] < tag.top + tag.height


def test_the_way_of_the_box_has_a_line_for_each_layer():
    e = tiny_explanation("two-stage")
    pixels = np.asarray(e.draw(0, show="boxes", legend=False, scale=8))
    assert (pixels == heat_color(0.0)).all(-1).any() and (pixels == heat_color(1.0)).all(-1).any()


@pytest.mark.parametrize(
    ("size", "want"), [((4000, 2000), (PICTURE_SIDE, 800)), ((48, 32), (384, 256)), ((600, 400), (600, 400))]
)
def test_small_images_are_enlarged_and_large_ones_reduced(size, want):
    assert tiny_explanation("plain", *size).draw(legend=False).size == want


def test_a_factor_of_the_size():
    assert tiny_explanation("plain").draw(legend=False, scale=2).size == (192, 128)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(40, 3), (3, 40), (1, 1)])
def test_odd_images_are_drawn_whole(kind, size):
    e = tiny_explanation(kind, *size)
    for choice in ({}, {"i": 0}, {"i": 0, "show": "boxes"}, {"layer": "all"}, {"pixel": [(0, 0), (0.5, 0.5)]}):
        assert min(e.draw(**choice).size) > 3


def test_nothing_found_is_drawn_with_the_best_box_dashed():
    e = tiny_explanation("plain", threshold=1.0)
    assert len(e) == 0
    assert not same(e.draw(), e.draw(legend=False))
    pixels = np.asarray(e.draw(legend=False))
    assert (pixels == object_color(0)).all(-1).any()
    with pytest.raises(ValueError, match="there are no detections to draw: explain with a lower threshold"):
        e.draw(layer="all")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"i": 0, "pixel": (1, 1)}, "a picture is of a detection (i) or of a pixel: leave one out"),
        ({"show": "heat"}, "show is 'heat': choose one of map, points, boxes"),
        ({"layer": "last"}, "layer is 'last': choose a number, or \"all\""),
        ({"layer": 2}, "decoder layer 2: choose -2 to 1"),
        ({"i": 0, "head": 4}, 'head 4: choose 0 to 3, or "mean"'),
        ({"pixel": (96, 0)}, "pixel (96, 0) is outside the image of 96 x 64 pixels"),
        ({"pixel": (1, 2, 3)}, "pixel: give (x, y), or a list of them"),
        ({"pixel": (float("nan"), 2)}, "pixel: give (x, y), or a list of them"),
        ({"scale": 0}, "scale is 0: give a factor above 0, and at most 682.3 for an image of 96 x 64 pixels"),
        ({"scale": 0, "layer": "all"}, "scale is 0: give a factor above 0"),
        ({"pixel": [(1, 1), (2, 2)], "scale": -1}, "scale is -1: give a factor above 0"),
        ({"i": 0, "scale": float("nan")}, "scale is nan: give a factor above 0"),
        ({"i": 0, "scale": 1e9}, "scale is 1e+09: give a factor above 0, and at most 682.3"),
        ({"show": "boxes", "layer": "all"}, 'show="boxes" is the way of the boxes through all layers'),
        ({"i": 0, "show": "points"}, "detr-r50 attends to a whole map and samples no points"),
    ],
)
def test_what_cannot_be_drawn_is_said(choice, message):
    with pytest.raises(ValueError) as caught:
        tiny_explanation("plain").draw(**choice)
    assert message in str(caught.value)


def test_no_such_detection():
    with pytest.raises(IndexError, match="detection 5: there are 5 detections, counted from 0"):
        tiny_explanation("plain").draw(5)


def test_drawing_changes_nothing_and_repeats():
    e = explain(tiny_detector("two-stage"), noise(seed=4), threshold=0.0)
    before = np.asarray(e.image).copy()
    assert same(e.draw(0), e.draw(0))
    assert np.array_equal(before, np.asarray(e.image))
