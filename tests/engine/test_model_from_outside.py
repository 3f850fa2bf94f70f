"""A model registered from outside, by all ways: training, evaluation, checkpoints, the command line."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import detrkit
from detrkit.cli import main
from detrkit.config import ModelConfig, load_config
from detrkit.models.registry import ARCHITECTURES, list_models
from detrkit.weights.checkpoint import load_model, save_model
from helpers.grid import Grid, PlainCriterion
from helpers.tiny import losses, tiny_config


@pytest.fixture
def registered(monkeypatch):
    """The registry as it was, after the test."""
    monkeypatch.setattr(ARCHITECTURES, "_entries", dict(ARCHITECTURES._entries))
    return detrkit.register_model


@pytest.fixture
def grid(registered):
    return registered("grid", activation="softmax")(Grid)


@pytest.mark.slow
def test_a_model_from_outside_trains_saves_loads_and_evaluates(registered, shapes, tmp_path, capsys):
    registered({"grid": {}, "grid-9": {"cells": 9}}, activation="softmax", criterion=PlainCriterion)(Grid)
    assert list_models()[-2:] == ["grid", "grid-9"]
    model = ModelConfig(name="grid-9", options={"cells": 3})
    config = tiny_config(shapes, tmp_path / "run", model=model, loss={"eos_coef": 0.2})
    result = detrkit.train(config)
    assert len(losses(tmp_path / "run")) >= 2 and all(loss > 0 for _, loss in losses(tmp_path / "run"))
    assert load_config(tmp_path / "run" / "config.yaml") == config

    loaded, spec = load_model(result.best)
    assert isinstance(loaded, Grid) and spec.name == "grid-9" and spec.options == {"cells": 3}
    assert loaded.class_head.in_features == 8 * 3 * 3
    again = save_model(tmp_path / "again.safetensors", loaded, spec)
    assert detrkit.evaluate(again, shapes, device="cpu", size=64) == result.metrics
    built = detrkit.build_model("grid-9", cells=3, num_classes=spec.num_classes, weights=again)
    assert torch.equal(built.box_head.weight, loaded.box_head.weight)
    detector = detrkit.load(again, device="cpu")
    assert detector.threshold == detector.suggested_thresholds.general
    bare = save_model(tmp_path / "bare.safetensors", loaded, replace(spec, training={}))
    assert detrkit.load(bare, device="cpu").threshold == 0.5

    assert main(["eval", str(again), str(shapes), "--device", "cpu", "--out", str(tmp_path / "report")]) == 0
    capsys.readouterr()
    target = str(tmp_path / "official.pth")
    assert main(["convert", str(again), target]) == 2
    assert re.search(
        r"Grid has no official names: expected one of DETR, DeformableDETR, .*, DETRdemo",
        capsys.readouterr().err,
    )
    assert main(["convert", str(again), str(tmp_path / "folder")]) == 2
    assert "Grid has no Hugging Face names" in capsys.readouterr().err
    assert main(["models"]) == 0
    assert "grid-9" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_line_sets_the_options_of_a_model_from_outside(grid, shapes, tmp_path, capsys):
    words = ["train", str(shapes), "--model", "grid", "--out", str(tmp_path / "run"), "--epochs", "1", "--size", "64"]
    words += ["--device", "cpu", "--workers", "0", "--options"]
    assert main([*words, "cells=2", "num-queries=3"]) == 2
    assert "model.options: num_queries is a setting of its own: give model.num_queries" in capsys.readouterr().err
    assert main([*words, "cell=2"]) == 2
    assert "grid takes no argument cell: choose from num_queries, cells" in capsys.readouterr().err
    assert main([*words, "cells=two"]) == 2
    assert "cells is 'two': must be a number" in capsys.readouterr().err
    assert main([*words, "cells=2"]) == 0
    assert load_config(tmp_path / "run" / "config.yaml").model.options == {"cells": 2}
    assert load_model(tmp_path / "run")[1].options["cells"] == 2


@pytest.mark.slow
def test_targets_reach_a_model_in_training_alone(grid, shapes, tmp_path, monkeypatch):
    calls = []
    forward = Grid.forward

    def recorded(self, images, targets=None, **options):
        calls.append((self.training, len(images), targets))
        return forward(self, images, targets, **options)

    monkeypatch.setattr(Grid, "forward", recorded)
    detrkit.train(tiny_config(shapes, tmp_path / "run", model=ModelConfig(name="grid"), optim={"epochs": 1}))
    trained = [(size, targets) for training, size, targets in calls if training]
    assert len(trained) == len(losses(tmp_path / "run"))
    assert all(len(targets) == size for size, targets in trained)
    assert all(target.boxes.shape == (len(target.labels), 4) for _, targets in trained for target in targets)
    assert [targets for training, _, targets in calls if not training] == [None] * (len(calls) - len(trained))
