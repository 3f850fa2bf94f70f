"""A recipe with another model than its own: what the new one does not have is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from detrkit.config import TrainConfig
from detrkit.models.criterion import loss_settings
from detrkit.models.registry import Architecture, architecture
from detrkit.models.settings import full_options

_EVERY_MODEL = ("name", "backbone_weights", "options")  # fields of the model's section that are no options of one
_NEEDS = {"mixed_selection": "two_stage", "look_forward_twice": "with_box_refine"}  # options that need another


def for_other_model(config: TrainConfig, recipe: TrainConfig, given: Collection[str]) -> tuple[TrainConfig, str]:
    """Leave out the options of a recipe's own model and loss that do not fit the model named in its place.

    These are options that it does not have, and those that need another which is off in it: mixed selection in a model
    of one stage.

    Options that both have keep the recipe's values; those that were given are never left out, so that one which the
    model does not have is refused where the settings are checked.

    Args:
        config: the recipe with what was given.
        recipe: as it is.
        given: settings as "model.name".

    Returns:
        The settings, and the line that says what was left out; "" for nothing.

    Raises:
        SettingError: no such model.
    """
    name = config.model.name
    if "model.name" not in given or name is None or name == recipe.model.name:
        return config, ""
    arch = architecture(name)
    fields = [f.name for f in dataclasses.fields(recipe.model) if f.name not in _EVERY_MODEL]
    unknown = {
        "model": [field for field in fields if not arch.takes(field) or not _has_what_it_needs(field, arch, config)],
        "loss": [f.name for f in dataclasses.fields(recipe.loss) if f.name not in loss_settings(arch)],
    }
    changes: dict[str, dict[str, Any]] = {}
    for section, names in unknown.items():
        of_recipe = getattr(recipe, section)
        changes[section] = {
            field: None
            for field in names
            if getattr(of_recipe, field) is not None and f"{section}.{field}" not in given
        }
    if recipe.model.options and "model.options" not in given:
        kept = {option: value for option, value in recipe.model.options.items() if arch.takes(option)}
        if kept != recipe.model.options:
            changes["model"]["options"] = kept or None
    left_out = [field for values in changes.values() for field in values]
    if not left_out:
        return config, ""
    return config.changed(**changes), f"left out of the recipe, since not of {name}: {', '.join(left_out)}"


def _has_what_it_needs(field: str, arch: Architecture, config: TrainConfig) -> bool:
    """Return whether the option that another one needs is on in the model, or is none of its options."""
    given = {name: value for name, value in config.model.overrides().items() if arch.takes(name)}
    full = full_options(arch.build, {**arch.options, **given})
    return bool(full.get(_NEEDS[field], True)) if field in _NEEDS else True
