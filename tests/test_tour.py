"""The tour runs, and its page and its notebook are what it prints and draws."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
from functools import cache
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

ROOT = Path(__file__).parent.parent
MAX_PICTURE_BYTES = 120_000
MAX_WEIGHTS_BYTES = 2_500_000


@cache
def builder():
    """docs/build_tour.py, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("build_tour", ROOT / "docs" / "build_tour.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_tour"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(builder().NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def run():
    """The tour run anew: its assertions compare the sums by hand with the toolkit."""
    return builder().executed()


def test_the_notebook_holds_the_text_and_code_of_the_script(committed):
    def cells(notebook):
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    assert cells(committed) == cells(builder().source()), "run: python docs/build_tour.py"
    nbformat.validate(committed)


def test_the_page_is_the_notebook(committed):
    assert builder().PAGE.read_text(encoding="utf-8") == builder().page(committed), "run: python docs/build_tour.py"
    files = {path.name: path.read_bytes() for path in builder().PICTURES.iterdir()}
    assert files == builder().pictures(committed)
    assert max(map(len, files.values())) < MAX_PICTURE_BYTES


def test_every_picture_says_what_it_shows(committed):
    drawn = [cell for cell in committed.cells if "picture" in cell.metadata]
    assert len(drawn) == 10
    for cell in drawn:
        assert len(cell.metadata["alt"]) > 30
        (metadata,) = [output.metadata for output in cell.outputs if "image/png" in output.get("data", {})]
        assert metadata["image/png"]["alt"] == cell.metadata["alt"]


def test_the_sums_by_hand_are_compared_with_the_toolkit():
    """The tour proves its numbers itself; nobody takes an assertion away unseen."""
    code = "\n".join(cell.source for cell in builder().source().cells if cell.cell_type == "code")
    assert len(re.findall(r"^\s*assert ", code, re.MULTILINE)) >= 27
    for result in (
        'losses["loss_ce"]',
        'losses["loss_bbox"]',
        'losses["loss_giou"]',
        'losses["class_error"]',
        'losses["cardinality_error"]',
        "criterion.total(losses)",
        "criterion.total(pair_losses)",
        "criterion2.total(losses2)",
        "HungarianMatcher()",
        "by_module",
    ):
        assert result in code, result


def test_links_of_the_notebook_lead_to_the_pages(committed):
    text = "\n".join(cell.source for cell in committed.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert len(links) >= 3
    assert [link for link in links if not (ROOT / "examples" / link).is_file()] == []


def test_the_carried_weights_are_small_and_say_nothing_of_a_machine():
    for name in ("detr", "deformable-detr"):
        path = builder().WEIGHTS / f"{name}.safetensors"
        assert path.stat().st_size < MAX_WEIGHTS_BYTES
        with safe_open(path, "pt") as file:
            assert {file.get_tensor(key).dtype.itemsize for key in file.keys()} <= {2, 8}  # noqa: SIM118
            assert "/" not in "".join(file.metadata().values())
    for path in builder().WEIGHTS.glob("*.yaml"):
        assert not re.search(r"(?<![\w.])/\w+/", path.read_text()), path


def test_differences_are_seen_and_noise_is_not():
    old = "query 13: 1 of 15, -log 0.896 = 0.110, 22% of 1,106, rms 2.5e-02\n"
    assert builder().differences(old, old.replace("0.110", "0.112").replace("22%", "24%").replace("2.5e", "2.6e")) == []
    assert builder().differences(old, old.replace(", ", ",   ")) == []
    assert builder().differences(old, old.replace("0.110", "0.113")) == ["0.110 is now 0.113"]
    assert builder().differences(old, old.replace("13", "14")) == ["13 is now 14"]
    assert builder().differences(old, old.replace("22%", "25%")) == ["22% is now 25%"]
    assert builder().differences(old, old.replace("rms", "mean"))[0].startswith("'query #")


@pytest.mark.slow
def test_the_tour_runs_and_prints_what_the_page_says(run, committed):
    for old, new in zip(committed.cells, run.cells, strict=True):
        assert builder().differences(builder().printed(old), builder().printed(new)) == [], new.source
    assert builder().differences(builder().PAGE.read_text(encoding="utf-8"), builder().page(run)) == []


@pytest.mark.slow
def test_the_tour_draws_what_the_page_shows(run, committed):
    """Fonts and sizes differ between versions of matplotlib by a little; another picture differs by much."""

    def thumbnail(png):
        image = Image.open(io.BytesIO(png)).convert("RGB").resize((48, 24), Image.Resampling.BOX)
        return np.asarray(image, np.float64)

    old, new = builder().pictures(committed), builder().pictures(run)
    assert old.keys() == new.keys()
    far = {name: np.abs(thumbnail(old[name]) - thumbnail(new[name])).mean() for name in old}
    assert {name: difference for name, difference in far.items() if difference > 12} == {}
    others = [np.abs(thumbnail(old["image.png"]) - thumbnail(new[name])).mean() for name in old if name != "image.png"]
    assert min(others) > 24  # twice the bound
