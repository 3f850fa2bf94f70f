"""The scripts of `examples/`, run as they stand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detrkit
from detrkit.data.tools.shapes import write_shapes
from detrkit.explanation.numbers import box_share
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


@pytest.mark.slow
def test_predict_example(run, tmp_path, monkeypatch, capsys):
    images = sorted((run / "data" / "val2017").glob("*.jpg"))
    words = ["predict.py", str(run / "run"), *map(str, images), "--threshold", "0", "--out", str(tmp_path / "found")]
    monkeypatch.setattr(sys, "argv", words)
    example("predict").main()
    said = capsys.readouterr().out.splitlines()
    assert all(sum(line.startswith(f"{image}: ") for line in said) == 8 for image in images)  # a line a query
    for image in images:
        assert Image.open(tmp_path / "found" / f"{image.stem}.png").size == Image.open(image).size


@pytest.mark.slow
def test_finetune_example(run, tmp_path, monkeypatch, capsys):
    words = ["finetune.py", str(run / "data"), "--init-from", str(run / "run"), "--out", str(tmp_path), "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", words)
    example("finetune").main()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert capsys.readouterr().out.splitlines()[-1] == f"AP {100 * metrics['AP']:.1f}, AP50 {100 * metrics['AP50']:.1f}"


@pytest.mark.slow
def test_tune_example(run, tmp_path, monkeypatch, capsys):
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(tiny_config(run / "data", tmp_path).to_yaml())
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 1)
    out = tmp_path / "tune"
    words = ["tune.py", str(run / "data"), "--recipe", str(recipe), "--trials", "2", "--epochs", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    example("tune").main()
    said = capsys.readouterr().out.splitlines()
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{out / 'study.db'}")
    first, second = study.trials
    ap = json.loads((out / "trial-000" / "metrics.json").read_text())["AP"]
    assert first.value == ap and list(first.intermediate_values) == [1, 2]
    assert second.state == optuna.trial.TrialState.PRUNED and list(second.intermediate_values) == [1]
    assert not (out / "trial-001" / "report.md").exists()
    assert said[-5] == f"2 trials, 1 pruned; best AP {100 * ap:.1f}, of trial 0:"
    assert said[-1] == f"its run: {out / 'trial-000'}"


def test_attention_example(run, tmp_path, monkeypatch, capsys):
    image = min((run / "data" / "val2017").glob("*.jpg"))
    words = ["attention.py", str(run / "run"), str(image), "--objects", "2", "--out", str(tmp_path / "seen")]
    monkeypatch.setattr(sys, "argv", words)
    example("attention").main()
    said = capsys.readouterr().out.splitlines()
    paths = sorted((tmp_path / "seen").glob("object-*.png"))
    assert len(said) == len(paths) == 2 and {line.split(": ")[0] for line in said} == set(map(str, paths))
    seen = detrkit.explain(detrkit.load(run / "run"), image, threshold=0.0)
    for i, (line, path) in enumerate(zip(said, paths, strict=True)):
        assert f", query {int(seen.queries[i])}, {seen.attention_inside(i):.1%} of the attention in " in line
        area = box_share(seen.image_size, seen.detections.boxes[i])  # of what lies inside the image
        assert line.endswith(f" of the attention in {area:.1%} of the image")
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(seen.draw(i)))
