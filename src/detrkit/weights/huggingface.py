"""Conversion of DETR, Deformable DETR and RT-DETR weights from and to Hugging Face transformers.

Official names are the intermediate format: tables rename them, and `load_official` reports what does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from detrkit.backbones import ResNetBackbone
from detrkit.models.base import DetectionModel
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.detr import DETR
from detrkit.models.dino import DINO
from detrkit.models.hybrid import HybridDeformableDETR
from detrkit.models.official_names import Rule
from detrkit.models.rtdetr import RTDETR
from detrkit.utils.errors import DetrkitError
from detrkit.weights.huggingface_rtdetr import from_rtdetr, to_rtdetr
from detrkit.weights.keymap import official_names
from detrkit.weights.official import COUNTER, bare_state_dict, load_official, to_official

# two prefixes (official, Hugging Face), and the parts that are renamed after them; the longest that fits counts
PrefixRule = tuple[str, str, Sequence[Rule]]
BackboneNames = Literal["timm", "resnet"]

_FEED_FORWARD = (("linear1", "fc1"), ("linear2", "fc2"))
_ENCODER_LAYER: PrefixRule = (
    "transformer.encoder.layers.",
    "model.encoder.layers.",
    (("norm1", "self_attn_layer_norm"), *_FEED_FORWARD, ("norm2", "final_layer_norm")),
)
_POSITIONS: tuple[PrefixRule, ...] = (
    ("backbone.1.row_embed.", "model.position_embedding.row_embeddings.", ()),
    ("backbone.1.col_embed.", "model.position_embedding.column_embeddings.", ()),
)
DETR_RULES: tuple[PrefixRule, ...] = (
    _ENCODER_LAYER,
    (
        "transformer.decoder.layers.",
        "model.decoder.layers.",
        (
            ("norm1", "self_attn_layer_norm"),
            ("multihead_attn", "encoder_attn"),
            ("norm2", "encoder_attn_layer_norm"),
            *_FEED_FORWARD,
            ("norm3", "final_layer_norm"),
        ),
    ),
    ("transformer.decoder.norm.", "model.decoder.layernorm.", ()),
    ("class_embed.", "class_labels_classifier.", ()),
    ("bbox_embed.", "bbox_predictor.", ()),
    ("query_embed.", "model.query_position_embeddings.", ()),
    ("input_proj.", "model.input_projection.", ()),
    *_POSITIONS,
)
DEFORMABLE_RULES: tuple[PrefixRule, ...] = (
    _ENCODER_LAYER,
    (
        "transformer.decoder.layers.",
        "model.decoder.layers.",
        (
            ("norm2", "self_attn_layer_norm"),  # numbered as published: 2 comes before 1
            ("cross_attn", "encoder_attn"),
            ("norm1", "encoder_attn_layer_norm"),
            *_FEED_FORWARD,
            ("norm3", "final_layer_norm"),
        ),
    ),
    ("transformer.", "model.", ()),
    ("class_embed.", "class_embed.", ()),
    ("bbox_embed.", "bbox_embed.", ()),
    ("query_embed.", "model.query_position_embeddings.", ()),
    ("input_proj.", "model.input_proj.", ()),
    *_POSITIONS,
)
MASK_RULES: tuple[PrefixRule, ...] = tuple((part, part, ()) for part in ("bbox_attention.", "mask_head."))
RULES: dict[type[DetectionModel], tuple[PrefixRule, ...]] = {DETR: DETR_RULES, DeformableDETR: DEFORMABLE_RULES}

_BODY, _BACKBONE = "backbone.0.body.", "model.backbone.conv_encoder.model."
_BLOCK = (
    *((f"conv{i + 1}", f"layer.{i}.convolution") for i in range(3)),
    *((f"bn{i + 1}", f"layer.{i}.normalization") for i in range(3)),
    ("downsample.0", "shortcut.convolution"),
    ("downsample.1", "shortcut.normalization"),
)
# timm names a ResNet as torchvision does; transformers' own has other names
BACKBONE_RULES: dict[str, tuple[PrefixRule, ...]] = {
    "timm": ((_BODY, _BACKBONE, ()),),
    "resnet": (
        (f"{_BODY}conv1.", f"{_BACKBONE}embedder.embedder.convolution.", ()),
        (f"{_BODY}bn1.", f"{_BACKBONE}embedder.embedder.normalization.", ()),
        *((f"{_BODY}layer{i + 1}.", f"{_BACKBONE}encoder.stages.{i}.layers.", _BLOCK) for i in range(4)),
    ),
}
# (name in memory, name in files) where transformers, 4 or 5, has two
_IN_MEMORY = (
    ("model.backbone.model.", _BACKBONE),
    ("model.backbone.position_embedding.", "model.position_embedding."),
    (".mlp.fc", ".fc"),
    (".o_proj.", ".out_proj."),
    *((f"bbox_attention.{part}_proj.", f"bbox_attention.{part}_linear.") for part in "qk"),
    *((f"mask_head.conv{i}.conv.", f"mask_head.lay{i}.") for i in (1, 2)),
    *((f"mask_head.conv{i}.norm.", f"mask_head.gn{i}.") for i in (1, 2)),
    *((f"mask_head.fpn_stages.{i}.fpn_adapter.", f"mask_head.adapter{i + 1}.") for i in range(3)),
    *((f"mask_head.fpn_stages.{i}.refine.conv.", f"mask_head.lay{i + 3}.") for i in range(3)),
    *((f"mask_head.fpn_stages.{i}.refine.norm.", f"mask_head.gn{i + 3}.") for i in range(3)),
    ("mask_head.output_conv.", "mask_head.out_lay."),
)


def load_huggingface(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load weights of a transformers model, strictly.

    That is `DetrForObjectDetection`, `DetrForSegmentation`, `DeformableDetrForObjectDetection`,
    `RTDetrForObjectDetection` or `RTDetrV2ForObjectDetection`.

    Args:
        model: a DETR, a Deformable DETR or an RT-DETR with the sizes of the weights.
        state_dict: the content of a `model.safetensors` or `pytorch_model.bin`, or a transformers model's own state
            dict. The backbone may be timm's (as in the published files) or transformers'. A head that several places
            share may be there once, as transformers saves it.

    Raises:
        WeightsError: the weights do not fit; the message lists what is missing, left over or of another shape, by
            official names.
        DetrkitError: transformers has no such model.
        TypeError: none of these models.
    """
    load_official(model, from_huggingface(model, state_dict))


