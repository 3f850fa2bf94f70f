"""Every model of the toolkit, small enough to explain an image in a tenth of a second."""

from __future__ import annotations

from typing import Any

import torch

from detrkit.backbones.base import Padding
from detrkit.detector import Detector
from detrkit.models.registry import list_models
from detrkit.structures.classes import ClassList
from detrkit.weights.checkpoint import ModelSpec

CLASSES = ClassList(("cat", "dog", "grass"), (1, 7, 9), (True, True, False))
TINY = {
    "backbone": "resnet10",
    "hidden_dim": 32,
    "nheads": 4,
    "dim_feedforward": 32,
    "enc_layers": 2,
    "dec_layers": 3,
    "num_queries": 12,
}
NARROW = {"backbone_norm": "group", "backbone_width": 8}
DILATED = {"backbone": "resnet50"}  # torchvision dilates no smaller one


def options_of(name: str, **changed: Any) -> dict[str, Any]:
    """Options that make a registered model small; its kind stays as it is."""
    narrow = {"backbone_norm": "frozen"} if name == "detr-demo" else NARROW
    dilated = DILATED if "dc5" in name else {}
    return {**TINY, **narrow, **dilated, **changed}


# by a short name: the registered one, and options
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in list_models() if not name.startswith("rtdetr")},
    "rtdetrv2-r18": ("rtdetrv2-r18", {"backbone": "presnet10", "enc_hidden_dim": 32, "enc_dim_feedforward": 32}),
    "no-aux": ("detr-r50", {"aux_loss": False}),
    "no-aux-deformable": ("deformable-detr-r50", {"aux_loss": False}),
    "pre-norm": ("detr-r50", {"pre_norm": True}),
    "learned": ("detr-r50", {"position_embedding": "learned"}),
    "learned-deformable": ("deformable-detr-r50", {"position_embedding": "learned"}),
    "no-encoder": ("detr-r50", {"enc_layers": 0}),
    "instance": ("detr-r50", {"masks": True}),
    "instance-two-stage": ("deformable-detr-r50-two-stage", {"masks": True, "num_feature_levels": 2}),
    "two-stage-points": (
        "deformable-detr-r50-two-stage",
        {"num_feature_levels": 2, "enc_n_points": 3, "dec_n_points": 2},
    ),
    "timm": ("detr-r50", {"backbone": "timm:resnet10t.c3_in1k", "backbone_norm": "frozen", "backbone_width": 64}),
}


def detector_of(
    kind: str, *, panoptic: bool = False, seed: int = 0, size: int = 128, padding: Padding = "exact", **changed: Any
) -> Detector:
    """A detector with random weights whose scores, boxes and attention differ from query to query.

    Args:
        kind: a key of `KINDS`.
        panoptic: one of its three classes is stuff.
        seed: of the weights.
        size: short side of the input in pixels.
        padding: of the model.
        changed: options of the model.
    """
    name, options = KINDS[kind]
    classes = CLASSES if panoptic else ClassList(CLASSES.names, CLASSES.ids)
    torch.manual_seed(seed)
    options = options_of(name, **options | changed)
    spec = ModelSpec(name, options, num_classes=3, classes=classes, size=size, max_size=4 * size, padding=padding)
    model = spec.build()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1 or not parameter.any():  # zeros and ones of the initialization
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif parameter.ndim == 2:
                parameter.mul_(5 if "head" in parameter_name else 2)
        if hasattr(model, "class_head"):
            model.class_head.bias[-1] -= 3  # "no object"
    return Detector(model, spec, device="cpu")
