"""A recipe with another model than its own."""

from __future__ import annotations

import pytest

from detrkit.cli.train import Train, with_defaults
from detrkit.config import load_config
from detrkit.engine.other_model import for_other_model
from detrkit.engine.relations import check_config
from detrkit.utils.errors import SettingError

RECIPES = ["own-data", "few-images", "dense", "small-objects", "from-scratch", "small"]
MODELS = ["detr-r50", "deformable-detr-r50", "h-deformable-detr-r50", "dino-r50-4scale", "rtdetr-r50", "rtdetrv2-r18"]


def other(recipe, name, given=(), **changes):
    own = load_config(recipe)
    config = own.changed(model={"name": name, **changes}, data={"path": "set"})
    return for_other_model(config, own, ["model.name", *given])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_for_own_data_takes_every_model(recipe, name):
    own = load_config(recipe)
    config, line = other(recipe, name)
    check_config(config)
    kept, before = config.model.overrides(), own.model.overrides()
    assert all(before[option] == value for option, value in kept.items())
    assert set(before) - set(kept) == set(line.partition(": ")[2].split(", ")) - {""}
    assert (config.optim, config.loss) == (own.optim, own.loss)


def test_the_line_says_what_was_left_out():
    config, line = other("own-data", "rtdetrv2-r18")
    assert line == (
        "left out of the recipe, since not of rtdetrv2-r18: backbone_stages, num_feature_levels, mixed_selection, "
        "look_forward_twice"
    )
    assert (config.model.hidden_dim, config.model.backbone, config.model.num_queries) == (128, "resnet10", 100)
    both = "mixed_selection, look_forward_twice"
    assert other("own-data", "dino-r50-4scale")[1] == f"left out of the recipe, since not of dino-r50-4scale: {both}"
    # a model of one stage has these options, but not what they need
    config, line = other("own-data", "deformable-detr-r50")
    assert line.endswith(f"deformable-detr-r50: {both}") and config.model.num_feature_levels == 3
    assert other("own-data", "h-deformable-detr-r50")[1] == ""  # which has them all


def test_options_that_were_given_are_refused_as_ever():
    config, line = other("own-data", "rtdetrv2-r18", ["model.num_feature_levels"], num_feature_levels=2)
    assert config.model.num_feature_levels == 2 and "num_feature_levels" not in line and "backbone_stages" in line
    with pytest.raises(SettingError, match="rtdetrv2-r18 takes no argument num_feature_levels"):
        check_config(config)
    own = load_config("own-data")
    changed = own.changed(model={"name": "detr-r50"})
    assert for_other_model(changed, own, []) == (changed, "")  # as from Python: nothing was given on top
    with pytest.raises(SettingError, match="no-model"):
        other("own-data", "no-model")


def test_a_loss_and_options_of_another_package():
    own = load_config("rtdetrv2-72").changed(loss={"class_loss": "mal"}, model={"options": {"depth": 3}})
    config = own.changed(model={"name": "dino-r50-4scale"})
    changed, line = for_other_model(config, own, ["model.name"])
    assert changed.loss.class_loss is None and changed.model.options is None
    assert "class_loss" in line and "options" in line
    kept, _ = for_other_model(config, own, ["model.name", "loss.class_loss", "model.options"])
    assert kept.loss.class_loss == "mal" and kept.model.options == {"depth": 3}


def test_on_the_command_line():
    words = ["set", "--recipe", "own-data", "--model", "rtdetrv2-r18"]
    defaults = with_defaults(words)
    config = defaults.config.changed(model={"name": "rtdetrv2-r18"})
    settings, lines, _ = Train(recipe="own-data", config=config, typed=defaults.typed)._settings(config)
    assert settings.model.num_feature_levels is None and settings.model.hidden_dim == 128
    assert lines[0].startswith("left out of the recipe, since not of rtdetrv2-r18: ")
