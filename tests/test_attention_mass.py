"""What benchmarks/attention_mass.py counts, worked out by hand on a map of 4 x 4 cells."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.explanation import Explanation
from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections
from detrkit.structures.outputs import Capture

SIZE = 40  # pixels; cells are 10 x 10
LEFT, RIGHT = [0.0, 0.0, 20.0, 40.0], [20.0, 0.0, 40.0, 40.0]  # halves of the image


@pytest.fixture
def mass(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module("attention_mass")


@dataclass
class Maps:
    """Each query's map; a second layer attends evenly."""

    maps: dict[int, torch.Tensor]
    grid = (4, 4)
    levels = ((4, 4),)
    heads = 1
    encoder_layers = 1
    decoder_layers = 2

    def of_query(self, query, layer, head):
        return self.maps[query] if layer == 0 else torch.full((4, 4), 1 / 16)


def explained() -> Explanation:
    """Queries 3 and 0 found the left and the right half; 1, 2 and 4 found nothing and look at the upper left cell."""
    corner = torch.zeros(4, 4)
    corner[0, 0] = 1.0
    left = torch.zeros(4, 4)
    left[1:3, 1] = 0.4  # 0.8 in the left half, next to its right border
    left[0, 3] = 0.2
    right = torch.zeros(4, 4)
    right[:, 3] = 0.25
    detections = Detections(
        torch.tensor([LEFT, RIGHT]), torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), queries=torch.tensor([3, 0])
    )
    return Explanation(
        image=Image.new("RGB", (SIZE, SIZE)),
        detections=detections,
        panoptic=None,
        maps=Maps({3: left, 0: right, 1: corner, 2: corner, 4: corner}),
        capture=Capture(boxes=torch.zeros(2, 1, 5, 4)),
        number=0,
        activation="softmax",
        model_name="detr-r50",
    )


def test_the_shares_of_an_image(mass):
    layers = [mass.Shares(), mass.Shares()]
    mass.add_image(layers, explained(), [0, 1], 7, torch.Generator().manual_seed(0))
    first, second = layers
    assert first.image == [7, 7] and first.area == first.other_area == [0.5, 0.5]
    assert first.inside == pytest.approx([0.8, 1.0]) and first.other_box == pytest.approx([0.2, 0.0])
    assert first.other_queries == pytest.approx([1.0, 0.0])  # the upper left cell lies in the left half
    # core of the left half: x 5 to 15, y 10 to 30, half of both cells of 0.4; of the right half: half of two cells
    assert first.core == pytest.approx([0.4, 0.25]) and first.core_area == [0.125, 0.125]
    # with its ring the left half reaches to x = 25, the right one from x = 15 on
    assert first.around == pytest.approx([0.8, 1.0]) and first.around_area == [0.625, 0.625]
    for name in ("inside", "other_box", "other_queries"):
        assert second.array(name) == pytest.approx([0.5, 0.5])


def test_rows_of_the_tables(mass):
    layers = [mass.Shares(), mass.Shares()]
    mass.add_image(layers, explained(), [0, 1], 0, torch.Generator().manual_seed(0))
    row = mass.mass_row("first", layers[0], 0)
    assert list(row.values()) == [
        "first",
        2,
        pytest.approx(50),
        "90.0 (90.0 to 90.0)",
        pytest.approx(1.8),
        pytest.approx(10),
        pytest.approx(0.2),
        pytest.approx(50),
    ]
    # core: 0.65 of 0.25; edge: 1.15 of 0.75; around: nothing of 0.25
    where = mass.where_row("first", layers[0], 0)
    assert [text.split()[0] for text in list(where.values())[1:]] == ["2.60", "1.53", "0.00"]
    even = mass.where_row("second", layers[1], 0)
    assert [text.split()[0] for text in list(even.values())[1:]] == ["1.00", "1.00", "1.00"]


def test_an_image_of_one_object_has_no_other_box(mass):
    layers = [mass.Shares(), mass.Shares()]
    mass.add_image(layers, explained(), [1], 0, torch.Generator())
    assert math.isnan(layers[0].other_box[0]) and layers[0].inside == pytest.approx([1.0])
    mass.add_image(layers, explained(), [0, 1], 1, torch.Generator())
    assert mass.mass_row("", layers[0], 0)["in another object's box, %"] == pytest.approx(10)


def test_an_object_is_found_once_by_the_best_detection_of_its_class(mass):
    boxes = torch.tensor([LEFT, LEFT, LEFT, RIGHT, [0.0, 0.0, 9.0, 40.0]])
    labels = torch.tensor([1, 0, 0, 1, 1])
    scores = torch.linspace(0.9, 0.5, 5)
    detections = Detections(boxes, scores, labels, classes=ClassList(("a", "b"), (1, 2)))
    # of LEFT: the first has the wrong class, the third comes late; the last covers 45 % of the second object
    objects = torch.tensor([LEFT, [0.0, 0.0, 20.0, 40.0], RIGHT])
    assert mass.true_detections(detections, objects, torch.tensor([0, 1, 1])) == [0, 1, 3]
    assert mass.true_detections(detections, objects[:1], torch.tensor([0])) == [1]
    assert mass.true_detections(detections, objects[1:2], torch.tensor([1])) == [0]
    assert mass.true_detections(detections, objects[:0], torch.tensor([])) == []


def test_the_interval_is_over_images_not_detections(mass):
    values = mass.Shares()
    for image, inside in enumerate([0.0, 1.0] * 50):
        for _ in range(4):  # four equal detections an image tell no more than one
            values.add(image=image, area=0.5, inside=inside)
    low, high = (float(x) / 100 for x in mass.interval(values, ["inside"], [], 0).split(" to "))
    expected = 1.96 * 0.5 / np.sqrt(100)  # of a mean of 100 draws of 0 or 1
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15) and (low + high) / 2 == pytest.approx(0.5, abs=0.02)
