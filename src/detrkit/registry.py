"""Model names: what each builds, how it is trained and post-processed, and which published file belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from detrkit.models.demo import DETRdemo
from detrkit.models.detr import DETR

OFFICIAL_URL = "https://dl.fbaipublicfiles.com/detr/"


@dataclass(frozen=True)
class Architecture:
    """A named model.

    Attributes:
        name: as `build_model` takes it.
        build: the model's class; takes official argument names as keywords.
        options: the arguments that make this variant.
        weights: file name of the published weights under OFFICIAL_URL; the hex digits in it begin its SHA-256.
        scores: how logits become scores: "softmax" over classes and no-object, or "sigmoid" per class.
        num_classes: of the published weights.
        published: published figures on COCO val2017, by metric.
    """

    name: str
    build: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    scores: Literal["softmax", "sigmoid"] = "softmax"
    num_classes: int = 91
    published: Mapping[str, float] = field(default_factory=dict)

    @property
    def sha256_prefix(self) -> str | None:
        """The eight hex digits in the file name, which begin the file's SHA-256."""
        return None if self.weights is None else self.weights.rsplit("-", 1)[1].removesuffix(".pth")


_ARCHITECTURES = (
    Architecture(
        "detr-r50",
        DETR,
        weights="detr-r50-e632da11.pth",
        published={"AP": 0.420, "AP50": 0.624},
    ),
    Architecture(
        "detr-r50-dc5",
        DETR,
        {"dilation": True},
        weights="detr-r50-dc5-f0fb7ef5.pth",
        published={"AP": 0.433, "AP50": 0.631},
    ),
    Architecture(
        "detr-r101",
        DETR,
        {"backbone": "resnet101"},
        weights="detr-r101-2c7b67e5.pth",
        published={"AP": 0.435, "AP50": 0.638},
    ),
    Architecture(
        "detr-r101-dc5",
        DETR,
        {"backbone": "resnet101", "dilation": True},
        weights="detr-r101-dc5-a2e86def.pth",
        published={"AP": 0.449, "AP50": 0.647},
    ),
    Architecture("detr-demo", DETRdemo, weights="detr_demo-da2a99e9.pth", published={"AP": 0.40}),
)
ARCHITECTURES: Mapping[str, Architecture] = {a.name: a for a in _ARCHITECTURES}


def architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def list_models() -> list[str]:
    """The names `build_model` takes."""
    return list(ARCHITECTURES)
