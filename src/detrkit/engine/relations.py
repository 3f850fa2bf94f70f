"""Checks of a run's settings, one by one and together, before anything is read, generated or written."""

from __future__ import annotations

import os
from collections.abc import Callable

from detrkit.config import TrainConfig
from detrkit.data.memory import IN_MEMORY
from detrkit.engine.loading import image_mix
from detrkit.engine.loggers import check_loggers
from detrkit.models.criterion import build_criterion, loss_settings
from detrkit.models.registry import architecture, build_options
from detrkit.models.settings import check_parameters
from detrkit.utils.errors import SettingError
from detrkit.utils.names import real_path
from detrkit.utils.ranges import FieldFormat, as_field, check_values


def check_config(config: TrainConfig, *, format_field: FieldFormat = as_field) -> None:
    """Check the settings of a run, one by one and together.

    Settings that depend on the weights of --init-from are checked when these are read.

    Args:
        config: of the run.
        format_field: formats a field for messages.

    Raises:
        SettingError: an impossible value or combination; names the field or both fields, and what would be right.
    """
    check_values(config, format_field=format_field)
    check_loggers(config.run.loggers)

    refuse = _refusal(config, format_field)
    data, model, optim, run = config.data, config.model, config.optim, config.run
    if not run.out.strip():
        refuse("run.out", reason="name a folder")
    if data.size is not None and data.max_size is not None and data.max_size < data.size:
        refuse("data.size", "data.max_size", reason="the longest side is at least the short side")
    if data.plain_epochs and data.plain_epochs >= optim.epochs and run.minutes is None and image_mix(config):
        refuse("data.plain_epochs", "optim.epochs", reason="no epoch is left that is not plain; give fewer plain ones")
    check_datasets(config, format_field=format_field)
    if run.devices > (most := max(16, 4 * (os.cpu_count() or 1))):
        refuse("run.devices", reason=f"these are processes of this machine, which can run {most} at the most")
    frozen = run.freeze_detector
    if frozen is not None and run.init_from is not None:
        refuse("run.freeze_detector", "run.init_from", reason="the detector is taken from one place, give one")
    if frozen is not None and optim.mask_epochs:
        reason = "a frozen detector needs no step of its own; give the epochs of the masks alone"
        refuse("run.freeze_detector", "optim.mask_epochs", reason=reason)
    if model.masks is False and frozen is not None:
        refuse("model.masks", "run.freeze_detector", reason="leave masks out to train them on a frozen detector")
    if model.masks is False and optim.mask_epochs:
        refuse("model.masks", "optim.mask_epochs", reason="leave masks out to train them on a frozen detector")
    if frozen is not None or run.init_from is not None:
        return
    if model.name == "":
        refuse("model.name", reason="name one of `detrkit models`")
    arch = architecture(model.name or "detr-r50")
    given = [*config.loss.overrides(), *(["class_weights"] if config.loss.class_weights is not None else [])]
    wrong = sorted(set(given) - set(loss_settings(arch)))
    if wrong:
        refuse(f"loss.{wrong[0]}", reason=f"{arch.name} has no such part of its loss")
    try:
        check_parameters(arch.build, build_options(arch, model.overrides()))
        build_criterion(arch.name, num_classes=arch.num_classes, **config.loss.overrides())
    except SettingError:
        raise
    except (TypeError, ValueError) as error:
        raise SettingError(str(error)) from error


def _refusal(config: TrainConfig, format_field: FieldFormat) -> Callable[..., None]:
    """Return what raises the error about fields of a config that do not go together, with a reason."""

    def refuse(*fields: str, reason: str) -> None:
        paths = [tuple(field.split(".")) for field in fields]
        values = [format_field(path, getattr(getattr(config, path[0]), path[1])) for path in paths]
        raise SettingError(f"{' and '.join(values)}: {reason}")

    return refuse


def check_datasets(config: TrainConfig, *, format_field: FieldFormat = as_field) -> None:
    """Check the datasets to train on and their weights; the other settings may still be chosen.

    Args:
        config: of the run.
        format_field: formats a field for messages.

    Raises:
        SettingError: a dataset twice, another number of weights, or none above 0.
    """
    data, refuse = config.data, _refusal(config, format_field)
    paths = [data.path, *data.more_paths]
    files = [str(real_path(path)) for path in paths if not path.startswith(IN_MEMORY)]
    twice = next((path for k, path in enumerate(files) if path in files[:k]), None)
    if twice is not None:
        raise SettingError(
            f"{twice}: this dataset is given twice: to see it more often give it once, with data.weights"
        )
    if not data.weights:
        return
    if len(data.weights) != len(paths):
        count = "there is one dataset" if len(paths) == 1 else f"there are {len(paths)} datasets"
        refuse("data.weights", reason=f"{count}: give one weight for each")
    if not any(data.weights):
        refuse("data.weights", reason="all are 0, so that no image is left: give one above 0")
