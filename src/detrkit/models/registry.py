"""Model registry: how each name is built, trained and post-processed, and its published weights file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from detrkit.backbones.resnet import Padding
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.demo import DETRdemo
from detrkit.models.detr import DETR
from detrkit.models.pretrained import PUBLISHED, Published
from detrkit.models.settings import check_options, check_parameters
from detrkit.utils.errors import SettingError
from detrkit.utils.ranges import shortened

MAX_CLASSES = 1_000_000  # far above any class list; a head of this size still fits into memory


@dataclass(frozen=True)
class Architecture:
    """A named model.

    Attributes:
        name: as `build_model` takes it.
        build: the model's class; takes official argument names as keywords.
        options: the arguments that make this variant.
        activation: how logits become scores: "softmax" over classes and no-object, or "sigmoid" per class.
        num_classes: of the published weights.
        max_size: longest side in pixels of an image at prediction, whose short side is 800; None: no limit.
    """

    name: str
    build: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    activation: Literal["softmax", "sigmoid"] = "softmax"
    num_classes: int = 91
    max_size: int | None = 1333

    def model(self, *, num_classes: int, padding: Padding, options: Mapping[str, Any]) -> nn.Module:
        """Build a model with random weights.

        Args:
            num_classes: labels.
            padding: "exact" or "official".
            options: all that differ from the defaults of the class, checked (`build_options`).

        Raises:
            SettingError: a number of classes that no model has, or a model larger than this machine's memory.
        """
        if num_classes < 1:
            raise SettingError(f"num_classes is {num_classes}: a model needs at least one class")
        if num_classes > MAX_CLASSES:
            raise SettingError(f"num_classes is {num_classes}: must be at most {MAX_CLASSES:,}")
        if torch.get_default_device().type != "meta":  # on the meta device, which takes no memory
            check_parameters(self.build, {**options, "num_classes": num_classes})
        return self.build(num_classes=num_classes, padding=padding, **options)

    @property
    def row(self) -> Published:
        """Published row of the model: the file, the metrics, and how they were measured."""
        return PUBLISHED[self.name]

    @property
    def weights(self) -> str | None:
        """Name of the published file; None where it has no address to download it from."""
        return None if self.row.url is None else self.row.file

    @property
    def sha256_prefix(self) -> str | None:
        """First hex digits of the SHA-256 of the published file; None where none was published."""
        return self.row.sha256

    @property
    def published(self) -> Mapping[str, float]:
        """Published metrics on COCO val2017 in [0, 1], by name."""
        return self.row.published


_ARCHITECTURES = (
    Architecture("detr-r50", DETR),
    Architecture("detr-r50-dc5", DETR, {"dilation": True}),
    Architecture("detr-r101", DETR, {"backbone": "resnet101"}),
    Architecture("detr-r101-dc5", DETR, {"backbone": "resnet101", "dilation": True}),
    Architecture("detr-r50-panoptic", DETR, {"masks": True}, num_classes=250),
    Architecture("detr-r50-dc5-panoptic", DETR, {"dilation": True, "masks": True}, num_classes=250),
    Architecture("detr-r101-panoptic", DETR, {"backbone": "resnet101", "masks": True}, num_classes=250),
    Architecture("deformable-detr-r50-single-scale", DeformableDETR, {"num_feature_levels": 1}, activation="sigmoid"),
    Architecture(
        "deformable-detr-r50-single-scale-dc5",
        DeformableDETR,
        {"num_feature_levels": 1, "dilation": True},
        activation="sigmoid",
    ),
    Architecture("deformable-detr-r50", DeformableDETR, activation="sigmoid"),
    Architecture("deformable-detr-r50-refine", DeformableDETR, {"with_box_refine": True}, activation="sigmoid"),
    Architecture(
        "deformable-detr-r50-two-stage",
        DeformableDETR,
        {"with_box_refine": True, "two_stage": True},
        activation="sigmoid",
    ),
    # the notebook resizes to 800 without a maximum
    Architecture("detr-demo", DETRdemo, max_size=None),
)
ARCHITECTURES: Mapping[str, Architecture] = {a.name: a for a in _ARCHITECTURES}


def architecture(name: str) -> Architecture:
    """Return the architecture of that name.

    Raises:
        SettingError: an unknown name; the message lists the known ones.
    """
    if name not in ARCHITECTURES:
        raise SettingError(f"unknown model {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_options(known: Architecture, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the variant's own arguments of the model's class with overrides.

    Raises:
        TypeError: an argument the class does not take; the message lists those it does.
        ValueError: an argument out of range, or arguments that do not go together.
    """
    accepted = [p for p in inspect.signature(known.build).parameters if p not in ("num_classes", "padding")]
    wrong = sorted(set(overrides) - set(accepted))
    if wrong:
        raise TypeError(
            f"{known.name} takes no argument {', '.join(map(shortened, wrong[:5]))}: choose from {', '.join(accepted)}"
        )
    options = {**known.options, **overrides}
    check_options(known.build, options)
    return options


def published_file(sha256: str) -> Architecture | None:
    """Return the architecture whose published weights have this SHA-256 (hex), or None."""
    for arch in ARCHITECTURES.values():
        if arch.sha256_prefix is not None and sha256.startswith(arch.sha256_prefix):
            return arch
    return None


def list_models() -> list[str]:
    """Return the names that `build_model` takes."""
    return list(ARCHITECTURES)
