"""The configuration files of a Hugging Face directory: read into a `ModelSpec`, and written from one.

`config.json` says what the model is, `preprocessor_config.json` how its input is prepared. The fields
of transformers 4 and 5 are read, and what is written has fields that both know (run with 5 alone).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from detrkit.backbones.resnet import SHALLOW
from detrkit.models.base import DetectionModel
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.detr import DETR
from detrkit.models.rtdetr import RTDETR
from detrkit.models.settings import constructor_defaults
from detrkit.models.spec import ModelSpec
from detrkit.structures.coco_classes import COCO_SYNONYMS, coco_classes
from detrkit.utils.documents import shown
from detrkit.utils.errors import DetrkitError
from detrkit.weights import huggingface_rtdetr
from detrkit.weights.huggingface import BackboneNames
from detrkit.weights.huggingface_input import input_of, read_object
from detrkit.weights.huggingface_schema import Config
from detrkit.weights.infer import InferredModel

log = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
KINDS: dict[str, type[DetectionModel]] = {"detr": DETR, "deformable_detr": DeformableDETR, **huggingface_rtdetr.KINDS}
# (transformers', detrkit's) fields of the same meaning; those of one kind alone follow
_SIZES = (
    ("d_model", "hidden_dim"),
    ("encoder_layers", "enc_layers"),
    ("decoder_layers", "dec_layers"),
    ("encoder_attention_heads", "nheads"),
    ("encoder_ffn_dim", "dim_feedforward"),
    ("num_queries", "num_queries"),
    ("dropout", "dropout"),
)
_DEFORMABLE = (
    ("num_feature_levels", "num_feature_levels"),
    ("encoder_n_points", "enc_n_points"),
    ("decoder_n_points", "dec_n_points"),
    ("with_box_refine", "with_box_refine"),
    ("two_stage", "two_stage"),
)
# fields that transformers can change and detrkit cannot; pairs of fields that are one option here
_ONLY = (("activation_function", "relu"), ("num_channels", 3))
_TWINS = (
    ("decoder_attention_heads", "encoder_attention_heads", "nheads"),
    ("decoder_ffn_dim", "encoder_ffn_dim", "dim_feedforward"),
)
_CLASS_HEAD = re.compile(r"(?:.*\.)?(?:class_labels_classifier|class_embed\.\d+)\.weight")
_BOX_HEAD = re.compile(r"(?:.*\.)?bbox_(?:predictor|embed\.\d+)\.layers\.0\.weight")
_UNNAMED = re.compile(r"LABEL_\d+")  # transformers' own names for labels that have none
_LAST_MAP = 4  # stage 5: the stem is 0, with timm and with transformers' own
_DEPTHS = {  # blocks of the four stages
    "resnet10": (1, 1, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


def spec_of_folder(folder: Path, state: Mapping[str, Tensor]) -> ModelSpec:
    """Read the `ModelSpec` of a directory that transformers or detrkit wrote.

    Args:
        folder: with config.json and perhaps preprocessor_config.json.
        state: its weights, which tell whether the model has masks and, as a rule, how many classes.

    Raises:
        DetrkitError: a model or an input that detrkit does not have.
    """
    path = folder / CONFIG
    config = read_object(path, Config)
    kind = KINDS.get(str(config.get("model_type")))
    if kind is None:
        raise DetrkitError(f"{path}: model_type is {shown(config.get('model_type'))}: detrkit has {', '.join(KINDS)}")
    if issubclass(kind, RTDETR):
        options = huggingface_rtdetr.options_of(path, config, kind)
    else:
        options = _options(path, config, kind, state)
    classes = _class_count(folder, config, kind, state)
    inferred = InferredModel(kind, options)
    plain = {
        "version": 1,
        "name": inferred.name,
        "options": inferred.overrides,
        "num_classes": classes,
        "classes": _classes(path, config, classes),
        **input_of(folder, squashed=issubclass(kind, RTDETR)),
        "padding": "exact",
        "training": {"huggingface": folder.resolve().name},
    }
    try:
        return ModelSpec.from_json(plain)
    except DetrkitError as error:
        raise DetrkitError(f"{path}: {error}") from error


def _options(
    path: Path, config: Mapping[str, Any], kind: type[nn.Module], state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Read the options of a DETR or a Deformable DETR.

    Raises:
        DetrkitError: a field with a value that detrkit does not have.
    """
    for field, only in _ONLY:
        if config.get(field, only) != only:
            raise DetrkitError(f"{path}: {field} is {shown(config[field])}: detrkit has {only!r}")
    defaults = constructor_defaults(kind)  # a field that is not there has the same default in transformers
    for *fields, option in _TWINS:
        one, two = (config.get(field, defaults[option]) for field in fields)
        if one != two:
            raise DetrkitError(f"{path}: {fields[0]} is {shown(one)}, {fields[1]} {shown(two)}: detrkit has them equal")
    options = {ours: config.get(theirs, defaults[ours]) for theirs, ours in _SIZES}
    options["masks"] = any(name.startswith("mask_head.") for name in state)
    positions = config.get("position_embedding_type", "sine")
    if kind is DeformableDETR:
        options |= {ours: config.get(theirs, defaults[ours]) for theirs, ours in _DEFORMABLE}
        if options["two_stage"]:
            options["num_queries"] = config.get("two_stage_num_proposals", options["num_queries"])
    options["position_embedding"] = positions
    return options | _backbone_options(path, config, kind, options)


