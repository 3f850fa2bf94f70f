"""Sizes of what is drawn, and crowded images: labels hide neither objects nor each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections
from detrkit.visualize import SheetRow, color_of, comparison_sheet, draw_boxes
from detrkit.visualize.sizes import automatic_scale, drawing_sizes, tile_sizes, typical_side
from detrkit.visualize.tags import paint_tags

CLASSES = ClassList(("cell", "nucleus"), (1, 2))


def squares(side: float, count: int = 3) -> np.ndarray:
    return np.array([[10.0 * i, 5, 10 * i + side, 5 + side] for i in range(count)])


def test_typical_side_is_the_median_root_of_the_area():
    assert typical_side(None) is None and typical_side(np.zeros((0, 4))) is None
    assert typical_side(np.array([[0, 0, 4, 9], [0, 0, 1, 1], [0, 0, 100, 100.0]])) == 6


@pytest.mark.parametrize(
    ("size", "side", "scale"),
    [
        ((104, 110), None, 3),  # 384 / 110
        ((104, 110), 40, 3),  # large objects do not change it
        ((640, 480), 40, 1),
        ((640, 480), 16, 2),
        ((640, 480), 5, 3),  # 2048 / 640 is the limit
        ((300, 300), 2, 4),  # no more than 4 for objects
        ((4000, 3000), 8, 1),
    ],
)
def test_scale_by_the_image_and_its_objects(size, side, scale):
    assert automatic_scale(size, None if side is None else squares(side)) == scale


def test_lines_and_letters_follow_image_and_objects():
    assert drawing_sizes((640, 480)) == (3, 15)
    assert drawing_sizes((640, 480), squares(100)) == (3, 15)
    assert drawing_sizes((4000, 3000)) == (16, 91)
    assert drawing_sizes((4000, 3000), squares(200)) == (10, 50)
    assert drawing_sizes((4000, 3000), squares(20)) == (5, 30)  # a third: an image is looked at as a whole, too
    assert drawing_sizes((100, 100), squares(5)) == (2, 12)  # below it nothing can be read
    assert tile_sizes(480) == (2, 15)


def painted(boxes: np.ndarray, labels: list[str], short: list[str] | None, monkeypatch) -> list[tuple]:
    """The tags that are painted: (left, top, width, height, text)."""
    tags = []
    monkeypatch.setattr("detrkit.visualize.tags.paint_tag", lambda canvas, tag, color, size: tags.append(tag))
    paint_tags(Image.new("RGB", (600, 600)), boxes.astype(int), labels, [color_of(0)] * len(labels), 12, short)
    return tags


def test_in_a_crowd_labels_are_scores_and_hide_no_other_box(monkeypatch):
    corners = np.stack(np.meshgrid(np.arange(0, 600, 40), np.arange(0, 600, 40)), -1).reshape(-1, 2)[:200]
    boxes = np.hstack([corners + 5, corners + 30]).astype(float)
    labels, short = [f"cell 0.{i % 90 + 10}" for i in range(200)], [f"0.{i % 90 + 10}" for i in range(200)]
    tags = painted(boxes, labels, short, monkeypatch)
    assert [tag.text for tag in tags if tag.text.startswith("cell")] == [labels[-1]]  # the best names the class
    places = np.array([tag[:4] for tag in tags])
    low, high = places[:, :2], places[:, :2] + places[:, 2:]
    common = np.minimum(high[:, None], high[None]) - np.maximum(low[:, None], low[None])
    shared = common.clip(min=0).prod(-1) * ~np.eye(len(tags), dtype=bool)
    assert (shared.max(1) <= 0.3 * places[:, 2:].prod(1)).all()
    assert len(tags) > 100
    # few boxes keep their labels
    assert {tag.text for tag in painted(boxes[:10], labels[:10], short[:10], monkeypatch)} == set(labels[:10])


def test_labels_on_one_place_are_left_out(monkeypatch):
    boxes = np.tile([[100.0, 100, 160, 160]], (20, 1))
    tags = painted(boxes, [f"cell {i}" for i in range(20)], None, monkeypatch)
    assert 1 <= len(tags) <= 6 and "cell 19" in {tag.text for tag in tags}


def test_dashed_lines_have_gaps():
    drawn = np.array(
        draw_boxes(Image.new("RGB", (100, 80)), [[10, 10, 90, 70]], colors=[(255, 0, 0)], width=2, dashed=True)
    )
    top = (drawn[10, 10:90] == (255, 0, 0)).all(-1)
    assert top[:8].all() and not top[8:14].any() and top[14:22].all()


def test_the_best_detection_below_the_threshold_is_dashed():
    image = Image.new("RGB", (120, 100), (9, 9, 9))
    boxes = torch.tensor([[10.0, 30, 60, 90], [70, 40, 100, 80]])
    found = Detections(boxes, torch.tensor([0.2, 0.1]), torch.tensor([0, 1]), classes=CLASSES, image=image)
    drawn = np.array(found.above(0.5).draw())
    assert (drawn[89, 10:60] == color_of(0)).all(-1).sum() not in (0, 50)  # its lower edge, with gaps
    assert (drawn == color_of(1)).all(-1).sum() == 0  # the second best is not drawn
    assert found.draw(scale=2).size == (240, 200) and found.draw(scale=None).size == (360, 300)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), image=image)
    assert nothing.draw().getcolors() == [(12000, (9, 9, 9))]


def test_an_empty_tile_of_a_sheet_says_why(monkeypatch):
    titles = []
    from detrkit.visualize import sheet

    grid = sheet.grid
    monkeypatch.setattr(
        sheet, "grid", lambda tiles, columns, texts, **k: titles.extend(texts) or grid(tiles, columns, texts, **k)
    )
    image = Image.new("RGB", (120, 100))
    boxes = torch.tensor([[10.0, 30, 60, 90], [70, 40, 100, 80]])
    found = Detections(boxes, torch.tensor([0.21, 0.1]), torch.tensor([0, 1]), classes=CLASSES)
    empty = found.above(0.5)
    with_boxes = comparison_sheet([SheetRow(image, None, empty, "a.png", found)], threshold=0.5)
    without = comparison_sheet([SheetRow(image, None, empty, "a.png")], threshold=0.5)
    assert titles[2] == "0 detections; dashed: the best 2, up to 0.21"
    assert titles[5] == "0 detections; best score 0.21 (cell)"
    right = np.array(with_boxes)[:, -490:]
    assert (right == color_of(0)).all(-1).any() and (right == color_of(1)).all(-1).any()
    assert (np.array(without)[:, -490:] == color_of(0)).all(-1).any()
