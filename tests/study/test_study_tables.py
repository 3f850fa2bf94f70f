"""The tables: measured less published, what is not known, what fits a terminal, colours."""

from __future__ import annotations

import csv
import dataclasses
import io
import re

import pytest
from rich.console import Console

from detrkit.study import load_study
from detrkit.study.config import Member, PublishedMetrics
from detrkit.study.results import MemberResult
from detrkit.study.seeds import MemberRuns, failures
from detrkit.study.tables import Table, _measured_and_published, print_tables, study_tables, table_csv
from helpers.tiny_study import tiny_study

FIGURES = {"mAP": 0.25, "mAP50": 0.5, "mAP75": 0.2, "small": 0.0996, "medium": 0.3, "large": -1.0}


def result(name: str, **changes) -> MemberResult:
    """A member that is done, without large objects."""
    values = {
        "figures": FIGURES,
        "classes": {"circle": 0.5874, "ring": -1.0},
        "epochs": 2,
        "best": 0.3,
        "best_epoch": 1,
    }
    return MemberResult(
        name=name, **{**values, "parameters": 40_627_260, "seconds": 12.34, "memory": 1030.4, **changes}
    )


@pytest.fixture
def study(tmp_path):
    return load_study(tiny_study(tmp_path))


@pytest.mark.parametrize(
    ("name", "published", "cell"),
    [
        ("mAP", {"mAP": 0.232}, "25.0 (23.2, +1.8)"),
        ("mAP", {"mAP": 0.3052}, "25.0 (30.5, -5.5)"),
        ("small", {"small": 0.1}, "10.0 (10.0, +0.0)"),  # -0.04 percent
        ("large", {"large": 0.2627}, "n/a (26.3)"),
        ("mAP50", {}, "50.0"),
        ("class circle", {"classes": {"circle": 0.587}}, "58.7 (58.7, +0.0)"),
        ("class circle", {"classes": {"circle": 0.6106}}, "58.7 (61.1, -2.3)"),
    ],
)
def test_a_cell_has_measured_published_and_their_difference(name, published, cell):
    measured = MemberRuns(Member(name="detr"), [result("detr")]).spreads()
    assert _measured_and_published(measured.get(name), PublishedMetrics(**published), name) == cell


def test_tables_of_figures_classes_and_comparison(study):
    outcome = [(study.members[0], result("detr")), (study.members[1], MemberResult(name="two-stage", epochs=1))]
    figures, classes, compared = study_tables(study, outcome)
    assert figures.rows == [
        ["DETR", "25.0", "50.0", "20.0", "10.0", "30.0", "n/a", "40.63", "12.3", "1030"],
        ["++ two-stage (1/2)", *["n/a"] * 9],
    ]
    assert classes.rows == [["circle", "58.7"], ["ring", "n/a"]]
    assert compared.headings == ["", "DETR"]
    assert compared.rows == [
        ["mAP", "25.0 (23.2, +1.8)"],
        ["small", "10.0 (10.1, -0.1)"],
        ["circle", "58.7 (58.7, +0.0)"],
    ]
    assert figures.markdown().splitlines()[2].startswith("| DETR ")


def seeds_of(study, *values, **changes):
    """The second member with a run for each mAP; the AP of its class is half of it."""
    member = dataclasses.replace(study.members[1], seeds=len(values), **changes)
    study = dataclasses.replace(study, members=(study.members[0], member))
    runs = study.runs(member)
    of_run = [{"name": "two-stage", "seed": run.seed, "folder": run.folder} for run in runs]
    done = [
        result(**names, figures={**FIGURES, "mAP": value}, classes={"circle": value / 2}, seconds=s, memory=1000.0 + s)
        for names, value, s in zip(of_run, values, (10.0, 30.0, 11.0), strict=True)
    ]
    return study, [(study.members[0], result("detr")), *((member, r) for r in done)]


def test_several_seeds_are_mean_and_sample_standard_deviation(study):
    published = PublishedMetrics(mAP=0.35, classes={"circle": 0.2})
    study, outcome = seeds_of(study, 0.3, 0.42, 0.36, published=published)  # deviations -0.06, 0.06, 0: 0.0072 / 2
    figures, classes, compared = study_tables(study, outcome)
    assert figures.headings[-4:] == ["seeds", "parameters (M)", "epoch (s)", "memory (MiB)"]
    assert figures.rows[0][-4:] == ["1", "40.63", "12.3", "1030"]
    assert figures.rows[1] == [
        *("++ two-stage", "36.0 ± 6.0", "50.0 ± 0.0", "20.0 ± 0.0", "10.0 ± 0.0", "30.0 ± 0.0", "n/a"),
        *("3", "40.63", "11.0", "1030"),
    ]
    assert classes.rows[0] == ["circle", "58.7", "18.0 ± 3.0"]
    assert [row[2] for row in compared.rows if row[0] in ("mAP", "circle")] == [
        "36.0 ± 6.0 (35.0, +1.0)",
        "18.0 ± 3.0 (20.0, -2.0)",
    ]
    rows = list(csv.DictReader(io.StringIO(table_csv(outcome))))
    assert [(r["model"], r["seed"], r["mAP"]) for r in rows[1:]] == [
        ("two-stage", "3", "0.3"),
        ("two-stage", "4", "0.42"),
        ("two-stage", "5", "0.36"),
    ]


