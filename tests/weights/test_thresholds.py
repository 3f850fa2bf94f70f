"""Suggested thresholds written into a checkpoint: nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detrkit.detector import load
from detrkit.structures.classes import ClassList
from detrkit.structures.thresholds import ScoreThresholds
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec, load_model, save_model, save_official
from detrkit.weights.thresholds import save_thresholds

OPTIONS = {
    "backbone": "resnet10", "backbone_width": 8, "backbone_norm": "group", "hidden_dim": 32, "nheads": 4,
    "dim_feedforward": 32, "enc_layers": 1, "dec_layers": 1, "num_queries": 4,
}  # fmt: skip
SPEC = ModelSpec("detr-r50", OPTIONS, num_classes=2, classes=ClassList(("cat", "dog"), (1, 2)), size=32, max_size=64)
THRESHOLDS = ScoreThresholds(0.2, 0.7, {"dog": 0.35})


def test_weights_and_description_stay(tmp_path):
    torch.manual_seed(0)
    model = SPEC.build()
    path = save_model(tmp_path / "best.safetensors", model, replace(SPEC, training={"epoch": 7}))
    assert load_model(path)[1].score_thresholds is None
    assert save_thresholds(tmp_path, THRESHOLDS) == path  # a run's folder
    again, spec = load_model(path)
    assert spec == replace(SPEC, training={"epoch": 7, "score_thresholds": THRESHOLDS.to_json()})
    assert spec.score_thresholds == THRESHOLDS
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert load(path, device="cpu").suggested_thresholds == THRESHOLDS
    assert THRESHOLDS.per_label(SPEC.classes, 2) == (0.2, 0.35) and THRESHOLDS.per_label(None, 2) == (0.2, 0.2)


def test_official_files_keep_them_but_do_not_take_new_ones(tmp_path):
    spec = replace(SPEC, training={"score_thresholds": THRESHOLDS.to_json()})
    path = save_official(tmp_path / "a.pth", SPEC.build(), spec)
    assert load_model(path)[1].score_thresholds == THRESHOLDS
    with pytest.raises(DetrkitError, match=r"a.pth: thresholds are saved in .safetensors files of detrkit"):
        save_thresholds(path, THRESHOLDS)
