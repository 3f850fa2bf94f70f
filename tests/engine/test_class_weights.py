"""Weights of classes: their formula, from names or balanced, in runs, and the lines about wrong names."""

from __future__ import annotations

import pytest
import torch

import detrkit
from detrkit.config import LossConfig, TrainConfig, load_config
from detrkit.data import open_dataset
from detrkit.engine.class_weights import class_weights, make_criterion, weight_lines
from detrkit.engine.relations import check_config
from detrkit.models.spec import ModelSpec
from detrkit.utils.errors import DetrkitError, SettingError
from helpers.tiny import losses, tiny_config


@pytest.fixture(scope="module")
def train(shapes):
    return open_dataset(shapes, split="train")


def counts(dataset) -> dict[str, int]:
    labels = [label for r in dataset.records for label, crowd in zip(r.labels, r.crowd, strict=True) if not crowd]
    return {name: labels.count(i) for i, name in enumerate(dataset.classes.names)}


def test_balanced_gives_each_class_the_same_sum(train):
    weights = dict(zip(train.classes.names, class_weights("balanced", train), strict=True))
    number = counts(train)
    total = sum(number.values())
    assert len(set(number.values())) == 3  # or the test would show nothing
    assert {name: weights[name] * number[name] for name in number} == pytest.approx(dict.fromkeys(number, total / 3))


def test_names_and_what_is_said(train):
    config = TrainConfig(loss=LossConfig(class_weights={"circle": 2.0, "triangle": 0.25}))
    assert class_weights(config.loss.class_weights, train) == tuple(
        {"circle": 2.0, "triangle": 0.25}.get(name, 1.0) for name in train.classes.names
    )
    (line,) = weight_lines(config, train)
    assert line.startswith("class weights: ") and {"circle 2", "triangle 0.25"} <= set(
        line.removeprefix("class weights: ").split(", ")
    )
    assert line.endswith(", others 1") and weight_lines(TrainConfig(), train) == []


def test_a_wrong_name_is_told_the_near_one(train):
    with pytest.raises(SettingError, match=r"loss.class_weights: .* has no class 'Circles', perhaps 'circle'; it has "):
        class_weights({"circle": 1.0, "Circles": 2.0}, train)


@pytest.mark.parametrize(("model", "count"), [("detr-r50", 3), ("deformable-detr-r50", 3)])
def test_the_weights_reach_the_loss(model, count, train):
    config = TrainConfig(loss=LossConfig(class_weights={"circle": 5.0}))
    spec = ModelSpec(model, num_classes=count, classes=train.classes)
    label = train.classes.names.index("circle")
    criterion = make_criterion(config, spec, train)
    assert criterion.weighted and criterion.class_weights[:count].tolist() == [
        5.0 if i == label else 1.0 for i in range(count)
    ]


def test_a_loss_without_weights_says_so(monkeypatch):
    from detrkit.models import criterion

    def plain(*, num_classes: int, eos_coef: float = 0.1):
        return criterion.softmax_criterion(num_classes=num_classes, eos_coef=eos_coef)

    monkeypatch.setitem(criterion.CRITERIA, "softmax", plain)
    config = TrainConfig(loss=LossConfig(class_weights="balanced"))
    with pytest.raises(SettingError, match=r"loss.class_weights is 'balanced': detr-r50 has no such part of its loss"):
        check_config(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{circle: -1}", "loss.class_weights.circle is -1: must be at least 0"),
        ("{circle: x}", "loss.class_weights.circle: Input should be a valid number"),
        ("evenly", "loss.class_weights: Input should be a valid dictionary"),
    ],
)
def test_wrong_weights_in_a_recipe(text, message, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"loss:\n  class_weights: {text}\n")
    with pytest.raises(DetrkitError) as caught:
        load_config(recipe)
    assert str(caught.value).startswith(f"{recipe}: {message}")


@pytest.mark.slow
def test_a_run_with_weights_resumes_and_its_config_is_a_recipe(shapes, tmp_path, capsys):
    weights = {"circle": 3.0}
    config = tiny_config(shapes, tmp_path / "whole", loss={"class_weights": weights})
    detrkit.train(config)
    assert "class weights: circle 3, others 1" in capsys.readouterr().out
    assert load_config(tmp_path / "whole" / "config.yaml").loss.class_weights == weights
    parts = config.changed(run={"out": str(tmp_path / "parts")}, optim={"epochs": 1})
    detrkit.train(parts)
    with pytest.raises(DetrkitError, match=r"loss.class_weights was {'circle': 3.0}, now it is 'balanced'"):
        detrkit.train(parts.changed(loss={"class_weights": "balanced"}, optim={"epochs": 2}), resume=True)
    detrkit.train(parts.changed(optim={"epochs": 2}), resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert torch.isfinite(torch.tensor([loss for _, loss in losses(tmp_path / "whole")])).all()
