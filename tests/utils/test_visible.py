"""Names from outside come out as they are, and do nothing: on terminals, in Markdown, CSV, JSON and pictures."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter

import numpy as np
import pytest
from rich.table import Table

from detrkit.cli import main
from detrkit.cli.predict_summary import Summary
from detrkit.data.tools.shapes import write_shapes
from detrkit.evaluation import DetectionGroundTruth, confusion_matrix, evaluate_detections, write_report
from detrkit.study.config import Member, StudyConfig
from detrkit.study.results import MemberResult
from detrkit.study.tables import print_tables, study_tables, table_csv
from detrkit.utils.console import Terminal
from detrkit.utils.visible import markdown, one_line, visible

NAMES = [
    "[/x]",
    "[red]red",
    ":smile:",
    "\x1b[31mred",
    "<script>alert(1)</script>",
    "a|b",
    "a\nb",
    "$\\frac$",
    "a\ud800b",
]


@pytest.mark.parametrize(
    ("name", "line", "page"),
    [
        ("traffic_light", "traffic_light", "traffic_light"),
        ("[/x]", "[/x]", "[/x]"),
        ("\x1b[31m\x07", "\\x1b[31m\\x07", "\\x1b[31m\\x07"),
        ("<script>", "<script>", "&lt;script>"),
        ("a|b", "a|b", "a\\|b"),
        ("a\nb\tc", "a\\nb\\tc", "a\\nb\\tc"),
        ("[a](x)", "[a](x)", "[a]\\(x)"),
        ("_a_ *b* `c` ~d~ $e$", "_a_ *b* `c` ~d~ $e$", "\\_a\\_ \\*b\\* \\`c\\` \\~d\\~ \\$e\\$"),
        ("&lt; R&D", "&lt; R&D", "\\&lt; R&D"),
        ("C:\\x \\|", "C:\\x \\|", "C:\\x \\\\\\|"),
        ("a\ud800b\u202ec", "a\\ud800b\\u202ec", "a\\ud800b\\u202ec"),
        ("日本 é", "日本 é", "日本 é"),
    ],
)
def test_escaped(name, line, page):
    assert one_line(name) == line
    assert markdown(name) == page


@pytest.mark.parametrize("color", [False, True])
def test_terminal(color):
    file = io.StringIO()
    terminal = Terminal(file=file, width=200, force_terminal=color, soft_wrap=True)
    table = Table(title="[/title]")
    table.add_column("[/column]")
    for name in NAMES:
        terminal.print(name)
        table.add_row(name)
    terminal.print(table)
    text = file.getvalue()
    for name in (*NAMES, "[/title]", "[/column]"):
        for part in visible(name).split("\n"):
            assert part in text
    assert "\x1b[31m" not in text
    text.encode()  # no half characters


def test_table_of_predict():
    file = io.StringIO()
    found = Summary({name: Counter([name]) for name in NAMES})
    Terminal(file=file, width=200).print(found.table(segments=False, verbose=True))
    for name in NAMES:
        assert file.getvalue().count(one_line(name)) == 2


def test_report(tmp_path):
    names = [name for name in NAMES if "\ud800" not in name]
    images = [{"id": 1, "width": 64, "height": 64, "file_name": "a.jpg"}]
    box = [0, 0, 32, 32]
    objects = [
        {"id": k, "image_id": 1, "category_id": k, "bbox": box, "area": 1024, "iscrowd": 0}
        for k in range(1, len(names) + 1)
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
    truth = DetectionGroundTruth.load({"images": images, "annotations": objects, "categories": categories})
    found = [{"image_id": 1, "category_id": k % len(names) + 1, "bbox": box, "score": 0.9} for k in range(len(names))]
    metrics = evaluate_detections(truth, found)
    report = write_report(
        tmp_path,
        metrics=metrics,
        title="[/x] <b>",
        settings={"weights": "<i> | \x1b[31m"},
        confusion=confusion_matrix(truth, found),
    )
    text = report.read_text(encoding="utf-8")
    for name in names:
        assert f"| {markdown(name)} " in text
    assert text.startswith("# [/x] &lt;b>\n")
    assert "<script" not in text and "<i>" not in text and "\x1b" not in text
    assert set(json.loads((tmp_path / "metrics.json").read_text())["per_class"]) == set(names)


def test_tables_of_a_study():
    members = tuple(Member(name=f"m{k}", title=name) for k, name in enumerate(NAMES[:8]))
    study = StudyConfig(members=members, title="[/x]")
    outcome = [(m, MemberResult(name=m.name, figures={"mAP": 0.5}, classes=dict.fromkeys(NAMES, 0.5))) for m in members]
    assert len(study_tables(study, outcome)) == 2
    for terminal in (True, False):
        file = io.StringIO()
        print_tables(Terminal(file=file, width=100, force_terminal=terminal), study, outcome)
        assert all(name in file.getvalue() for name in ("[/x]", "[red]red", "\\x1b[31mred", "a\\nb"))
    rows = list(csv.DictReader(io.StringIO(table_csv(outcome), newline="")))
    assert [row["title"] for row in rows] == NAMES[:8]


def test_data_check(tmp_path, capsys):
    data = write_shapes(tmp_path / "[/x]", images={"train": 2}, classes=8)
    file = data / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    for category, name in zip(content["categories"], NAMES, strict=False):
        category["name"] = name
    content["annotations"][0]["bbox"] = [-5, -5, 1, 1]
    file.write_text(json.dumps(content))
    status = main(["data", "check", str(data)])
    out = capsys.readouterr().out
    assert status in (0, 1)
    for name in NAMES[:8]:
        assert one_line(name) in out
    assert "\x1b" not in out


def test_names_that_the_terminal_cannot_show(monkeypatch, tmp_path):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(written, encoding="latin-1"))
    assert main(["data", "check", str(tmp_path / "日本\udcff")]) == 2
    sys.stderr.flush()
    assert b"\\u65e5\\u672c\\udcff" in written.getvalue()


def test_confusion_of_such_names_is_drawn():
    from detrkit.evaluation.confusion import Confusion
    from detrkit.visualize.curves import confusion_heatmap, png_bytes

    names = ("$\\frac$", "$x", "a\x1bb", "_{")
    confusion = Confusion(names, np.eye(5, dtype=np.int64), iou=0.5, score=0.3)
    assert png_bytes(confusion_heatmap(confusion)).startswith(b"\x89PNG")
