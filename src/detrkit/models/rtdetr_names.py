"""Names of the original code of RT-DETR and RT-DETRv2: their tensors, and what they tell of the model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detrkit.backbones import PResNetBackbone
from detrkit.backbones.presnet import BASIC, DEPTHS
from detrkit.models.official_names import OfficialNames, Rule, blocks
from detrkit.models.proposals import make_anchors
from detrkit.utils.errors import DetrkitError

if TYPE_CHECKING:
    from detrkit.models.rtdetr import RTDETR

RTDETR_HEAD = "decoder.dec_score_head."  # in both versions, and in no other code
_SIZE = 640  # pixels: of the square that the original code makes its anchors for
_STRIDES = (8, 16, 32)
# constants that the second version saves with the weights
_CONSTANTS = re.compile(r"decoder\.(?:anchors|valid_mask)|encoder\.pos_embed\d|.*\.num_points_scale")
_V1, _V2 = ("0.", "1."), ("conv.", "norm.")


def rtdetr_rules(model: RTDETR) -> Iterator[Rule]:
    """Yield the rules of lyuwenyu/RT-DETR, rtdetr_pytorch."""
    yield from _rtdetr_rules(model, projection=_V1, memory=_V1)


def rtdetrv2_rules(model: RTDETR) -> Iterator[Rule]:
    """Yield the rules of lyuwenyu/RT-DETR, rtdetrv2_pytorch."""
    yield from _rtdetr_rules(model, projection=_V2, memory=("proj.", "norm."))


def _rtdetr_rules(model: RTDETR, *, projection: tuple[str, str], memory: tuple[str, str]) -> Iterator[Rule]:
    """Yield the rules of both versions, which name two parts differently.

    Raises:
        DetrkitError: another backbone.
    """
    if not isinstance(model.backbone, PResNetBackbone):
        raise DetrkitError(
            f"the official code of RT-DETR has no backbone {model.backbone.name}, and no names for it: use a detrkit "
            "file (.safetensors)"
        )
    yield "backbone.body.", "backbone."
    for level in range(len(model.projections)):
        for ours, theirs in zip(_V2, projection, strict=True):
            yield f"encoder.input_proj.{level}.{ours}", f"encoder.input_proj.{level}.{theirs}"
    yield "encoder.encoder.", "encoder.encoder.0."
    for part in ("lateral_convs", "fpn_blocks", "downsample_convs", "pan_blocks"):
        yield f"encoder.{part}.", f"encoder.{part}."
    yield "projections.", "decoder.input_proj."
    for i in range(len(model.decoder)):
        for ours, theirs in (
            ("self_attention", "self_attn"),
            ("norm2", "norm1"),
            ("cross_attention", "cross_attn"),
            ("norm1", "norm2"),
            ("feed_forward.linear1", "linear1"),
            ("feed_forward.linear2", "linear2"),
            ("norm3", "norm3"),
        ):
            yield f"decoder.{i}.{ours}.", f"decoder.decoder.layers.{i}.{theirs}."
    yield "label_embed.", "decoder.denoising_class_embed."
    yield "query_position.", "decoder.query_pos_head."
    yield "proposal_memory.", f"decoder.enc_output.{memory[0]}"
    yield "proposal_memory_norm.", f"decoder.enc_output.{memory[1]}"
    last = len(model.decoder)
    yield f"class_heads.{last}.", "decoder.enc_score_head."
    yield f"box_heads.{last}.", "decoder.enc_bbox_head."
    for i in range(last):
        yield f"class_heads.{i}.", f"decoder.dec_score_head.{i}."
    for i in range(last):
        yield f"box_heads.{i}.", f"decoder.dec_bbox_head.{i}."


def infer_rtdetr(state: Mapping[str, Tensor], width: int, masks: bool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the options of an RT-DETR or RT-DETRv2; whether it samples whole cells does not show.

    Nor does the number of layers that predict: a model of R50-m's sizes counts as one, which uses 3 of 6. Norms of
    shallow backbones are trained, those of deeper ones frozen, as published.
    """
    options: dict[str, Any] = {"hidden_dim": width}
    counts = [blocks(state, rf"^backbone\.res_layers\.{i}\.blocks\.(\d+)\.") for i in range(4)]
    bottleneck = any(".branch2c." in name for name in state)
    backbone = next((n for n, d in DEPTHS.items() if list(d) == counts and (n not in BASIC) == bottleneck), None)
    if backbone is not None:
        options |= {"backbone": backbone, "backbone_norm": "batch" if backbone in BASIC else "frozen"}
    for option, name in (
        ("backbone_width", "backbone.conv1.conv1_3.conv.weight"),
        ("enc_hidden_dim", "encoder.lateral_convs.0.conv.weight"),
        ("enc_dim_feedforward", "encoder.encoder.0.layers.0.linear1.weight"),
        ("dim_feedforward", "decoder.decoder.layers.0.linear1.weight"),
    ):
        if name in state:
            options[option] = len(state[name])
    options["enc_layers"] = blocks(state, r"^encoder\.encoder\.0\.layers\.(\d+)\.")
    options["dec_layers"] = blocks(state, r"^decoder\.decoder\.layers\.(\d+)\.")
    inner = state.get("encoder.fpn_blocks.0.conv1.conv.weight")
    if inner is not None and options.get("enc_hidden_dim"):
        options["enc_expansion"] = len(inner) / options["enc_hidden_dim"]
    if (backbone, options.get("enc_expansion"), options["dec_layers"]) == ("presnet50", 0.5, 6):
        options["eval_layers"] = 3
    return options | _infer_points(state)


