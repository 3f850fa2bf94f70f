"""Freezing by name: what matches, what stays as it is in a run, and the lines about patterns that match nothing."""

from __future__ import annotations

import pytest
import torch

import detrkit
from detrkit.config import OptimConfig
from detrkit.engine.freezing import freeze, freeze_lines, frozen_norms, matched_names
from detrkit.engine.optim import build_optimizer
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.weights.build import build_model
from helpers.tiny import MODEL, losses, tiny_config

OPTIONS = {**MODEL.overrides(), "backbone_norm": "batch"}


@pytest.fixture
def model():
    return build_model("detr-r50", num_classes=3, **OPTIONS)


def frozen(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("backbone", lambda name: name.startswith("backbone.")),
        ("backbone.*", lambda name: name.startswith("backbone.")),
        ("class_head.bias", lambda name: name == "class_head.bias"),
        ("*.bias", lambda name: name.endswith(".bias")),
        ("decoder.layers.[0]", lambda name: name.startswith("decoder.layers.0.")),
    ],
)
def test_patterns(pattern, what, model):
    before = frozen(model)
    freeze(model, (pattern,))
    assert frozen(model) == before | {name for name, _ in model.named_parameters() if what(name)}
    optimizer = build_optimizer(model, OptimConfig(freeze=(pattern,)))
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for n, p in model.named_parameters() if n not in frozen(model)}


def test_the_lines_count_tensors_and_parameters(model):
    heads = sum(p.numel() for n, p in model.named_parameters() if n.startswith("class_head."))
    assert freeze_lines(model, ("class_head",)) == [f"frozen by class_head: 2 tensors, {heads:,} parameters"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "bakbone.*",
            "optim.freeze: no parameter's name matches 'bakbone.*': perhaps backbone; the model has backbone, ",
        ),
        ("decoder.layer", "matches 'decoder.layer': perhaps decoder.layers; the model has"),
        ("zzz*", "matches 'zzz*': the model has backbone, "),
    ],
)
def test_a_pattern_that_matches_nothing(pattern, message, model):
    with pytest.raises(SettingError) as caught:
        matched_names(model, ("backbone", pattern))
    assert message in str(caught.value)


def test_all_frozen_is_refused(model):
    with pytest.raises(DetrkitError, match="every parameter is frozen: nothing to train"):
        build_optimizer(model, OptimConfig(freeze=("*",)))


def test_only_norms_whose_parameters_are_frozen_keep_their_statistics(model):
    assert frozen_norms(model) == []
    freeze(model, ("backbone.*.layer1",))
    some = frozen_norms(model)
    freeze(model, ("backbone",))
    assert 0 < len(some) < len(frozen_norms(model))


@pytest.mark.slow
def test_what_is_frozen_stays_through_a_run_and_its_continuation(shapes, tmp_path, capsys):
    states = []

    class Looks(detrkit.Callback):
        def on_run_start(self, run):
            states.append({k: v.clone() for k, v in run.model.state_dict().items()})

    changes = {"backbone_norm": "batch"}
    optim = {"freeze": ("backbone", "class_head.bias"), "weight_decay": 0.1, "ema": 0.5}
    config = tiny_config(shapes, tmp_path / "whole", optim=optim).changed(model=changes)
    whole = detrkit.train(config, callbacks=[Looks()])
    assert "frozen by class_head.bias: 1 tensors, 4 parameters" in capsys.readouterr().out
    after = torch.load(whole.folder / "last.pt", weights_only=True)
    for name, first in states[0].items():  # running statistics, too
        same = name.startswith("backbone.") or name == "class_head.bias"
        for kind in ("model", "ema"):
            assert torch.equal(after[kind][name], first) == same, (kind, name)
    parts = config.changed(run={"out": str(tmp_path / "parts")}, optim={"epochs": 1})
    detrkit.train(parts)
    detrkit.train(parts.changed(optim={"epochs": 2}), resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_wrong_pattern_is_refused_before_anything_is_written(shapes, tmp_path):
    with pytest.raises(DetrkitError, match="no parameter's name matches 'bakbone'"):
        detrkit.train(tiny_config(shapes, tmp_path / "run", optim={"freeze": ("bakbone",)}))
    assert not (tmp_path / "run").exists()


def test_a_model_with_nothing_left_to_train_is_refused_before_anything_is_written(shapes, tmp_path):
    with pytest.raises(DetrkitError, match="every parameter is frozen"):
        detrkit.train(tiny_config(shapes, tmp_path / "run", optim={"freeze": ("*",)}))
    assert not (tmp_path / "run").exists()
