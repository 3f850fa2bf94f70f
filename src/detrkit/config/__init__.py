"""The settings of a training run, as frozen dataclasses, and their YAML form (recipes, a run's config.yaml)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detrkit.config.data import DataConfig
from detrkit.config.loss import LossConfig
from detrkit.config.model import ModelConfig
from detrkit.config.optim import OptimConfig
from detrkit.config.run import RunConfig
from detrkit.config.strict import STRICT
from detrkit.utils.settings_files import check_changes, read_yaml, shipped, validated

__all__ = [
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
    "load_config",
    "recipes",
]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a training run."""

    __pydantic_config__ = STRICT

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_yaml(self) -> str:
        """Format the settings as the YAML that `load_config` reads, without unset fields."""
        import yaml  # here: most commands that import this module neither read nor write YAML

        plain = {}
        for section in dataclasses.fields(self):
            part = getattr(self, section.name)
            values = {f.name: (getattr(part, f.name), f.default) for f in dataclasses.fields(part)}
            plain[section.name] = {
                name: list(value) if isinstance(value, tuple) else value
                for name, (value, default) in values.items()
                if value is not None or default is not None
            }
        return yaml.safe_dump({k: v for k, v in plain.items() if v}, sort_keys=False)

    def changed(self, **sections: dict[str, Any]) -> TrainConfig:
        """Return a copy with fields changed: `config.changed(run={"out": "runs/b"}, optim={"epochs": 5})`.

        Raises:
            SettingError: no such section or field; values are checked later, where they are used.
        """
        check_changes(self, sections)
        return dataclasses.replace(
            self, **{name: dataclasses.replace(getattr(self, name), **values) for name, values in sections.items()}
        )


def recipes() -> list[str]:
    """Return the names of the recipes that come with detrkit."""
    return shipped()


def load_config(source: str | Path, *, data: str | None = None) -> TrainConfig:
    """Read a config.yaml, or a recipe by name.

    Args:
        source: a YAML file, or one of `recipes()`.
        data: the dataset's path; overrides the file's.

    Raises:
        DetrkitError: no such file, not YAML, or a field that is unknown, of the wrong type or out of range; names file
            and field.
    """
    plain = read_yaml(source, expected="sections data, model, optim, loss, run")
    plain = {section: values for section, values in plain.items() if values is not None}  # all of it commented out
    config = validated(TrainConfig, plain, str(source), hint="see `detrkit train --help` for the fields")
    return config if data is None else config.changed(data={"path": data})
