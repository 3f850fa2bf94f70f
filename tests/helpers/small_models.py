"""Every registered model at a size that is exported in seconds, under weights by which every layer has a say."""

from __future__ import annotations

from typing import Any

import torch

from detrkit.models.base import DetectionModel
from detrkit.models.registry import architecture
from detrkit.models.spec import ModelSpec
from detrkit.structures.classes import ClassList
from helpers.weights import randomize

CLASSES = 7
NAMES = ClassList.contiguous({i: f"class {i}" for i in range(CLASSES)})


def small_options(name: str) -> dict[str, Any]:
    """Options that make a registered model small; it keeps its levels, stages, masks and dilation."""
    arch = architecture(name)
    options: dict[str, Any] = {
        **{"hidden_dim": 32, "nheads": 4, "dim_feedforward": 64, "enc_layers": 1, "dec_layers": 2},
        **{"num_queries": 20, "backbone": "resnet10", "backbone_width": 32},
    }
    if arch.square:
        options |= {"backbone": "presnet10", "enc_hidden_dim": 32, "enc_dim_feedforward": 64}
        if "eval_layers" in arch.options:
            options |= {"dec_layers": 3, "eval_layers": 2}
    if arch.options.get("dilation"):
        options |= {"backbone": "resnet50", "backbone_width": 16}  # shallower ones have no dilated form
    if arch.takes("num_select"):
        options |= {"num_select": 30}
    if arch.takes("num_queries_one2many"):
        options |= {"num_queries_one2many": 10}
    return {option: value for option, value in options.items() if arch.takes(option)}


def small_model(name: str, *, seed: int = 1, size: int = 128, **changes: Any) -> tuple[DetectionModel, ModelSpec]:
    """A small model in eval mode, with random weights, and its spec: images of `size` pixels."""
    arch = architecture(name)
    options = small_options(name) | changes
    rule: dict[str, Any] = {} if arch.mean is None or arch.std is None else {"mean": arch.mean, "std": arch.std}
    spec = ModelSpec(
        name,
        options=options,
        num_classes=CLASSES,
        classes=NAMES,
        size=size,
        max_size=None if arch.square else size * 3 // 2,
        square=arch.square,
        **rule,
    )
    with torch.no_grad():
        model = spec.build().eval()
        randomize(model, seed)
    return model, spec