def config_of(spec: ModelSpec, options: Mapping[str, Any], model: nn.Module, names: BackboneNames) -> dict[str, Any]:
    """Build the content of config.json.

    Args:
        spec: of the model.
        options: all arguments of its class, with their defaults.
        model: the model.
        names: the library whose names the ResNet's weights have.

    Raises:
        DetrkitError: an option that transformers does not have.
    """
    if isinstance(model, RTDETR):
        return huggingface_rtdetr.config_fields(model, options) | _labels(spec)
    deformable = isinstance(model, DeformableDETR)
    if options.get("position_entries", 50) != 50 and options["position_embedding"] == "learned":
        raise DetrkitError(
            "transformers' learned positions have 50 entries: a model with other position_entries cannot go"
        )
    heads = options["nheads"]
    kind = "DeformableDetrForObjectDetection" if deformable else "DetrForObjectDetection"
    config: dict[str, Any] = {
        "architectures": ["DetrForSegmentation" if options["masks"] else kind],
        "model_type": next(name for name, class_ in KINDS.items() if isinstance(model, class_)),
        **{theirs: options[ours] for theirs, ours in _SIZES},
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": options["dim_feedforward"],
        "attention_dropout": options["dropout"],
        "activation_dropout": options["dropout"],
        "activation_function": "relu",
        "position_embedding_type": options.get("position_embedding", "sine"),
        "auxiliary_loss": False,
        "num_channels": 3,
        **_labels(spec),
        **_backbone_config(model, options, names),
    }
    if deformable:
        config |= {theirs: options[ours] for theirs, ours in _DEFORMABLE}
        config["two_stage_num_proposals"] = options["num_queries"]
    return config


def _labels(spec: ModelSpec) -> dict[str, Any]:
    """Build the fields of config.json that name the labels, and how heads are listed."""
    labels = [f"LABEL_{i}" for i in range(spec.num_classes)] if spec.classes is None else spec.classes.names
    fields: dict[str, Any] = {
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
        "tie_word_embeddings": False,  # heads are listed as often as they are used; transformers 5 would tie others
    }
    if spec.classes is not None:
        fields["detrkit"] = {"classes": spec.classes.to_json()}  # ids and things, which transformers has no place for
    return fields


def _class_count(folder: Path, config: Mapping[str, Any], kind: type[nn.Module], state: Mapping[str, Tensor]) -> int:
    """Return the number of labels.

    It is that of the class head, or of the names where the head was removed, as for fine-tuning.

    Raises:
        DetrkitError: neither is there.
    """
    rows = next((len(head) for name, head in state.items() if head.ndim and _CLASS_HEAD.fullmatch(name)), None)
    if rows is not None:
        return rows - (kind is DETR)  # DETR's head has a row for "no object"
    if any(_BOX_HEAD.fullmatch(name) for name in state) and config.get("id2label"):
        return len(config["id2label"])
    raise DetrkitError(f"{folder}: no class head in the weights: a bare backbone or transformer, not a detector")


