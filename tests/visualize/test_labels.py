"""labels.png: what its panels show, compared with counts made by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from detrkit.data.sample import Record
from detrkit.structures.classes import ClassList
from detrkit.visualize.curves import png_bytes
from detrkit.visualize.labels import label_plots


class Annotated:
    """Stands for a dataset: its records and classes."""

    def __init__(self, per_class: list[int], *, boxes=(10, 20, 42, 52), crowd: int = 0) -> None:
        self.classes = ClassList.contiguous({i: f"class {i}" for i in range(len(per_class))})
        labels = np.repeat(np.arange(len(per_class)), per_class)
        count = len(labels) + crowd
        labels = np.concatenate([labels, np.zeros(crowd, np.int64)])
        flags = np.arange(count) >= count - crowd
        box = np.tile(np.array(boxes, float), (count, 1))
        areas = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        empty = (np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0))
        self.records = [
            Record(1, "a.png", 100, 200, box, labels, flags, areas),
            Record(2, "b.png", 100, 200, *empty),
        ]


def panels(dataset):
    return dict(zip(("classes", "sizes", "centers", "ratios", "images"), label_plots(dataset).axes, strict=True))


def test_the_bars_are_the_counts_and_crowd_is_left_out():
    axes = panels(Annotated([3, 7, 0], crowd=5))
    bars = [(patch.get_width(), round(patch.get_y() + patch.get_height() / 2)) for patch in axes["classes"].patches]
    assert bars == [(7, 0), (3, 1), (0, 2)]
    assert [label.get_text() for label in axes["classes"].get_yticklabels()] == ["class 1", "class 0", "class 2"]
    assert axes["classes"].get_title(loc="left") == "10 objects of 3 classes"


def test_of_many_classes_the_extremes_have_bars():
    axes = panels(Annotated(list(range(1, 81))))
    names = [label.get_text() for label in axes["classes"].get_yticklabels()]
    assert len(names) == 24 and names[:2] == ["class 79", "class 78"] and names[-1] == "class 0" and names[12] == ""
    assert " ... 57 more classes" in [text.get_text() for text in axes["classes"].texts]


@pytest.mark.parametrize(("box", "kind"), [((0, 0, 8, 8), 0), ((10, 20, 42, 52), 1), ((0, 0, 200, 100), 2)])
def test_sizes_are_coco_s(box, kind):
    texts = [text.get_text() for text in panels(Annotated([4], boxes=box))["sizes"].texts]
    assert texts == [f"{name}\n{100 if i == kind else 0} %" for i, name in enumerate(("small", "medium", "large"))]


def test_centers_shapes_and_objects_of_an_image():
    axes = panels(Annotated([8], boxes=(0, 0, 100, 50)))  # twice as wide as high, in the upper left quarter
    density = axes["centers"].images[0].get_array().filled(0)
    assert density.sum() == 8 and density[density.shape[0] // 4, density.shape[1] // 4] == 8
    (place,) = [p.get_x() + p.get_width() / 2 for p in axes["ratios"].patches if p.get_height()]
    assert abs(place - 1) < 0.06  # log2(2)
    heights = {round(p.get_x() + p.get_width() / 2): p.get_height() for p in axes["images"].patches if p.get_height()}
    assert heights == {0: 1, 8: 1}
    assert axes["images"].get_xlabel() == "objects (mean 4.0, most 8; 1 image without)"


@pytest.mark.parametrize("counts", [[0], [1], [5] * 25])
def test_any_dataset_is_drawn(counts):
    dataset = Annotated(counts)
    dataset.classes = ClassList.contiguous({i: f"$x_{i}$ {'long ' * 30}" for i in range(len(counts))})
    assert png_bytes(label_plots(dataset)).startswith(b"\x89PNG")


def test_no_words_are_cut_at_the_border_of_the_figure():
    dataset = Annotated([123_456])
    dataset.records += dataset.records[1:] * 98_765  # images without objects
    figure = label_plots(dataset)
    figure.canvas.draw()
    whole = figure.bbox
    for ax in figure.axes:
        for text in (ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label):
            box = text.get_window_extent()
            assert not text.get_text() or (box.x0 >= whole.x0 and box.x1 <= whole.x1), text.get_text()


def test_words_stay_in_the_picture_beside_long_names_and_letters_without_a_glyph_are_no_warning():
    dataset = Annotated([1, 2, 3])
    dataset.records += dataset.records[1:] * 123_455
    dataset.classes = ClassList.contiguous(dict(enumerate(("x" * 200, "\u65e5\u672c\u8a9e", "c"))))
    figure = label_plots(dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png_bytes(figure)
    width = figure.bbox.width
    for ax in figure.axes:
        for text in (ax.title, ax._left_title, ax.xaxis.label):
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= width, text.get_text()
