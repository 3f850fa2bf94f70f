"""Plots: the lines hold the numbers that were given."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from detrkit.evaluation import Confusion, PrecisionRecall
from detrkit.visualize import confusion_heatmap, precision_recall_curves, save_figure, study_curves, training_curves
from detrkit.visualize.curves import png_bytes


def lines(ax):
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in ax.get_lines()}


def test_training_curves_hold_the_log():
    rows = [{"epoch": e, "train/loss": 9.0 - e, "train/loss_ce": 3.0, "train/loss_ce_0": 1.0} for e in range(4)]
    rows[1] |= {"val/AP": "0.25", "val/AP50": 0.5}
    rows[3] |= {"val/AP": 0.4, "val/AP50": 0.6}
    rows[2] |= {"val/AP": "", "val/AP50": None}
    for r in rows:
        r["lr"] = 1e-4
    figure = training_curves(rows)
    loss, ap, rate = figure.axes
    assert set(lines(loss)) == {"total", "classification"}
    np.testing.assert_allclose(lines(loss)["total"], [[0, 1, 2, 3], [9, 8, 7, 6]])
    np.testing.assert_allclose(lines(ap)["AP, best 40.0 at epoch 3"], [[1, 3], [25, 40]])
    np.testing.assert_allclose(lines(ap)["AP50, best 60.0 at epoch 3"], [[1, 3], [50, 60]])
    assert rate.get_yscale() == "log"


def test_training_curves_by_step():
    rows = [{"epoch": s // 50, "step": s, "train/loss": 5.0, "val/AP": 0.1 if s % 50 == 49 else ""} for s in range(200)]
    loss, ap = training_curves(rows).axes
    assert loss.get_xlabel() == "step"
    assert ap.get_xlabel() == "epoch"
    np.testing.assert_allclose(lines(loss)["total"][1], 5)  # the running mean is right at the ends too
    with pytest.raises(ValueError, match="no row has"):
        training_curves([{"epoch": 1, "note": 3}])


def test_a_single_epoch_is_a_dot_at_a_whole_number():
    rows = [{"epoch": 1, "step": 25, "train/loss": 18.8, "train/loss_ce": 0.6, "lr": 1e-4}]
    loss, rate = training_curves(rows).axes
    assert [line.get_marker() for line in (*loss.lines, *rate.lines)] == ["o", "o", "o"]
    for ax in (loss, rate):
        low, high = ax.get_xlim()
        assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1]
    loss, rate = training_curves([*rows, {**rows[0], "epoch": 2, "step": 50}]).axes
    assert not any(line.get_marker() == "o" for line in (*loss.lines, *rate.lines))


def test_study_curves_hold_every_run_in_its_colour():
    short = [{"epoch": e, "train/loss": 9.0 - e, "val/AP": 0.1 * e if e % 2 else "", "val/AP50": ""} for e in range(3)]
    long = [{"epoch": str(e), "train/loss": "5", "val/AP": "0.5", "val/AP50": "0.7"} for e in range(5)]
    figure = study_curves({"short": short, "long": long}, {"long": "#e66100", "short": "#0072b2"})
    ap, ap50, loss = figure.axes
    np.testing.assert_allclose(lines(ap)["short"], [[1], [10]])
    np.testing.assert_allclose(lines(ap)["long"], [range(5), [50] * 5])
    np.testing.assert_allclose(lines(ap50)["long"][1], [70] * 5)
    np.testing.assert_allclose(lines(loss)["short"], [[0, 1, 2], [9, 8, 7]])
    for ax in figure.axes:
        assert {line.get_label(): line.get_color() for line in ax.get_lines()} == {
            "short": "#0072b2",
            "long": "#e66100",
        }
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["short", "long"]


def test_study_curves_of_several_seeds_are_mean_and_range():
    seeds = [
        [{"epoch": e, "train/loss": loss - e, "val/AP": ap * e} for e in (1, 2)]
        for loss, ap in ((9.0, 0.1), (6.0, 0.2), (3.0, 0.3))
    ]
    figure = study_curves(
        {"one": seeds[0], "three": [r for s in seeds for r in s]}, dict.fromkeys(("one", "three"), "k")
    )
    ap, _, loss = figure.axes
    np.testing.assert_allclose(lines(ap)["three"], [[1, 2], [20, 40]])
    np.testing.assert_allclose(lines(loss)["three"], [[1, 2], [5, 4]])
    for ax, low, high in ((ap, [10, 20], [30, 60]), (loss, [2, 1], [8, 7])):
        (band,) = ax.collections  # the model of one seed has none
        corners = {tuple(v) for v in band.get_paths()[0].vertices.tolist()}
        assert corners >= {(1, low[0]), (2, low[1]), (1, high[0]), (2, high[1])}


def curves(classes):
    rng = np.random.default_rng(classes)
    precision = np.sort(rng.random((10, 101, classes)), axis=1)[:, ::-1]
    precision[:, :, 0] = -1  # a class without objects
    names = tuple(f"class {i}" for i in range(classes))
    return PrecisionRecall(names, np.linspace(0, 1, 101), np.linspace(0.5, 0.95, 10), precision, precision)


def test_precision_recall_curves_hold_the_numbers():
    given = curves(4)
    mean, single = precision_recall_curves(given).axes
    area = given.precision[0, :, 1:].mean() * 100
    np.testing.assert_allclose(lines(mean)[f"IoU 0.5: {area:.1f}"][1], given.precision[0, :, 1:].mean(1))
    labels = [text.get_text() for text in single.get_legend().get_texts()]
    assert len(labels) == 3
    assert not any(label.startswith("class 0:") for label in labels)
    values = [float(label.split(": ")[1]) for label in labels]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(lines(single)[labels[0]][1], given.per_class(0.5)[:, int(labels[0][6])])


def test_precision_recall_of_many_classes_names_the_ends():
    given = curves(31)
    _, single = precision_recall_curves(given, classes=6).axes
    areas = np.sort(given.per_class(0.5)[:, 1:].mean(0))[::-1] * 100
    shown = [float(t.get_text().split(": ")[1]) for t in single.get_legend().get_texts()]
    np.testing.assert_allclose(shown, np.concatenate([areas[:3], areas[-3:]]), atol=0.06)
    assert len(single.get_lines()) == 30


def test_precision_recall_without_objects():
    nothing = PrecisionRecall(("a",), np.linspace(0, 1, 101), np.array([0.5, 0.75]), -np.ones((2, 101, 1)), np.ones(1))
    figure = precision_recall_curves(nothing)
    assert [len(ax.get_lines()) for ax in figure.axes] == [0, 0]


def test_confusion_heatmap_writes_the_counts():
    matrix = np.array([[8, 2, 0], [0, 5, 5], [3, 0, 0]])
    ax = confusion_heatmap(Confusion(("cat", "dog"), matrix, 0.5, 0.3)).axes[0]
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): int(t.get_text()) for t in ax.texts}
    assert written == {(0, 0): 8, (0, 1): 2, (1, 1): 5, (1, 2): 5, (2, 0): 3}
    np.testing.assert_allclose(ax.images[0].get_array()[0], [0.8, 0.2, 0])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["cat", "dog", "missed"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cat", "dog", "background"]


def test_confusion_heatmap_of_many_classes_shows_the_frequent_ones():
    matrix = np.diag(np.arange(51))
    names = tuple(f"c{i}" for i in range(50))
    ax = confusion_heatmap(Confusion(names, matrix, 0.5, 0.5), most=10).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"c{i}" for i in range(40, 50)] + ["background"]


def test_figures_are_saved_whole_and_without_pyplot(tmp_path):
    path = save_figure(precision_recall_curves(curves(3)), tmp_path / "new" / "pr.png")
    with Image.open(path) as picture:
        assert picture.size == (round(9.6 * 144), 4 * 144)
    assert [p.name for p in path.parent.iterdir()] == ["pr.png"]
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.slow
def test_drawing_does_not_wait_for_matplotlib():
    code = "import sys, detrkit.visualize as v; v.draw_boxes; assert 'matplotlib' not in sys.modules; v.training_curves"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_rate_that_is_constant_but_for_rounding_is_drawn_without_a_warning():
    rows = [{"epoch": k + 1, "lr": lr, "train/loss": 1.0} for k, lr in enumerate((0.001, 0.0010000000000000002))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png_bytes(training_curves(rows))
