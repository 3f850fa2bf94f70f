"""Sheets: sizes and what lies where."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.visualize import SheetRow, as_detections, color_of, comparison_sheet, grid, models_sheet

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_grid_size_and_places():
    pictures = [Image.new("RGB", (32, 24), c) for c in (RED, BLUE, RED, BLUE, RED)]
    sheet = grid(pictures, 2, tile=(320, 240))
    assert sheet.size == (10 + 2 * 330, 10 + 3 * 250)
    for index, color in enumerate((RED, BLUE, RED, BLUE, RED)):
        x, y = 10 + index % 2 * 330, 10 + index // 2 * 250
        assert sheet.getpixel((x, y)) == sheet.getpixel((x + 319, y + 239)) == color  # small pictures fill their tile
    assert sheet.getpixel((500, 700)) == (255, 255, 255)
    assert grid(pictures[:1], 4, tile=(320, 240)).size == (340, 260)


def test_titles_and_headings_take_room_of_their_own():
    pictures = [Image.new("RGB", (400, 100), RED)] * 4
    plain = grid(pictures, 2)
    titled = grid(pictures, 2, ["a", "b", "c", "a name that is much too long for the width of one tile"])
    headed = grid(pictures, 2, headings=["left", "right"])
    assert plain.width == titled.width == headed.width
    assert titled.height > plain.height
    assert headed.height > plain.height
    for sheet in (plain, titled, headed):  # nothing is written on the pictures
        assert (np.array(sheet) == RED).all(-1).sum() == 4 * 320 * 80
    right_margin = np.array(titled)[:, -10:]
    assert (right_margin == 255).all()


@pytest.mark.parametrize(
    ("images", "columns", "settings"),
    [(0, 2, {}), (2, 0, {}), (2, 2, {"titles": ["a"]}), (2, 2, {"headings": ["a"]})],
)
def test_bad_grids(images, columns, settings):
    with pytest.raises(ValueError, match=r"sheet needs|titles for|headings for"):
        grid([Image.new("RGB", (9, 9))] * images, columns, **settings)


def test_comparison_shows_truth_and_prediction_in_their_columns():
    image = Image.new("RGB", (96, 96), (128, 128, 128))
    truth = as_detections([[10, 40, 40, 80]], [3])
    found = as_detections([[10, 40, 40, 80], [50, 50, 90, 90]], torch.tensor([5, 6]))
    found.scores = torch.tensor([0.8, 0.1])
    sheet = np.array(comparison_sheet([SheetRow(image, truth, found, "a.jpg")] * 2, threshold=0.5, tile=(240, 240)))
    thirds = np.split(sheet[:, : sheet.shape[1] // 3 * 3], 3, axis=1)

    def pixels(third, label):
        return int((third == color_of(label)).all(-1).sum())

    assert [pixels(t, 3) > 500 for t in thirds] == [False, True, False]
    assert [pixels(t, 5) > 500 for t in thirds] == [False, False, True]
    assert [pixels(t, 6) for t in thirds] == [0, 0, 0]  # below the threshold
    one = comparison_sheet([SheetRow(image, truth, found, "a.jpg")], threshold=0.5, tile=(240, 240))
    assert one.width == sheet.shape[1]


def test_models_side_by_side_each_below_its_colour():
    image = Image.new("RGB", (96, 96), (128, 128, 128))
    row = SheetRow(image, as_detections([[10, 40, 40, 80]], [3]), caption="a.jpg")
    boxes = [[10, 40, 40, 80], [50, 50, 90, 90]]
    found = {"one": [as_detections(boxes, [5, 5])] * 2, "two": [as_detections(boxes, [6, 6])] * 2}
    colors = [(0, 114, 178), (230, 97, 0)]
    sheet = np.array(models_sheet([row, row], found, colors, tile=(240, 240)))
    columns = [sheet[:, 7 + i * 247 : 7 + i * 247 + 240] for i in range(4)]

    def pixels(color):
        return [int((c == color).all(-1).sum()) for c in columns]

    assert [n > 500 for n in pixels(color_of(3))] == [False, True, False, False]
    assert [n > 500 for n in pixels(color_of(5))] == [False, False, True, False]
    assert [n > 500 for n in pixels(color_of(6))] == [False, False, False, True]
    assert [n > 240 for n in pixels(colors[0])] == [False, False, True, False]
    assert [n > 240 for n in pixels(colors[1])] == [False, False, False, True]
    with pytest.raises(ValueError, match="at least one"):
        models_sheet([], found, colors)
    with pytest.raises(ValueError, match="shorter"):
        models_sheet([row] * 3, found, colors)


def test_comparison_without_prediction_or_objects():
    rows = [SheetRow(Image.new("RGB", (64, 48))), SheetRow(Image.new("L", (48, 64)), as_detections([], []))]
    sheet = comparison_sheet(rows)
    assert sheet.width > 3 * 480
    with pytest.raises(ValueError, match="at least one"):
        comparison_sheet([])
