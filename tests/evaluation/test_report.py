"""The report: every file it links is there, and its numbers are the metrics'."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from PIL import Image

from detrkit.evaluation import PanopticEvaluator, confusion_matrix, evaluate_detections, write_report
from detrkit.evaluation.report import _panoptic_classes
from detrkit.structures.panoptic import PanopticResult
from detrkit.utils.errors import DetrkitError
from helpers.coco_sets import random_set
from helpers.panoptic_sets import random_set as random_panoptic

ROWS = [{"epoch": e, "train/loss": 9 - e, "val/AP": e / 10, "lr": 1e-4} for e in range(4)]


@pytest.fixture(scope="module")
def evaluation():
    truth, results = random_set(0)
    return evaluate_detections(truth, results, max_dets=200, scores=True), confusion_matrix(truth, results)


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", page)


@pytest.mark.slow
def test_everything_linked_is_there(evaluation, tmp_path):
    metrics, confusion = evaluation
    path = write_report(
        tmp_path / "new" / "report",
        metrics=metrics,
        title="a\nmodel",
        settings={"batch size": 2, "file": "a|b", "scale": math.inf, "exact": True},
        confusion=confusion,
        sheet=Image.new("RGB", (60, 40), "red"),
        curves=ROWS,
        timing={"images per second": 31.4159},
    )
    page = path.read_text()
    folder = path.parent
    assert set(links(page)) == {p.name for p in folder.iterdir()} - {"report.md"}
    for name in links(page):
        if name.endswith(".png"):
            with Image.open(folder / name) as picture:
                picture.load()
                assert picture.width > 50
                assert len(picture.convert("RGB").getcolors(1 << 24)) > 100 or name == "examples.png"
    assert Image.open(folder / "examples.png").getpixel((5, 5)) == (255, 0, 0)
    assert page.startswith("# a model\n")
    assert f"**AP {metrics.AP * 100:.1f}**" in page
    assert metrics.table() in page
    assert metrics.table(per_class=True) in page
    assert "a\\|b" in page
    assert "The terms shown are those of the last layer, without weights." in page  # why they do not add up
    assert re.search(r"images per second \|\s+31\.42", page)
    record = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert record["AP"] == metrics.AP
    assert record["max_dets"] == [1, 10, 200]
    assert record["settings"]["batch size"] == 2
    thresholds = metrics.scores.suggest()
    assert record["score_thresholds"] == metrics.scores.to_json(thresholds)
    assert metrics.scores.table(thresholds) in page
    assert record["confusion"]["matrix"] == confusion.matrix.tolist()


def test_metrics_alone(evaluation, tmp_path):
    path = write_report(tmp_path, metrics=evaluation[0], title="x", settings={})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "metrics.json",
        "precision_recall.png",
        "report.md",
        "scores.png",
    ]
    assert all((tmp_path / name).exists() for name in links(path.read_text()))
    assert "## Settings" not in path.read_text()


def panoptic_numbers(seed, images):
    truth, maps, predictions = random_panoptic(seed, images)
    evaluator = PanopticEvaluator(truth, maps.__getitem__)
    for image_id, found in predictions.items():
        evaluator.add(image_id, PanopticResult.from_coco(*found, evaluator.ground_truth.classes))
    return evaluator.compute()


def test_panoptic_alone(tmp_path):
    metrics = panoptic_numbers(0, 12)
    path = write_report(
        tmp_path, metrics=None, panoptic=metrics, title="x", settings={}, sheet=Image.new("RGB", (60, 40), "red")
    )
    page = path.read_text()
    assert f"**PQ {metrics.PQ * 100:.1f}** on 12 images with {metrics.segments} segments." in page
    assert metrics.table() in page
    assert metrics.table(per_class=True) in page
    assert "worst" not in page  # 9 classes: the table of all shows them
    assert "void" in page
    assert "AP" not in page
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["panoptic"]["per_class"] == metrics.per_class
    assert set(links(page)) == {"examples.png", "metrics.json"}
    with pytest.raises(ValueError, match="needs metrics or panoptic metrics"):
        write_report(tmp_path, metrics=None, title="x", settings={})


def test_worst_classes_are_named_apart():
    metrics = panoptic_numbers(0, 12)
    worst = metrics.worst(3)
    qualities = sorted(row["PQ"] for row in metrics.per_class.values() if row["segments"])
    assert [metrics.per_class[name]["PQ"] for name in worst] == qualities[:3]
    text = _panoptic_classes(metrics, 3)
    assert "The 3 worst annotated classes:" in text
    assert metrics.class_table(worst) in text


def test_boxes_masks_and_segments_together(evaluation, tmp_path):
    boxes, confusion = evaluation
    masks = replace(boxes, iou_type="segm", AP=0.123)
    panoptic = panoptic_numbers(1, 3)
    page = write_report(
        tmp_path, metrics=boxes, masks=masks, panoptic=panoptic, title="x", settings={}, confusion=confusion
    ).read_text()
    order = [
        page.index(text)
        for text in ("**PQ ", f"**AP {boxes.AP * 100:.1f}** (boxes)", "**AP 12.3** (masks)", "## Classes: segments")
    ]
    assert order == sorted(order)
    assert page.count(boxes.table(per_class=True)) == 2  # of boxes and, here the same, of masks
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert (record["AP"], record["masks"]["AP"], record["panoptic"]["PQ"]) == (boxes.AP, 0.123, panoptic.PQ)


def test_nothing_to_find(tmp_path):
    truth, _ = random_set(0)
    metrics = evaluate_detections(truth | {"annotations": []}, [])
    page = write_report(tmp_path, metrics=metrics, title="x", settings={}).read_text()
    assert "AP undefined" in page
    assert "Without objects in the ground truth: " + ", ".join(metrics.per_class) in page


def test_a_file_is_no_folder(evaluation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DetrkitError, match="file is a file"):
        write_report(tmp_path / "file", metrics=evaluation[0], title="x", settings={})


def test_scores_of_80_classes_are_readable():
    """Ten curves have a color and a name in each panel, the others are gray; "all together" is in front."""
    from detrkit.visualize import score_curves

    truth, results = random_set(0, images=60, categories=81, objects=20)
    scores = evaluate_detections(truth, results, scores=True).scores
    thresholds = scores.suggest()
    figure = score_curves(scores, thresholds)
    for ax, quantity in zip(figure.axes, ("precision", "recall", "f1"), strict=True):
        lines = {line.get_label(): line for line in ax.get_lines()}
        assert sum(not label.startswith("_") for label in lines) == 11
        x, y = lines["all together"].get_data()
        assert lines["all together"].get_zorder() == max(line.get_zorder() for line in ax.get_lines())
        expected = [getattr(scores.at(float(t)), quantity) for t in x[::40]]
        assert y[::40].tolist() == pytest.approx(expected)
    assert any(line.get_xdata()[0] == thresholds.general for line in figure.axes[2].get_lines())


def test_no_useful_threshold_is_said(tmp_path):
    truth, results = random_set(0)
    metrics = evaluate_detections(truth, [r | {"bbox": [900, 900, 1, 1]} for r in results], scores=True)
    page = write_report(tmp_path, metrics=metrics, title="x", settings={}).read_text()
    assert "No threshold is suggested: at the best one F1 is below 0.05" in page
    assert "score_thresholds" not in json.loads((tmp_path / "metrics.json").read_text())
