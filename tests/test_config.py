"""Configs: YAML and back, and one clear line for what is wrong."""

from __future__ import annotations

import pytest

from detrkit.config import DataConfig, ModelConfig, OptimConfig, TrainConfig, load_config, recipes
from detrkit.models.criterion import build_criterion
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.weights.build import build_model


def test_yaml_round_trip(tmp_path):
    config = TrainConfig(
        data=DataConfig(path="somewhere", val_split=None, size=320),
        model=ModelConfig(name="deformable-detr-r50", backbone_stages=(3, 4), dropout=0.0, dilation=False),
        optim=OptimConfig(lr=3e-5, ema=0.99),
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config


def test_data_path_comes_on_top():
    assert load_config("small", data="mine").data.path == "mine"
    assert load_config("small").data.path == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes())
def test_recipes_build(name):
    config = load_config(name)
    options = config.model.overrides()
    model = build_model(config.model.name or "detr-r50", num_classes=3, **options)
    assert sum(p.numel() for p in model.parameters()) > 0
    build_criterion(config.model.name or "detr-r50", num_classes=3, **config.loss.overrides())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: fast}", r"optim\.lr: .*number"),
        ("optim: {learning_rate: 1}", r"optim\.learning_rate: unknown field"),
        ("optimiser: {}", r"optimiser: unknown field"),
        ("data: {augment: heavy}", r"data\.augment: .*'detr', 'flip', 'none' or 'lsj'"),
        ("data: [1, 2", r"malformed YAML"),
        ("- 1", r"expected sections"),
    ],
)
def test_bad_recipes_name_file_and_field(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(DetrkitError, match=rf"bad\.yaml(:\d+)?: {message}"):
        load_config(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optim": {"epoch": 3}}, "optim.epoch is not known: did you mean epochs?"),
        ({"run": {"epochs": 3}}, "run.epochs is not known: did you mean optim.epochs?"),
        ({"optim": {"qqq": 3}}, "optim.qqq is not known"),
        (
            {"optimizer": {"epochs": 3}},
            "no section 'optimizer': there are data, model, optim, loss, run; did you mean optim?",
        ),
        ({"epochs": 3}, "no section 'epochs': write optim={'epochs': ...}"),
        ({"run": "runs/b"}, "run is str: must be a dict, as in run={...}"),
    ],
)
def test_a_change_of_what_there_is_not_says_what_there_is(sections, message):
    with pytest.raises(SettingError) as caught:
        load_config("small").changed(**sections)
    assert str(caught.value) == message


def test_unknown_recipe_lists_those_there_are():
    with pytest.raises(DetrkitError, match=r"no recipe of that name.*quickstart.*small"):
        load_config("tiny")
