"""What is written under a name that somebody chose replaces a file of the same kind, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.cli.results import evaluate_results
from detrkit.evaluation import report_folder
from detrkit.utils.errors import DetrkitError
from detrkit.utils.image_files import image_bytes
from detrkit.utils.overwriting import check_json, check_marked

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
REFUSED = "is there and was not written by this command: choose another name, or remove it"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_only_marked_images_are_replaced(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    check_marked(file)  # a free name
    file.write_bytes(image_bytes(PIXELS, suffix))
    with pytest.raises(DetrkitError, match=REFUSED):
        check_marked(file)
    file.write_bytes(image_bytes(PIXELS, suffix, marked=True))
    check_marked(file)
    with Image.open(file) as marked:
        assert marked.size == (60, 40)
    with pytest.raises(DetrkitError, match=REFUSED):
        check_marked(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', "\xff\xd8 a photograph"])
def test_only_json_with_the_keys_is_replaced(tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.json"
    check_json(file, ("a", "b"))
    file.write_text(content, encoding="latin-1")
    with pytest.raises(DetrkitError, match=REFUSED):
        check_json(file, ("a", "b"))
    file.write_text('{"a": 1, "b": 2, "c": 3}')
    check_json(file, ("a", "b"))


@pytest.mark.parametrize("name", ["report.md", "results.json", "metrics.json", "confusion.png"])
def test_reports_replace_reports_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "thesis.md").write_text("mine")  # in nobody's way
    (tmp_path / name).write_text("mine")
    with (
        pytest.raises(DetrkitError, match=rf"{name} is there and was not written by detrkit"),
        report_folder(tmp_path, "results.json"),
    ):
        raise AssertionError
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["thesis.md", name])
    (tmp_path / "metrics.json").write_text(json.dumps({"title": "a", "settings": {}}))  # of an earlier version
    with report_folder(tmp_path, "results.json"):
        (tmp_path / name).write_text("new")
    with report_folder(tmp_path, "results.json"):  # its own work
        pass
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "report.md").write_text("mine, written since")
    with pytest.raises(DetrkitError, match=r"report\.md .*was changed since"), report_folder(tmp_path):
        raise AssertionError


def test_a_report_that_was_killed_can_be_written_again(tmp_path: Path) -> None:
    killed = report_folder(tmp_path, "results.json")
    killed.__enter__()  # noted, and never ended
    (tmp_path / "results.json").write_text("[]")
    with report_folder(tmp_path, "results.json"):
        (tmp_path / "report.md").write_text("whole")
    assert (tmp_path / "report.md").read_text() == "whole"


def test_an_evaluation_replaces_no_report_of_somebody_else(tmp_path: Path) -> None:
    page = tmp_path / "report.md"
    page.write_text("my thesis")
    results, truth = tmp_path / "boxes.json", tmp_path / "truth.json"
    results.write_text("[]")
    entries = {"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    truth.write_text(json.dumps(entries))
    with pytest.raises(DetrkitError, match=r"report\.md is there and was not written by detrkit"):
        evaluate_results(results, truth, split=None, max_dets=100, out=tmp_path)
    assert page.read_text() == "my thesis"
