"""Files of an earlier version (earlier/record.py) load, evaluate and go on with the numbers of that version."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import detrkit
from detrkit.cli import main
from detrkit.data.tools.shapes import write_shapes

EARLIER = Path(__file__).parent / "earlier"
NUMBERS = json.loads((EARLIER / "numbers.json").read_text())


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the recorded run and its dataset."""
    write_shapes(tmp_path / "set", images={"train": 40, "val": 10}, sides=(48, 64), classes=2, seed=1)
    shutil.copytree(EARLIER / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["run", "deformable.safetensors"])
def test_an_earlier_checkpoint_predicts_the_same(folder, name):
    detections = detrkit.load(EARLIER / name, device="cpu").predict(folder / NUMBERS["image"], threshold=0.0)
    before = NUMBERS[name]
    assert detections.labels.tolist() == before["labels"]
    assert detections.scores.tolist() == pytest.approx(before["scores"], abs=1e-5)
    assert np.allclose(detections.boxes, before["boxes"], rtol=0, atol=1e-3)  # pixels


@pytest.mark.slow
def test_an_earlier_run_evaluates_and_goes_on_the_same(folder):
    metrics = detrkit.evaluate("run", "set", device="cpu")
    assert {name: metrics[name] for name in NUMBERS["metrics"]} == pytest.approx(NUMBERS["metrics"], abs=1e-6)
    assert main(["train", "--resume", "run"]) == 0
    with Path("run/steps.csv").open(newline="") as file:
        losses = {row["step"]: float(row["loss"]) for row in csv.DictReader(file)}
    # ten more steps on another processor, whose sums round otherwise
    assert losses == pytest.approx(NUMBERS["losses"], rel=1e-3)
