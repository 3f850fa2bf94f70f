"""`register_model`: names of models, with what the toolkit has to know of each; stands beside the model's class."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch
from torch import nn

from detrkit.backbones.base import RGB, Padding
from detrkit.models.base import DetectionModel
from detrkit.models.official_names import OfficialNames
from detrkit.models.pretrained import PUBLISHED, Published
from detrkit.models.settings import check_options, check_parameters, constructor_defaults
from detrkit.utils.errors import SettingError
from detrkit.utils.messages import shortened
from detrkit.utils.registry import Registry

if TYPE_CHECKING:
    from detrkit.models.criterion import SetCriterion

M = TypeVar("M", bound=type[DetectionModel])
Activation = Literal["softmax", "sigmoid"]

MAX_CLASSES = 1_000_000  # far above any class list; a head of this size still fits into memory
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Scores above which a result counts, where the caller gives none.

    Attributes:
        predict: detections of `Detector.predict`.
        show: detections that a report draws and counts in its confusion matrix.
        segment: queries that become segments of a panoptic result.
    """

    predict: float = 0.5
    show: float = 0.5
    segment: float = 0.85


# by the activation of the logits: focal loss lowers scores
THRESHOLDS: Mapping[Activation, Thresholds] = {
    "softmax": Thresholds(),
    "sigmoid": Thresholds(show=0.3, segment=0.4),
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A named model: see `register_model`.

    Attributes:
        name: as `build_model` takes it.
        build: the model's class.
        options: the arguments that make this variant.
        activation: how logits become scores: "softmax" over classes and no-object, or "sigmoid" per class.
        num_classes: of the published weights.
        size: short side in pixels of an image at prediction.
        max_size: its longest side in pixels; None: no limit.
        square: whether every image is squashed to `size` x `size` pixels instead.
        mean, std: of the published weights' normalization, per RGB channel, for pixels in [0, 1]; None: ImageNet's.
        thresholds: scores above which a result counts.
        criterion: builds the losses; None: those of the activation (`detrkit.models.criterion.CRITERIA`).
        official: names of the tensors in the original code, or None.
    """

    name: str
    build: type[DetectionModel]
    options: Mapping[str, Any] = field(default_factory=dict)
    activation: Activation
    num_classes: int = 91
    size: int = 800
    max_size: int | None = 1333
    square: bool = False
    mean: RGB | None = None
    std: RGB | None = None
    thresholds: Thresholds = THRESHOLDS["softmax"]
    criterion: Callable[..., SetCriterion] | None = None
    official: OfficialNames | None = None

    def model(self, *, num_classes: int, padding: Padding, options: Mapping[str, Any]) -> DetectionModel:
        """Build a model with random weights.

        Args:
            num_classes: labels.
            padding: "exact" or "official".
            options: all that differ from the defaults of the class, checked (`build_options`).

        Raises:
            SettingError: a number of classes that no model has, a padding that the model does not have, or a model
                larger than this machine's memory.
            TypeError: the class does not set what every model has.
        """
        if num_classes < 1:
            raise SettingError(f"num_classes is {num_classes}: a model needs at least one class")
        if num_classes > MAX_CLASSES:
            raise SettingError(f"num_classes is {num_classes}: must be at most {MAX_CLASSES:,}")
        arguments = {"num_classes": num_classes, **options}
        if self.takes("padding"):
            arguments["padding"] = padding
        elif padding != "exact":
            raise SettingError(f"padding is {padding!r}: {self.name} has one kind of padding, leave it out")
        if torch.get_default_device().type != "meta":  # on the meta device, which takes no memory
            check_parameters(self.build, arguments)
        model = self.build(**arguments)
        for attribute in ("num_classes", "num_queries"):
            if not hasattr(model, attribute):
                raise TypeError(f"{self.build.__name__} has no {attribute}: set self.{attribute} in its __init__")
        return model

    def takes(self, option: str) -> bool:
        """Return whether the model's class takes an argument of this name."""
        return option in constructor_defaults(self.build)

    @property
    def row(self) -> Published | None:
        """Row of the published file that stands for the model, its metrics, and how they were measured; or None."""
        return PUBLISHED.get(self.name)

    @property
    def weights(self) -> str | None:
        """Name of the published file; None where it is not downloaded by the model's name."""
        return None if self.row is None or not self.row.downloadable else self.row.file

    @property
    def sha256_prefix(self) -> str | None:
        """First hex digits of the SHA-256 of the published file; None where none was published."""
        return None if self.row is None else self.row.sha256

    @property
    def published(self) -> Mapping[str, float]:
        """Published metrics on COCO val2017 in [0, 1], by name."""
        return {} if self.row is None else self.row.published


ARCHITECTURES: Registry[Architecture] = Registry("model")


def register_model(
    names: str | Mapping[str, Mapping[str, Any]],
    *,
    activation: Activation,
    num_classes: int = 91,
    size: int = 800,
    max_size: int | None = 1333,
    square: bool = False,
    mean: RGB | None = None,
    std: RGB | None = None,
    criterion: Callable[..., SetCriterion] | None = None,
    thresholds: Thresholds | None = None,
    official: OfficialNames | None = None,
    replace: bool = False,
) -> Callable[[M], M]:
    """Register a model's class under a name, or under the names of its variants.

    `build_model`, training, evaluation and checkpoints know the model by these names then::

        @detrkit.register_model("my-detr", activation="sigmoid")
        class MyDETR(detrkit.DetectionModel):
            def __init__(self, *, num_classes: int = 91, my_option: int = 3) -> None: ...

    Args:
        names: the name; or of each variant the name and the arguments of the class that make it. Among them may be
            `num_classes`, of the variant's published weights.
        activation: how logits become scores: "softmax" over classes and no-object (the last column), or "sigmoid" per
            class.
        num_classes: labels by default.
        size: short side in pixels of an image at prediction.
        max_size: its longest side in pixels; None: no limit.
        square: whether every image is squashed to `size` x `size` pixels instead, in training, too.
        mean: of the published weights' normalization, per RGB channel, for pixels in [0, 1]; None: ImageNet's.
        std: likewise.
        criterion: a function or class that builds the losses. It takes `num_classes` and settings by keyword, each with
            its published value as default; by default the losses of DETR for "softmax", of Deformable DETR for
            "sigmoid".
        thresholds: scores above which a result counts; by default those of the activation.
        official: names of the tensors in the original code; without them the weights are saved and loaded under
            detrkit's names alone.
        replace: replace models of the same names, as when a notebook's cell runs again.

    Returns:
        A decorator of the class, which must be a `DetectionModel` that takes all arguments by keyword: `num_classes`,
        and options with defaults.

    Raises:
        ValueError: an activation, a name or a number that no model has, or a name that is taken.
        TypeError: a class that is no `DetectionModel` or takes other arguments.
    """
    if activation not in get_args(Activation):
        raise ValueError(f"activation is {activation!r}: choose one of {', '.join(get_args(Activation))}")
    variants: Mapping[str, Mapping[str, Any]] = {names: {}} if isinstance(names, str) else names

    def register(build: M) -> M:
        _check_class(build)
        architectures = [
            Architecture(
                name=name,
                build=build,
                options={option: value for option, value in arguments.items() if option != "num_classes"},
                activation=activation,
                num_classes=arguments.get("num_classes", num_classes),
                size=size,
                max_size=None if square else max_size,
                square=square,
                mean=mean,
                std=std,
                thresholds=thresholds or THRESHOLDS[activation],
                criterion=criterion,
                official=official,
            )
            for name, arguments in variants.items()
        ]
        for arch in architectures:
            _check_variant(arch)
            if not replace:
                ARCHITECTURES.check_free(arch.name)
        for arch in architectures:
            ARCHITECTURES.add(arch.name, arch, replace=replace)
        return build

    return register


def _check_class(build: Any) -> None:
    """Check that a class can be built and used as every model.

    Raises:
        TypeError: it is no `DetectionModel`, or an argument is missing, positional or without default.
    """
    if not (isinstance(build, type) and issubclass(build, DetectionModel)):
        raise TypeError(f"{getattr(build, '__name__', build)}: a model is a subclass of detrkit.DetectionModel")
    defaults = constructor_defaults(build)
    if "num_classes" not in defaults:
        raise TypeError(f"{build.__name__}: a model takes num_classes, the number of labels, by keyword")
    without = [n for n, default in defaults.items() if default is inspect.Parameter.empty and n != "num_classes"]
    if without:
        raise TypeError(f"{build.__name__}: the argument {without[0]} has no default: give every option one")


def _check_variant(arch: Architecture) -> None:
    """Check the name and the options of a variant.

    Raises:
        ValueError: a name that cannot be typed, or a number of classes or of pixels that no model has.
        TypeError: an option that the class does not take.
    """
    if not _NAME.fullmatch(arch.name):
        raise ValueError(f"{arch.name!r} is no name of a model: use letters, digits, '.', '_' and '-'")
    if not 1 <= arch.num_classes <= MAX_CLASSES:
        raise ValueError(f"{arch.name}: num_classes is {arch.num_classes}: must be from 1 to {MAX_CLASSES:,}")
    if arch.size < 1:
        raise ValueError(f"{arch.name}: size is {arch.size}: must be at least 1 pixel")
    if (arch.mean is None) != (arch.std is None):
        raise ValueError(f"{arch.name}: give both mean and std, or neither")
    if arch.max_size is not None and arch.max_size < 1:
        raise ValueError(f"{arch.name}: max_size is {arch.max_size}: must be at least 1 pixel, or None for no limit")
    build_options(arch, {})


def architecture(name: str) -> Architecture:
    """Return the architecture of that name.

    Raises:
        SettingError: an unknown name; the message lists the names.
    """
    return ARCHITECTURES.find(name)


def architecture_of(model: nn.Module | type[nn.Module]) -> Architecture | None:
    """Return the architecture of a model's class: the variant with the fewest options; None for other modules.

    A class that is not registered itself counts as the nearest of its base classes that is.
    """
    kind = model if isinstance(model, type) else type(model)
    for base in kind.__mro__:
        variants = [arch for arch in ARCHITECTURES.registered() if arch.build is base]
        if variants:
            return min(variants, key=lambda arch: len(arch.options))
    return None


def build_options(arch: Architecture, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the variant's own arguments of the model's class with overrides.

    Raises:
        TypeError: an argument the class does not take; the message lists those it does.
        ValueError: an argument out of range, or arguments that do not go together.
    """
    accepted = [option for option in constructor_defaults(arch.build) if option not in ("num_classes", "padding")]
    options = {**arch.options, **overrides}
    wrong = sorted(set(options) - set(accepted))
    if wrong:
        raise TypeError(
            f"{arch.name} takes no argument {', '.join(map(shortened, wrong[:5]))}: choose from {', '.join(accepted)}"
        )
    check_options(arch.build, options)
    return options


def published_file(sha256: str) -> Published | None:
    """Return the row of the published file that has this SHA-256 (hex), or None."""
    rows = (row for row in PUBLISHED.values() if row.sha256 is not None and sha256.startswith(row.sha256))
    return next(rows, None)


def list_models() -> list[str]:
    """Return the names that `build_model` takes."""
    return list(ARCHITECTURES)
