"""Model names: what each builds, how it is trained and post-processed, and which published file belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from detrkit.errors import SettingError
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.demo import DETRdemo
from detrkit.models.detr import DETR
from detrkit.published import PUBLISHED, Published


@dataclass(frozen=True)
class Architecture:
    """A named model.

    Attributes:
        name: as `build_model` takes it.
        build: the model's class; takes official argument names as keywords.
        options: the arguments that make this variant.
        scores: how logits become scores: "softmax" over classes and no-object, or "sigmoid" per class.
        num_classes: of the published weights.
        max_size: longest side in pixels of an image at prediction, whose short side is 800; None: no limit.
    """

    name: str
    build: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    scores: Literal["softmax", "sigmoid"] = "softmax"
    num_classes: int = 91
    max_size: int | None = 1333

    @property
    def row(self) -> Published:
        """What was published of it: the file, the figures, and how they came about."""
        return PUBLISHED[self.name]

    @property
    def weights(self) -> str | None:
        """Name of the published file; None where it has no address to download it from."""
        return None if self.row.url is None else self.row.file

    @property
    def sha256_prefix(self) -> str | None:
        """The hex digits that begin the SHA-256 of the published file; None where none was published."""
        return self.row.sha256

    @property
    def published(self) -> Mapping[str, float]:
        """Published figures on COCO val2017 in [0, 1], by name."""
        return self.row.published


_ARCHITECTURES = (
    Architecture("detr-r50", DETR),
    Architecture("detr-r50-dc5", DETR, {"dilation": True}),
    Architecture("detr-r101", DETR, {"backbone": "resnet101"}),
    Architecture("detr-r101-dc5", DETR, {"backbone": "resnet101", "dilation": True}),
    Architecture("detr-r50-panoptic", DETR, {"masks": True}, num_classes=250),
    Architecture("detr-r50-dc5-panoptic", DETR, {"dilation": True, "masks": True}, num_classes=250),
    Architecture("detr-r101-panoptic", DETR, {"backbone": "resnet101", "masks": True}, num_classes=250),
    Architecture("deformable-detr-r50-single-scale", DeformableDETR, {"num_feature_levels": 1}, scores="sigmoid"),
    Architecture(
        "deformable-detr-r50-single-scale-dc5",
        DeformableDETR,
        {"num_feature_levels": 1, "dilation": True},
        scores="sigmoid",
    ),
    Architecture("deformable-detr-r50", DeformableDETR, scores="sigmoid"),
    Architecture("deformable-detr-r50-refine", DeformableDETR, {"with_box_refine": True}, scores="sigmoid"),
    Architecture(
        "deformable-detr-r50-two-stage",
        DeformableDETR,
        {"with_box_refine": True, "two_stage": True},
        scores="sigmoid",
    ),
    # the notebook resizes to 800 without a maximum
    Architecture("detr-demo", DETRdemo, max_size=None),
)
ARCHITECTURES: Mapping[str, Architecture] = {a.name: a for a in _ARCHITECTURES}


def architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        SettingError: an unknown name; the message lists the known ones.
    """
    if name not in ARCHITECTURES:
        raise SettingError(f"unknown model {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def published_file(sha256: str) -> Architecture | None:
    """The architecture whose published weights have this SHA-256 (hex), or None."""
    for known in ARCHITECTURES.values():
        if known.sha256_prefix is not None and sha256.startswith(known.sha256_prefix):
            return known
    return None


def list_models() -> list[str]:
    """The names `build_model` takes."""
    return list(ARCHITECTURES)