def test_a_seed_that_failed_is_left_out_of_the_mean(study):
    study, outcome = seeds_of(study, 0.3, 0.42, 0.36)
    member = outcome[1][0]
    for i, failure in ((2, "loss is not finite"), (3, "")):
        outcome[i] = (
            member,
            MemberResult(name="two-stage", seed=2 + i, folder=f"two-stage-seed{2 + i}", failure=failure),
        )
        figures, *_ = study_tables(study, outcome)
        assert figures.rows[1][0] == f"++ two-stage ({4 - i} of 3 seeds, 1 failed)"
    assert figures.rows[1][1] == "30.0" and figures.rows[1][7] == "1"
    assert failures(study, outcome) == [("++ two-stage, seed 4", "loss is not finite")]


def test_members_that_are_not_done_say_so(study):
    outcome = [
        (study.members[0], MemberResult(name="detr", epochs=1, failure="loss_bbox is not finite at step 9")),
        (study.members[1], MemberResult(name="two-stage")),
    ]
    (figures,) = study_tables(study, outcome)
    assert [row[0] for row in figures.rows] == ["DETR (failed)", "++ two-stage (not trained)"]


def test_published_figures_of_another_dataset_are_left_out(study):
    outcome = [(study.members[0], result("detr", classes={"square": 0.4}))]
    assert [t.title for t in study_tables(study, outcome)] == ["Result", "AP of each class"]
    assert "published mAP" not in table_csv(outcome)


def test_csv_has_full_precision_and_empty_cells(study):
    outcome = [(study.members[0], result("detr")), (study.members[1], result("two-stage", failure="a, b", memory=None))]
    first, second = csv.DictReader(io.StringIO(table_csv(outcome)))
    assert float(first["small"]) == 0.0996 and float(first["class circle"]) == 0.5874
    assert float(first["difference mAP"]) == pytest.approx(0.25 - 0.232)
    assert float(first["difference class circle"]) == pytest.approx(0.0004)
    assert "large" not in first and "class ring" not in first  # nothing to define them
    assert (first["best mAP"], first["best epoch"], first["parameters"]) == ("0.3", "1", "40627260")
    assert (second["difference mAP"], second["peak memory MiB"], second["failure"]) == ("", "", "a, b")


def test_tables_are_split_to_fit():
    table = Table("T", ["model", "a" * 10, "b" * 10, "c" * 10], [["x" * 8, "1", "2", "3"]])
    assert [t.headings[1:] for t in table.parts(32)] == [["a" * 10, "b" * 10], ["c" * 10]]
    assert [t.rows for t in table.parts(31)] == [[["x" * 8, "1"]], [["x" * 8, "2"]], [["x" * 8, "3"]]]
    assert table.parts(44)[0] == table
    assert len(table.parts(5)) == 3  # nothing narrower is to be had


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_terminal_gets_at_most_100_columns_and_the_members_colours(width):
    study = load_study("cppe5-four")
    classes = study.members[0].published.classes
    outcome = [(m, result(m.name, classes=classes)) for m in study.members]
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=width, color_system="truecolor", soft_wrap=True)
    print_tables(console, study, outcome)
    plain = re.sub(r"\x1b\[[\d;]*m", "", text.getvalue())
    assert max(map(len, plain.splitlines())) <= min(width, 100)
    assert all(heading in plain for heading in ("mAP75", "parameters (M)", "memory (MiB)", "Face_Shield"))
    for color, heading in (("0;114;178", "DETR"), ("230;97;0", "Deformable DETR"), ("193;39;45", r"\+\+ two-stage")):
        assert re.search(rf"\x1b\[38;2;{color}m{heading}", text.getvalue())  # in the column of the models


def test_elsewhere_lines_are_markdown(study):
    text = io.StringIO()
    print_tables(Console(file=text, soft_wrap=True), study, [(study.members[0], result("detr"))])
    assert "| DETR  |" in text.getvalue() and "\x1b" not in text.getvalue()
