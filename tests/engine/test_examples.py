"""The scripts of `examples/`, run as they stand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

import detrkit
from detrkit.data.tools.shapes import write_shapes
from helpers.tiny import tiny_config

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A dataset and a run of one epoch."""
    folder = tmp_path_factory.mktemp("front")
    write_shapes(folder / "data", images={"train": 8, "val": 2}, seed=1)
    detrkit.train(tiny_config(folder / "data", folder / "run", optim={"epochs": 1}))
    return folder


def test_predict_example(run, tmp_path, monkeypatch, capsys):
    images = sorted((run / "data" / "val2017").glob("*.jpg"))
    words = ["predict.py", str(run / "run"), *map(str, images), "--threshold", "0", "--out", str(tmp_path / "found")]
    monkeypatch.setattr(sys, "argv", words)
    example("predict").main()
    said = capsys.readouterr().out.splitlines()
    assert all(sum(line.startswith(f"{image}: ") for line in said) == 8 for image in images)  # a line a query
    for image in images:
        assert Image.open(tmp_path / "found" / f"{image.stem}.png").size == Image.open(image).size


def test_finetune_example(run, tmp_path, monkeypatch, capsys):
    words = ["finetune.py", str(run / "data"), "--init-from", str(run / "run"), "--out", str(tmp_path), "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", words)
    example("finetune").main()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert capsys.readouterr().out.splitlines()[-1] == f"AP {100 * metrics['AP']:.1f}, AP50 {100 * metrics['AP50']:.1f}"
