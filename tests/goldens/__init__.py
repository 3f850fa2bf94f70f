"""Reference numbers of the official code (`index.json`, `*.npz`) and what tests need to use them.

All weights and inputs come from the formula in `filler.py`; the files hold outputs of the official DETR code
(commit 29901c51) for them. Tolerances separate float noise from mistakes: the official code differs from itself by at
most 2.6e-5 in logits, 5.6e-6 in boxes and 2.9e-4 in mask logits (thread counts, oneDNN, float64), a wrong epsilon by
1e-4 in logits.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detrkit.convert import load_official
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.demo import DETRdemo
from detrkit.models.detr import DETR
from detrkit.structures.outputs import Target
from detrkit.weights.keymap import official_names
from goldens import filler

HERE = Path(__file__).parent
ATOL = {
    "pred_logits": 6e-5,
    "aux_logits": 6e-5,
    "pred_boxes": 2e-5,  # as the goldens' own page recommends
    "pred_masks": 6e-4,
    "pred_masks_mean_hw": 1e-5,
    "aux_boxes": 2e-5,
    "hs": 1.5e-4,
    "memory": 1e-4,
    "feature": 1.5e-4,
    "input_proj": 5e-5,
    "conv": 1.5e-4,
    "pos": 5e-6,
    "mask": 0,
    "init_reference": 2e-5,
    "inter_references": 2e-5,
    "enc_logits": 3e-5,
    "enc_scores": 3e-5,
    "enc_boxes": 5e-6,
    "topk_indices": 0,
}
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "detr_resnet50": (DETR, {}),
    "detr_resnet50_dc5": (DETR, {"dilation": True}),
    "detr_resnet101": (DETR, {"backbone": "resnet101"}),
    "detr_resnet101_dc5": (DETR, {"backbone": "resnet101", "dilation": True}),
    "detr_resnet50_panoptic": (DETR, {"masks": True, "num_classes": 250}),
    "detr_resnet50_dc5_panoptic": (DETR, {"masks": True, "num_classes": 250, "dilation": True}),
    "detr_resnet101_panoptic": (DETR, {"masks": True, "num_classes": 250, "backbone": "resnet101"}),
    "detr_resnet50_prenorm": (DETR, {"pre_norm": True, "enc_layers": 3, "dec_layers": 3}),
    "detr_demo": (DETRdemo, {}),
    "deformable_single_scale": (DeformableDETR, {"num_feature_levels": 1}),
    "deformable_single_scale_dc5": (DeformableDETR, {"num_feature_levels": 1, "dilation": True}),
    "deformable_multi_scale": (DeformableDETR, {}),
    "deformable_refine": (DeformableDETR, {"with_box_refine": True}),
    "deformable_two_stage": (DeformableDETR, {"with_box_refine": True, "two_stage": True}),
}


@cache
def _index() -> dict[str, dict[str, Any]]:
    return {c["file"]: c for c in json.loads((HERE / "index.json").read_text())["cases"]}


def cases(kind: str) -> list[dict[str, Any]]:
    """The entries of one kind: model_forward, criterion, gradients, postprocess, ..."""
    return [c for c in _index().values() if c["kind"] == kind]


def arrays(file: str) -> dict[str, np.ndarray]:
    with np.load(HERE / file) as f:
        return {k: f[k] for k in f.files}


def entries(variant: str) -> list[tuple[str, list[int], str, int]]:
    """(official name, shape, fill name, CRC-32 of the values) in official order."""
    return json.loads((HERE / "params" / f"{variant}.json").read_text())["entries"]


@cache
def _filled(name: str, shape: tuple[int, ...]) -> Tensor:
    # variants share most of their values: the cache holds one ResNet-101 and one transformer in all
    return torch.from_numpy(filler.fill(name, shape))


def filled(variant: str, *, num_queries: int | None = None) -> dict[str, Tensor]:
    """The official state dict of a variant, or of one with another number of queries."""
    state = {}
    for name, shape, fill, _ in entries(variant):
        if num_queries is not None and name.endswith("query_embed.weight"):
            shape = [num_queries, *shape[1:]]
        state[name] = _filled(fill, tuple(shape))
    return state


def fill(model: nn.Module, seed: int) -> nn.Module:
    """Gives any model other weights of the same formula: every seed others, every name and shape always the same."""
    values: dict[str, Tensor] = {}
    for theirs, ours in official_names(model):
        if ours not in values:
            shape = tuple(model.state_dict()[ours].shape)
            values[ours] = torch.from_numpy(filler.fill(theirs, shape, salt=f"seed{seed}"))
    model.load_state_dict(values)
    return model


@lru_cache(maxsize=1)
def model(variant: str) -> nn.Module:
    """A variant with filled weights, in eval mode. One is kept: group tests by variant."""
    kind, options = VARIANTS[variant]
    built = kind(**options).eval()
    load_official(built, filled(variant))
    return built


def set_padding(model: nn.Module, padding: str) -> None:
    """Switches a model between "exact" and "official" without building it again."""
    model.backbone.padding = padding
    if hasattr(model, "padding"):
        model.padding = padding


def image(key: str, height: int, width: int) -> Tensor:
    """(3, H, W) input by key; "=v" is constant."""
    if key.startswith("="):
        return torch.full((3, height, width), float(key[1:]))
    return torch.from_numpy(filler.image(key, height, width))


def images(case: dict[str, Any]) -> list[Tensor]:
    return [image(*row) for row in case["images"]]


def targets(data: dict[str, np.ndarray]) -> list[Target]:
    return [
        Target(
            torch.from_numpy(data[f"target{b}_labels"]).long(),
            torch.from_numpy(data[f"target{b}_boxes"]).reshape(-1, 4),
            unpacked(data, f"target{b}_masks") if f"target{b}_masks_packed" in data else None,
        )
        for b in range(len(data["target_counts"]))
    ]


def unpacked(data: dict[str, np.ndarray], name: str) -> Tensor:
    """Masks that are stored as packed bits."""
    shape = data[f"{name}_shape"]
    bits = np.unpackbits(data[f"{name}_packed"], count=int(np.prod(shape)))
    return torch.from_numpy(bits.reshape(shape).astype(bool))


def difference(file: str, name: str, value: Tensor) -> float:
    """Largest absolute difference to a golden array; a subsampled one gets the full tensor."""
    data, described = arrays(file), _index()[file]["arrays"]
    got = value.detach().cpu().double().numpy()
    if name not in data:
        row = described[f"{name}__sub"]
        assert list(got.shape) == row["full_shape"], (name, got.shape, row["full_shape"])
        stats = data[f"{name}__stats"]
        norm = float(np.sqrt((got**2).sum()))
        assert abs(norm - stats[5]) <= 1e-4 * stats[5], (name, norm, stats[5])
        got = got[tuple(slice(None, None, s) for s in row["strides"])]
        name = f"{name}__sub"
    assert got.shape == data[name].shape, (name, got.shape, data[name].shape)
    return float(np.abs(got - data[name].astype(np.float64)).max(initial=0.0))
