"""RT-DETR and RT-DETRv2 from and to Hugging Face transformers: names of the weights, and config.json.

transformers converts the original weights to names of its own for all parts; here each of detrkit's names has its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.backbones import PResNetBackbone
from detrkit.backbones.presnet import BASIC, DEPTHS
from detrkit.models.rtdetr import RTDETR, RTDETRv2
from detrkit.models.settings import constructor_defaults
from detrkit.utils.documents import shown
from detrkit.utils.errors import DetrkitError
from detrkit.weights.keymap import official_names
from detrkit.weights.official import COUNTER, bare_state_dict

KINDS: dict[str, type[RTDETR]] = {"rt_detr": RTDETR, "rt_detr_v2": RTDETRv2}
_CLASSES = {RTDETR: "RTDetrForObjectDetection", RTDETRv2: "RTDetrV2ForObjectDetection"}
# (transformers', detrkit's) fields of the same meaning
_FIELDS = (
    ("encoder_hidden_dim", "enc_hidden_dim"),
    ("encoder_ffn_dim", "enc_dim_feedforward"),
    ("encoder_layers", "enc_layers"),
    ("hidden_expansion", "enc_expansion"),
    ("d_model", "hidden_dim"),
    ("decoder_ffn_dim", "dim_feedforward"),
    ("decoder_layers", "dec_layers"),
    ("decoder_n_points", "dec_n_points"),
    ("decoder_attention_heads", "nheads"),
    ("num_queries", "num_queries"),
    ("num_denoising", "dn_number"),
    ("label_noise_ratio", "dn_label_noise_ratio"),
    ("box_noise_scale", "dn_box_noise_scale"),
    ("dropout", "dropout"),
)
# fields that transformers can change and detrkit cannot
_ONLY: Mapping[str, Any] = {
    "activation_function": "silu",
    "encoder_activation_function": "gelu",
    "decoder_activation_function": "relu",
    "normalize_before": False,
    "learn_initial_query": False,
    "with_box_refine": True,
    "num_feature_levels": 3,
    "decoder_n_levels": 3,
    "decoder_offset_scale": 0.5,
    "positional_encoding_temperature": 10000,
    "encode_proj_layers": [2],
    "feat_strides": [8, 16, 32],
    "layer_norm_eps": 1e-5,
    "batch_norm_eps": 1e-5,
}
_PARTS = {"conv": "convolution", "norm": "normalization"}
_SEQUENTIAL = {"conv": "0", "norm": "1"}
_ENCODER_LAYER = {
    "self_attention": "self_attn",
    "norm1": "self_attn_layer_norm",
    "feed_forward.linear1": "fc1",
    "feed_forward.linear2": "fc2",
    "norm2": "final_layer_norm",
}
_DECODER_LAYER = {
    "self_attention": "self_attn",
    "norm2": "self_attn_layer_norm",  # numbered as in Deformable DETR: 2 comes before 1
    "cross_attention": "encoder_attn",
    "norm1": "encoder_attn_layer_norm",
    "feed_forward.linear1": "fc1",
    "feed_forward.linear2": "fc2",
    "norm3": "final_layer_norm",
}
# (name in memory of transformers 5, name in files)
_IN_MEMORY = ((".mlp.fc", ".fc"), (".o_proj.", ".out_proj."), ("model.encoder.aifi.", "model.encoder.encoder."))
# computed by detrkit, or no weight
_LEFT_OUT = re.compile(r"(?:.*\.)?(?:n_points_scale|anchors|valid_mask|pos_embed\d|num_batches_tracked)")


def from_rtdetr(model: RTDETR, state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert weights of transformers to official names; entries that no name fits keep theirs.

    Args:
        model: with the sizes of the weights.
        state_dict: as of `detrkit.weights.huggingface.load_huggingface`.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in bare_state_dict(state_dict).items():
        for in_memory, in_files in _IN_MEMORY:
            name = name.replace(in_memory, in_files)
        state[name] = tensor
    official: dict[str, Tensor] = {}
    used: set[str] = set()
    for theirs, ours in official_names(model):
        for names in _names(ours, model):  # of which one is enough
            used.update(names)
            if theirs not in official and all(name in state for name in names):
                parts = [state[name] for name in names]
                alike = all(part.ndim and part.shape == parts[0].shape for part in parts)
                official[theirs] = torch.cat(parts) if len(parts) > 1 and alike else parts[0]
    rest = {n: t for n, t in state.items() if n not in used and not _LEFT_OUT.fullmatch(n)}
    return official | rest


def to_rtdetr(model: RTDETR) -> dict[str, Tensor]:
    """Return the model's state dict as transformers reads it: the inverse of `from_rtdetr`.

    Raises:
        DetrkitError: a backbone or an option that transformers does not have.
    """
    _check_backbone(model)
    state: dict[str, Tensor] = {}
    for ours, tensor in model.state_dict().items():
        if ours.startswith("backbone.") and ours.endswith(COUNTER) and model.backbone.norm == "frozen":
            continue
        # transformers 5 lists the heads of the first version once, and reads those of 4, which it lists twice, likewise
        for names in _names(ours, model)[: None if isinstance(model, RTDETRv2) else 1]:
            parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
            state |= {n: p.clone(memory_format=torch.contiguous_format) for n, p in zip(names, parts, strict=True)}
    if isinstance(model, RTDETRv2):
        for i, points in enumerate(model.points_by_level):
            scale = torch.tensor([1 / n for n in points for _ in range(n)])
            state[f"model.decoder.layers.{i}.encoder_attn.n_points_scale"] = scale
    return state


def _names(ours: str, model: RTDETR) -> list[tuple[str, ...]]:
    """Return the names in files of transformers of an entry of detrkit's state dict.

    Heads are there twice. A packed projection has three names, of its parts.
    """
    last = len(model.decoder)
    if m := re.fullmatch(r"(class|box)_heads\.(\d+)\.(.+)", ours):
        score, box = ("enc_score_head", "class_embed"), ("enc_bbox_head", "bbox_embed")
        of_encoder, of_decoder = score if m[1] == "class" else box
        if int(m[2]) == last:
            return [(f"model.{of_encoder}.{m[3]}",)]
        name = f"{of_decoder}.{m[2]}.{m[3]}"
        return [(f"model.decoder.{name}",), (name,)]
    name = _renamed(ours)
    if m := re.fullmatch(r"(.+\.)in_proj_(\w+)", name):
        return [tuple(f"{m[1]}{part}_proj.{m[2]}" for part in "qkv")]
    return [(name,)]


def _renamed(ours: str) -> str:
    if m := re.fullmatch(r"backbone\.body\.conv1\.conv1_(\d)\.(conv|norm)\.(.+)", ours):
        return f"model.backbone.model.embedder.embedder.{int(m[1]) - 1}.{_PARTS[m[2]]}.{m[3]}"
    if m := re.fullmatch(r"backbone\.body\.res_layers\.(\d+)\.blocks\.(\d+)\.(.+)", ours):
        return f"model.backbone.model.encoder.stages.{m[1]}.layers.{m[2]}.{_block(m[3])}"
    if m := re.fullmatch(r"encoder\.input_proj\.(\d+)\.(conv|norm)\.(.+)", ours):
        return f"model.encoder_input_proj.{m[1]}.{_SEQUENTIAL[m[2]]}.{m[3]}"
    if m := re.fullmatch(r"projections\.(\d+)\.(conv|norm)\.(.+)", ours):
        return f"model.decoder_input_proj.{m[1]}.{_SEQUENTIAL[m[2]]}.{m[3]}"
    if m := re.fullmatch(r"encoder\.encoder\.layers\.(\d+)\.(.+)", ours):
        return f"model.encoder.encoder.0.layers.{m[1]}.{_layer(m[2], _ENCODER_LAYER)}"
    if m := re.fullmatch(r"decoder\.(\d+)\.(.+)", ours):
        return f"model.decoder.layers.{m[1]}.{_layer(m[2], _DECODER_LAYER)}"
    for before, after in (
        ("label_embed.", "denoising_class_embed."),
        ("query_position.", "decoder.query_pos_head."),
        ("proposal_memory.", "enc_output.0."),
        ("proposal_memory_norm.", "enc_output.1."),
        ("", ""),  # the encoder's convolutions
    ):
        if ours.startswith(before):
            return f"model.{after}{ours.removeprefix(before)}"
    raise AssertionError(ours)


def _block(part: str) -> str:
    """Rename a part of a block of the backbone."""
    if m := re.fullmatch(r"branch2([abc])\.(conv|norm)\.(.+)", part):
        return f"layer.{'abc'.index(m[1])}.{_PARTS[m[2]]}.{m[3]}"
    m = re.fullmatch(r"short\.(conv\.)?(conv|norm)\.(.+)", part)
    assert m is not None
    return f"shortcut.{'1.' if m[1] else ''}{_PARTS[m[2]]}.{m[3]}"


def _layer(part: str, names: Mapping[str, str]) -> str:
    """Rename a part of a transformer layer."""
    before = next(name for name in names if part.startswith(f"{name}."))
    return names[before] + part.removeprefix(before)


def _check_backbone(model: nn.Module) -> None:
    """Check that transformers has the backbone.

    Raises:
        DetrkitError: it has not.
    """
    backbone: Any = model.backbone
    if not isinstance(backbone, PResNetBackbone) or backbone.norm == "group":
        raise DetrkitError(
            f"transformers' RT-DETR has no backbone {backbone.name} with backbone_norm={backbone.norm!r}: use a "
            "detrkit file (.safetensors)"
        )


def options_of(path: Path, config: Mapping[str, Any], kind: type[RTDETR]) -> dict[str, Any]:
    """Read the options of a model from config.json.

    Args:
        path: of the file, for messages.
        config: its content.
        kind: the model's class.

    Raises:
        DetrkitError: a field with a value that detrkit does not have.
    """
    for field, only in _ONLY.items():
        value = config.get(field, only)
        value = list(value) if isinstance(value, tuple) else value
        if value != only and not (field == "learn_initial_query" and value is None):
            raise DetrkitError(f"{path}: {field} is {shown(value)}: detrkit has {only!r}")
    defaults = constructor_defaults(kind)  # a field that is not there has the same default in transformers
    options = {ours: config.get(theirs, defaults[ours]) for theirs, ours in _FIELDS}
    heads = config.get("encoder_attention_heads", defaults["nheads"])
    if heads != options["nheads"]:
        raise DetrkitError(
            f"{path}: decoder_attention_heads is {options['nheads']}, encoder_attention_heads {heads}: detrkit has "
            "them equal"
        )
    if kind is RTDETRv2:
        options["discrete_sampling"] = config.get("decoder_method", "default") == "discrete"
    options["backbone_norm"] = "frozen" if config.get("freeze_backbone_batch_norms", True) else "batch"
    return options | _backbone_options(path, config.get("backbone_config") or {})


def _backbone_options(path: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """Read the backbone's options.

    Raises:
        DetrkitError: no PResNet that detrkit has.
    """
    kind = described.get("model_type", "rt_detr_resnet")
    width = described.get("embedding_size", 64)
    known = _backbone_config("presnet50", width if isinstance(width, int) else 64)
    fields = known | {key: described[key] for key in known if key in described}
    name = next((n for n in DEPTHS if _backbone_config(n, width) == fields), None) if isinstance(width, int) else None
    if kind != "rt_detr_resnet" or name is None:
        stated = kind if kind != "rt_detr_resnet" else fields
        raise DetrkitError(f"{path}: the backbone is {shown(stated)}: detrkit has {', '.join(DEPTHS)}")
    if list(described.get("out_indices") or [2, 3, 4]) != [2, 3, 4]:
        raise DetrkitError(f"{path}: backbone_config has out_indices {described['out_indices']}: detrkit has [2, 3, 4]")
    return {"backbone": name, "backbone_width": width}


def _backbone_config(name: str, width: int) -> dict[str, Any]:
    """Build the description of a PResNet that transformers has."""
    bottleneck = name not in BASIC
    return {
        "embedding_size": width,
        "hidden_sizes": [width * 2**i * (4 if bottleneck else 1) for i in range(4)],
        "depths": list(DEPTHS[name]),
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }


def config_fields(model: RTDETR, options: Mapping[str, Any]) -> dict[str, Any]:
    """Build the fields of config.json that describe the model.

    Args:
        model: the model.
        options: all arguments of its class, with their defaults.

    Raises:
        DetrkitError: an option that transformers does not have.
    """
    _check_backbone(model)
    if options["level_points"]:
        raise DetrkitError(
            "transformers' RT-DETR samples as many points on every level: a model with level_points cannot go"
        )
    if options["eval_layers"] not in (None, options["dec_layers"]):
        raise DetrkitError(
            f"transformers' RT-DETR predicts with all decoder layers, this model with {options['eval_layers']} of "
            f"{options['dec_layers']}: a model with eval_layers cannot go"
        )
    second = isinstance(model, RTDETRv2)
    if options["discrete_sampling"] and not second:
        raise DetrkitError("transformers' RT-DETR has no discrete sampling: its RT-DETRv2 has")
    body = {"model_type": "rt_detr_resnet", **_backbone_config(options["backbone"], options["backbone_width"])}
    body |= {"out_indices": [2, 3, 4], "out_features": ["stage2", "stage3", "stage4"]}
    return {
        "architectures": [_CLASSES[RTDETRv2 if second else RTDETR]],
        "model_type": "rt_detr_v2" if second else "rt_detr",
        **{theirs: options[ours] for theirs, ours in _FIELDS},
        "encoder_attention_heads": options["nheads"],
        "encoder_in_channels": list(model.backbone.channels),
        "decoder_in_channels": [options["enc_hidden_dim"]] * 3,
        "freeze_backbone_batch_norms": options["backbone_norm"] == "frozen",
        "backbone_config": body,
        **{field: value for field, value in _ONLY.items() if second or not field.startswith("decoder_offset")},
        **({"decoder_method": "discrete" if options["discrete_sampling"] else "default"} if second else {}),
        "anchor_image_size": None,
        "eval_size": None,
        "use_focal_loss": True,
    }
