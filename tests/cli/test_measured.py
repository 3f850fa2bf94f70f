"""What commands print of an evaluation: short, unless all classes are asked for."""

from __future__ import annotations

from detrkit.cli.measured import classes_text, print_measured, thresholds_line
from detrkit.evaluation import evaluate_detections
from helpers.coco_sets import random_set


def many_classes():
    truth, results = random_set(0, images=60, categories=81, objects=20)
    return evaluate_detections(truth, results, scores=True)


def test_of_80_classes_the_best_and_the_worst_are_printed(capsys):
    metrics = many_classes()
    names = metrics.ranked()
    assert len(names) == 80
    lines = classes_text(metrics, 10).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:7]] == names[:5]
    assert lines[7] == "... 70 more classes in between: report.md, or --per-class"
    assert [line.split("|")[1].strip() for line in lines[8:]] == names[-5:]
    print_measured([metrics])
    assert len(capsys.readouterr().out.splitlines()) <= 25
    print_measured([metrics], per_class=True)
    assert len(capsys.readouterr().out.splitlines()) > 80
    assert classes_text(metrics, 80) == classes_text(metrics, None) == metrics.table(per_class=True)


def test_suggested_thresholds_are_one_line():
    metrics = many_classes()
    thresholds = metrics.scores.suggest()
    line = thresholds_line(metrics)
    assert line.startswith(
        f"suggested score threshold {thresholds.general:g} (F1 {thresholds.f1 * 100:.1f}, precision "
    )
    assert "; each class its own (F1 " in line and line.endswith(f" and {len(thresholds.classes) - 5} more")
    truth, results = random_set(0)
    assert thresholds_line(evaluate_detections(truth, results)) == ""
    assert thresholds_line(evaluate_detections(truth, [], scores=True)).startswith("no score threshold is suggested")
