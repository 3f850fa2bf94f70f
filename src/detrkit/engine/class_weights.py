"""The losses of a run, with the weights of classes that its settings name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from detrkit.config import TrainConfig
from detrkit.data import Dataset
from detrkit.models.criterion import SetCriterion, build_criterion
from detrkit.models.spec import ModelSpec
from detrkit.utils.errors import SettingError
from detrkit.utils.messages import names_and_more
from detrkit.utils.similar import nearest_names

_NAMES_IN_MESSAGES = 10


def make_criterion(config: TrainConfig, spec: ModelSpec, train: Dataset) -> SetCriterion:
    """Build the losses of a run.

    Args:
        config: of the run.
        spec: of its model.
        train: training split, whose classes are weighted.

    Raises:
        SettingError: a weight of a class that the dataset does not have.
        TypeError: a setting that the model's loss does not have.
    """
    settings: dict[str, Any] = dict(config.loss.overrides())
    weights = class_weights(config.loss.class_weights, train)
    if weights is not None:
        settings["class_weights"] = weights
    return build_criterion(spec.name, num_classes=spec.num_classes, **settings)


def class_weights(weights: Mapping[str, float] | str | None, train: Dataset) -> tuple[float, ...] | None:
    """Return the weight of each label of a dataset, 1 for classes that are not named; None without weights.

    "balanced" gives class c the weight N / (K n_c), for n_c objects of the class among N objects of the K classes that
    have any. Then each class has the same summed weight, and the mean weight of an object is 1. A class without objects
    has 1.

    Args:
        weights: by class name, or "balanced".
        train: with the classes, and for "balanced" with the objects; crowd regions do not count.

    Raises:
        SettingError: a name that is none of the dataset's classes.
    """
    if weights is None:
        return None
    classes = train.classes
    values = np.ones(len(classes))
    if isinstance(weights, str):
        labels = np.concatenate([np.zeros(0, np.int64), *(r.labels[~r.crowd] for r in train.records)])
        counts = np.bincount(labels, minlength=len(classes))
        present = counts > 0
        values[present] = counts.sum() / (present.sum() * counts[present])
        return tuple(values.tolist())
    names = classes.used_names
    unknown = [name for name in weights if name not in names]
    if unknown:
        near = nearest_names(unknown, names)
        perhaps = f", perhaps {near[unknown[0]]!r}" if unknown[0] in near else ""
        raise SettingError(
            f"loss.class_weights: {train.path} has no class {unknown[0]!r}{perhaps}; "
            f"it has {names_and_more(names, _NAMES_IN_MESSAGES)}"
        )
    for label, name in enumerate(classes.names):
        if not classes.is_unused(label):
            values[label] = weights.get(name, 1.0)
    return tuple(values.tolist())


def weight_lines(config: TrainConfig, train: Dataset) -> list[str]:
    """Return the line that announces the weights of the classes; none without weights."""
    weights = class_weights(config.loss.class_weights, train)
    if weights is None:
        return []
    by_name = {name: weights[label] for name, label in train.classes.used.items()}
    words = [f"{name} {weight:.3g}" for name, weight in by_name.items() if weight != 1.0]
    rest = ", others 1" if words and len(words) < len(by_name) else ""
    how = " (balanced)" if isinstance(config.loss.class_weights, str) else ""
    return [f"class weights{how}: {names_and_more(words, _NAMES_IN_MESSAGES) if words else 'all 1'}{rest}"]