def from_huggingface(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert weights to official names, with shared heads repeated as the official code lists them.

    Args and errors: as `load_huggingface`, but nothing is compared with the model.
    """
    if isinstance(model, RTDETR):
        return from_rtdetr(model, state_dict)
    rules = [
        (theirs, official, [(b, a) for a, b in parts])
        for names in ("timm", "resnet")
        for official, theirs, parts in _rules(model, names)
    ]
    renamed: dict[str, Tensor] = {}
    for name, tensor in bare_state_dict(state_dict).items():
        for in_memory, in_files in _IN_MEMORY:
            name = name.replace(in_memory, in_files)
        renamed[_renamed(name, rules) or name] = tensor
    return _with_copies(_packed(renamed), model)


def to_huggingface(model: nn.Module, *, backbone: BackboneNames = "timm") -> dict[str, Tensor]:
    """Return the model's state dict as transformers reads it: the inverse of `load_huggingface`.

    `detrkit.weights.checkpoint.save_huggingface` writes it with the configuration that `from_pretrained` needs.

    Args:
        model: a DETR, a Deformable DETR or an RT-DETR.
        backbone: the names of the ResNet: timm's (the published files, and the only one that transformers can
            dilate), or those of transformers' own. RT-DETR's backbone has one kind.

    Returns:
        Contiguous copies, none of which share memory.

    Raises:
        DetrkitError: transformers has no such model.
        TypeError: neither a DETR nor a Deformable DETR.
        ValueError: an unknown backbone.
    """
    if backbone not in BACKBONE_RULES:
        raise ValueError(f"backbone is {backbone!r}: choose timm or resnet")
    if isinstance(model, RTDETR):
        return to_rtdetr(model)
    rules = _rules(model, backbone)
    body: Any = model.backbone
    if backbone == "resnet" and body.strides[-1] < 2 ** body.stages[-1]:
        raise DetrkitError("transformers' own ResNet has no dilation (DC5): use backbone='timm'")
    state: dict[str, Tensor] = {}
    for official, tensor in to_official(model).items():
        if official.endswith(COUNTER):
            continue  # transformers' norms are frozen
        name = _renamed(official, rules)
        if name is None:
            raise DetrkitError(f"transformers has no {type(model).__name__} with {official}")
        parts = {name: tensor}
        if packed := re.search(r"in_proj_(\w+)$", name):
            split = (name.replace(packed[0], f"{part}_proj.{packed[1]}") for part in "qkv")
            parts = dict(zip(split, tensor.chunk(3), strict=True))
        state |= {n: part.clone(memory_format=torch.contiguous_format) for n, part in parts.items()}
    return state


def _rules(model: nn.Module, backbone: str) -> list[PrefixRule]:
    """Return the rules of a model's kind, with those of its backbone.

    Raises:
        DetrkitError: the model computes what transformers' does not, with parameters of the same names.
        TypeError: neither a DETR nor a Deformable DETR.
    """
    if isinstance(model, (HybridDeformableDETR, DINO)):
        raise DetrkitError(
            f"transformers has no {type(model).__name__}: use a detrkit file (.safetensors) or an official one (.pth)"
        )
    if isinstance(model, DeformableDETR) and model.mixed_selection:
        raise DetrkitError(
            "transformers has no Deformable DETR with mixed_selection: use a detrkit file (.safetensors) or an "
            "official one (.pth)"
        )
    kind = next((kind for kind in RULES if isinstance(model, kind)), None)
    if kind is None or not isinstance(model, DetectionModel):
        raise TypeError(f"{type(model).__name__} has no Hugging Face names: expected a DETR or a DeformableDETR")
    backbone_module: Any = model.backbone
    if not isinstance(backbone_module, ResNetBackbone):
        raise DetrkitError(
            f"detrkit has no Hugging Face names for the backbone {backbone_module.name}: use a detrkit file "
            "(.safetensors)"
        )
    if backbone_module.norm == "group":
        raise DetrkitError(
            "transformers has no backbone with backbone_norm='group', which random weights have by default: train with "
            "--backbone-norm batch, or from trained weights (--backbone-weights imagenet or --init-from), which have "
            "'frozen'; or use a detrkit file (.safetensors)"
        )
    if isinstance(model, DeformableDETR) and (groups := model.projection_norms[0].num_groups) != 32:
        raise DetrkitError(
            f"transformers normalizes projections in 32 groups, this model in {groups}: hidden_dim >= 128"
        )
    rules = [*RULES[kind], *BACKBONE_RULES[backbone]]
    if model.segmentation is None:
        return rules
    if kind is DeformableDETR:
        raise DetrkitError("transformers has no Deformable DETR with masks")
    norms: Any = model.segmentation.head.norms
    if any(norm.num_groups != min(8, norm.num_channels) for norm in norms):
        raise DetrkitError("transformers' mask head normalizes in 8 groups, this model's in others: hidden_dim 2 ** n")
    return [*((f"detr.{ours}", f"detr.{theirs}", parts) for ours, theirs, parts in rules), *MASK_RULES]


def _renamed(name: str, rules: Sequence[PrefixRule]) -> str | None:
    """Rename by the rule of the longest prefix that fits; None where none does."""
    fitting = [rule for rule in rules if name.startswith(rule[0])]
    if not fitting:
        return None
    before, after, parts = max(fitting, key=lambda rule: len(rule[0]))
    rest = name[len(before) :]
    for ours, theirs in parts:
        rest = rest.replace(f".{ours}.", f".{theirs}.")
    return after + rest


def _packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pack query, key and value projections in one tensor, where all three are there and alike."""
    packed = dict(state)
    for name, query in state.items():
        if query.ndim and (m := re.fullmatch(r"(.+\.)q_proj\.(\w+)", name)):
            parts = [f"{m[1]}{part}_proj.{m[2]}" for part in "qkv"]
            if all(part in state and state[part].shape == query.shape for part in parts):
                packed[f"{m[1]}in_proj_{m[2]}"] = torch.cat([packed.pop(part) for part in parts])
    return packed


def _with_copies(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Repeat the shared heads as often as the official code lists them."""
    names = official_names(model)
    complete = dict(state)
    owner = {ours: theirs for theirs, ours in names if theirs in state}
    for theirs, ours in names:
        if ours in owner:
            complete.setdefault(theirs, state[owner[ours]])
    # transformers 5 ties the class heads under box refinement alone, too: then the first stands for all
    one = not any(re.match(r"class_embed\.[1-9]|transformer\.decoder\.class_embed\.", name) for name in complete)
    for theirs, _ in names:
        first = re.sub(r"^class_embed\.\d+", "class_embed.0", theirs)
        if one and first in complete:
            complete.setdefault(theirs, complete[first])
    return complete