def _infer_points(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer sampled points and heads from the second version's constants: of each point, 1 / (its level's points)."""
    scale = state.get("decoder.decoder.layers.0.cross_attn.num_points_scale")
    rows = state.get("decoder.decoder.layers.0.cross_attn.attention_weights.weight")
    if scale is None or rows is None or scale.ndim != 1 or not len(scale):
        return {}
    if scale.is_meta:  # names and shapes alone
        return {}
    points, rest = [], [round(1 / float(value)) if value > 0 else 1 for value in scale]
    while rest:
        points.append(rest[0])
        rest = rest[max(1, rest[0]) :]
    options: dict[str, Any] = {"nheads": max(1, len(rows) // len(scale))}
    if len(set(points)) == 1:
        return options | {"dec_n_points": points[0]}
    return options | {"dec_n_points": max(points), "level_points": tuple(points)}


def without_constants(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without anchors and the like, which belong to one size of images: detrkit computes them."""
    return {name: tensor for name, tensor in state.items() if not _CONSTANTS.fullmatch(name)}


def first_version(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by the names of the first version; files of its own code have either."""
    renamed = {}
    for name, tensor in without_constants(state).items():
        if m := re.fullmatch(r"(encoder\.input_proj\.\d+|decoder\.enc_output)\.(conv|proj|norm)\.(\w+)", name):
            name = f"{m[1]}.{1 if m[2] == 'norm' else 0}.{m[3]}"
        renamed[name] = tensor
    return renamed


def constants(model: RTDETR) -> dict[str, Tensor]:
    """Return what the second version's code expects in a file beside the weights: see `without_constants`."""
    shapes = [(_SIZE // stride, _SIZE // stride) for stride in _STRIDES]
    sizes = torch.tensor([[(float(w), float(h)) for h, w in shapes]])
    padding_mask = torch.zeros(1, sum(h * w for h, w in shapes), dtype=torch.bool)
    anchors = make_anchors(shapes, sizes, padding_mask)
    entries = {"decoder.anchors": anchors.logits, "decoder.valid_mask": anchors.valid[..., None]}
    for i, points in enumerate(model.points_by_level):
        scale = torch.tensor([1 / n for n in points for _ in range(n)])
        entries[f"decoder.decoder.layers.{i}.cross_attn.num_points_scale"] = scale
    return entries


RTDETR_NAMES = OfficialNames(
    rules=rtdetr_rules,
    signature=(("decoder.enc_output.0.weight", 0), ("decoder.input_proj.0.conv.weight", 0)),
    infer=infer_rtdetr,
    prepare=first_version,
)
RTDETRV2_NAMES = OfficialNames(
    rules=rtdetrv2_rules,
    signature=(("decoder.enc_output.proj.weight", 0),),
    infer=infer_rtdetr,
    prepare=without_constants,
    constants=constants,
)
