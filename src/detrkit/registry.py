"""Model names: what each builds, how it is trained and post-processed, and which published file belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from detrkit.models.deformable_detr import DeformableDETR
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
        max_size: longest side in pixels of an image at evaluation, whose short side is 800; None: no limit.
        published: published figures on COCO val2017, by metric.
    """

    name: str
    build: Callable[..., nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    scores: Literal["softmax", "sigmoid"] = "softmax"
    num_classes: int = 91
    max_size: int | None = 1333
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
    Architecture(
        "detr-r50-panoptic",
        DETR,
        {"masks": True},
        weights="detr-r50-panoptic-00ce5173.pth",
        num_classes=250,
        published={"AP": 0.388, "AP_segm": 0.311, "PQ": 0.434},
    ),
    Architecture(
        "detr-r50-dc5-panoptic",
        DETR,
        {"dilation": True, "masks": True},
        weights="detr-r50-dc5-panoptic-da08f1b1.pth",
        num_classes=250,
        published={"AP": 0.402, "AP_segm": 0.319, "PQ": 0.446},
    ),
    Architecture(
        "detr-r101-panoptic",
        DETR,
        {"backbone": "resnet101", "masks": True},
        weights="detr-r101-panoptic-40021d53.pth",
        num_classes=250,
        published={"AP": 0.401, "AP_segm": 0.330, "PQ": 0.451},
    ),
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
    Architecture("detr-demo", DETRdemo, weights="detr_demo-da2a99e9.pth", max_size=None, published={"AP": 0.40}),
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


def published_file(sha256: str) -> Architecture | None:
    """The architecture whose published weights have this SHA-256 (hex), or None."""
    for known in ARCHITECTURES.values():
        if known.sha256_prefix is not None and sha256.startswith(known.sha256_prefix):
            return known
    return None


def list_models() -> list[str]:
    """The names `build_model` takes."""
    return list(ARCHITECTURES)