def _classes(path: Path, config: Mapping[str, Any], count: int) -> dict[str, Any] | None:
    """Read the class list as plain values, None where labels have no names.

    Raises:
        DetrkitError: names for another number of labels.
    """
    id2label = config.get("id2label")
    if not id2label:
        return None
    try:
        labels = sorted(id2label, key=int)
        whole = len(labels) == count and all(int(label) == k for k, label in enumerate(labels))
    except ValueError as error:
        raise DetrkitError(f"{path}: id2label must name labels by number") from error
    names = [id2label[label] for label in labels]
    if not whole:
        raise DetrkitError(
            f"{path}: id2label names {len(id2label)} labels, the weights have {count}: name 0 to {count - 1}"
        )
    if all(_UNNAMED.fullmatch(name) for name in names):
        return None
    detrkit_classes = (config.get("detrkit") or {}).get("classes")
    # not if the labels were renamed since
    if isinstance(detrkit_classes, dict) and detrkit_classes.get("names") == names:
        return dict(detrkit_classes)
    coco = coco_classes(len(names))
    if coco is None or [COCO_SYNONYMS.get(name, name) for name in names] != list(coco.names):
        coco = None
    return coco.to_json() if coco is not None else {"names": names, "ids": list(range(count))}


def _backbone_options(
    path: Path, config: Mapping[str, Any], kind: type[nn.Module], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the backbone's options.

    Raises:
        DetrkitError: no ResNet that detrkit has.
    """
    described = config.get("backbone_config") or {}
    model_type = described.get("model_type", "timm_backbone")
    result: dict[str, Any]
    stated: Any
    if model_type == "resnet":
        width = described.get("embedding_size", 64)
        fields = {**_resnet_config("resnet50"), "embedding_size": width} | {
            k: described[k] for k in _resnet_config("resnet50") if k in described
        }
        name = next((name for name in _DEPTHS if _resnet_config(name, width) == fields), None)
        result = {"backbone": name, "dilation": False} | ({} if width == 64 else {"backbone_width": width})
        stated = fields
    elif model_type == "timm_backbone":
        stated = described.get("backbone") or config.get("backbone") or "resnet50"
        # timm's names end in what the weights were trained on; microsoft/resnet-50 is transformers' own
        plain = re.sub(r"^microsoft/resnet-", "resnet", str(stated)).split(".")[0]
        name = plain if plain in _DEPTHS else None
        dilation = described.get("output_stride") == 16 if described else bool(config.get("dilation", False))
        result = {"backbone": name, "dilation": dilation}
    else:
        name, stated = None, model_type
    if name is None:
        raise DetrkitError(f"{path}: the backbone is {shown(stated)}: detrkit has {', '.join(_DEPTHS)}")
    maps = described.get("out_indices") or [_LAST_MAP]
    if max(maps) != _LAST_MAP:
        raise DetrkitError(f"{path}: backbone_config has out_indices {maps}: without the last stage, {_LAST_MAP}")
    if kind is DeformableDETR and options["num_feature_levels"] > 1 and described.get("out_indices"):
        result["backbone_stages"] = tuple(i + 1 for i in maps)
    return result


def _backbone_config(model: nn.Module, options: Mapping[str, Any], names: BackboneNames) -> dict[str, Any]:
    """Build the backbone's part of config.json: in transformers 4's words, which 5 reads, where there are such.

    Raises:
        DetrkitError: a backbone that the chosen names do not have.
    """
    backbone: Any = model.backbone
    maps = [stage - 1 for stage in backbone.stages]
    if maps[-1] != _LAST_MAP:
        raise DetrkitError(
            "transformers' models read the last stage of the backbone, which backbone_stage(s) leave out"
        )
    if names == "resnet":
        resnet = {"model_type": "resnet", **_resnet_config(backbone.name, backbone.body.conv1.out_channels)}
        resnet["out_features"] = [f"stage{i}" for i in maps]
        resnet["out_indices"] = maps
        return {"use_timm_backbone": False, "backbone": None, "backbone_config": resnet, "dilation": False}
    if backbone.name == "resnet10" or backbone.body.conv1.out_channels != 64:
        raise DetrkitError(f"timm has no {backbone.name} of that width: use the names of transformers' own ResNet")
    if isinstance(model, DeformableDETR) and len(maps) not in (1, 3):
        raise DetrkitError("timm's names go with the published backbone_stages (3, 4, 5): use transformers' own ResNet")
    return {
        "use_timm_backbone": True,
        "backbone": backbone.name,
        "use_pretrained_backbone": False,
        "backbone_config": None,
        "dilation": bool(options["dilation"]),
    }


def _resnet_config(name: str, width: int = 64) -> dict[str, Any]:
    """Build the description of a ResNet that transformers' own classes have."""
    bottleneck = name not in SHALLOW
    return {
        "embedding_size": width,
        "hidden_sizes": [width * 2**i * (4 if bottleneck else 1) for i in range(4)],
        "depths": list(_DEPTHS[name]),
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }
