"""The report: every file it links is there, and its numbers are the metrics'."""

from __future__ import annotations

import json
import math
import re

import pytest
from coco_sets import random_set
from PIL import Image

from detrkit.errors import DetrkitError
from detrkit.evaluation import confusion_matrix, evaluate_detections, write_report

ROWS = [{"epoch": e, "train/loss": 9 - e, "val/AP": e / 10, "lr": 1e-4} for e in range(4)]


@pytest.fixture(scope="module")
def evaluation():
    truth, results = random_set(0)
    return evaluate_detections(truth, results, max_dets=200), confusion_matrix(truth, results)


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", page)


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
    assert re.search(r"images per second \|\s+31\.42", page)
    record = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert record["AP"] == metrics.AP
    assert record["max_dets"] == [1, 10, 200]
    assert record["settings"]["batch size"] == 2
    assert record["confusion"]["matrix"] == confusion.matrix.tolist()


def test_metrics_alone(evaluation, tmp_path):
    path = write_report(tmp_path, metrics=evaluation[0], title="x", settings={})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "precision_recall.png", "report.md"]
    assert all((tmp_path / name).exists() for name in links(path.read_text()))
    assert "## Settings" not in path.read_text()


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
