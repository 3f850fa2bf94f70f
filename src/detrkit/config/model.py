"""The settings of the model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from detrkit.config.strict import STRICT
from detrkit.utils.errors import SettingError
from detrkit.utils.ranges import (
    Decay,
    Layers,
    Range,
    Share,
    Weight,
    Width,
)


def _named_values(words: list[str]) -> dict[str, Any] | None:
    """Read words such as `depth=3`; values are YAML.

    Raises:
        ValueError: a word without a name or a value.
    """
    if words == ["None"]:
        return None
    from detrkit.utils.documents import parse_yaml

    values = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name or not equals:
            raise ValueError(f"{word} is no name=value")
        values[name.replace("-", "_")] = parse_yaml(text, name)
    return values


def _named_words(values: dict[str, Any] | None) -> list[str]:
    """Write values as `_named_values` reads them."""
    return ["None"] if values is None else [f"{name}={json.dumps(value)}" for name, value in values.items()]


_NAMED_VALUES = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="NAME=VALUE",
    instance_from_str=_named_values,
    is_instance=lambda value: value is None or isinstance(value, dict),
    str_from_instance=_named_words,
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model. None means as the model was published, or as in the checkpoint that the run starts from."""

    __pydantic_config__ = STRICT

    name: Annotated[str | None, tyro.conf.arg(name="model")] = None
    """One of `detrkit models`; by default that of --init-from, else detr-r50."""
    backbone_weights: str = "imagenet"
    """First weights of the backbone: "imagenet" (downloaded once), "random", or the path of a state dict of torchvision
    or timm. Ignored with --init-from."""
    backbone: str | None = None
    """resnet18, 34, 50, 101, 152, resnet10 (small work, random weights), RT-DETR's presnet18, 34, 50, 101 (and
    10), timm:NAME, such as timm:convnext_tiny (needs detrkit[timm]), or one of another package."""
    backbone_norm: Literal["frozen", "group", "batch"] | None = None
    """By default frozen with pretrained weights, group with random ones (timm: batch)."""
    backbone_width: Width | None = None
    """Channels of the stem (64); fewer for small work from random weights."""
    backbone_stage: Annotated[int, Range(ge=2, le=5)] | None = None
    """DETR: the stage whose map the transformer reads (5 = stride 32)."""
    backbone_stages: tuple[Annotated[int, Range(ge=2, le=5)], ...] | None = None
    """Deformable DETR: the stages whose maps are read (3 4 5)."""
    dilation: bool | None = None
    """DC5: the last stage at stride 16."""
    position_embedding: Literal["sine", "learned"] | None = None
    """Position encoding of the feature map, or maps (sine)."""
    position_entries: Width | None = None
    """Rows and columns a learned encoding can hold (50); Deformable DETR's first map has one per 8 pixels."""
    num_queries: Annotated[int, Range(ge=1, le=100_000)] | None = None
    """The most objects predicted in an image (100; deformable 300)."""
    hidden_dim: Width | None = None
    """Width of the transformer (256)."""
    nheads: Width | None = None
    """Attention heads (8)."""
    dim_feedforward: Annotated[int, Range(ge=1, le=1_000_000)] | None = None
    """Width of the feed-forward networks (2048; deformable 1024)."""
    enc_layers: Annotated[int, Range(ge=0, le=1000)] | None = None
    """Encoder layers (6; 0 as in the paper's Table 2)."""
    dec_layers: Layers | None = None
    """Decoder layers (6)."""
    dropout: Decay | None = None
    """Dropout in the transformer (0.1)."""
    pre_norm: bool | None = None
    """DETR: normalize before each sublayer instead of after it."""
    num_feature_levels: Annotated[int, Range(ge=1, le=10)] | None = None
    """Deformable DETR: levels of the feature pyramid (4)."""
    enc_n_points: Annotated[int, Range(ge=1, le=1000)] | None = None
    """Deformable DETR: sampled points per head and level in the encoder (4)."""
    dec_n_points: Annotated[int, Range(ge=1, le=1000)] | None = None
    """Deformable DETR: the same in the decoder (4)."""
    with_box_refine: bool | None = None
    """Deformable DETR: every decoder layer refines the boxes of the one before."""
    two_stage: bool | None = None
    """Deformable DETR: the queries are the encoder's best proposals."""
    mixed_selection: bool | None = None
    """Two-stage models: the proposals give the positions of the queries alone, their contents are learned."""
    look_forward_twice: bool | None = None
    """Models with refinement: a decoder layer learns from the loss of the next one, too."""
    num_queries_one2many: Annotated[int, Range(ge=0, le=100_000)] | None = None
    """Hybrid matching: further queries in training alone, each object matched to several (1500)."""
    k_one2many: Annotated[int, Range(ge=1, le=1000)] | None = None
    """Hybrid matching: queries that an object is matched to in that branch (6)."""
    lambda_one2many: Weight | None = None
    """Hybrid matching: weight of that branch's losses (1)."""
    num_select: Annotated[int, Range(ge=1, le=1_000_000)] | None = None
    """DINO, RT-DETR: detections of an image, the best over queries and classes (300)."""
    dn_number: Annotated[int, Range(ge=0, le=10_000)] | None = None
    """DINO, RT-DETR: pairs of denoising queries of an image in training (100); 0 for none. Below 50, DINO takes it for
    half the number of groups."""
    dn_label_noise_ratio: Share | None = None
    """DINO, RT-DETR: twice the share of denoising queries whose label is drawn anew (0.5)."""
    dn_box_noise_scale: Annotated[float, Range(ge=0, le=10)] | None = None
    """DINO, RT-DETR: noise of their boxes, in halves of a box's width and height (1)."""
    enc_hidden_dim: Width | None = None
    """RT-DETR: width of the encoder (256; R101 384)."""
    enc_dim_feedforward: Annotated[int, Range(ge=1, le=1_000_000)] | None = None
    """RT-DETR: width of the encoder's feed-forward network (1024; R101 2048)."""
    enc_expansion: Annotated[float, Range(gt=0, le=10)] | None = None
    """RT-DETR: channels of the encoder's blocks as a share of its width (1; R18, R34, R50-m 0.5)."""
    eval_layers: Layers | None = None
    """RT-DETR: decoder layers that predict at inference (all; R50-m 3 of 6): fewer are faster."""
    discrete_sampling: bool | None = None
    """RT-DETRv2: the decoder reads whole cells instead of interpolating (no)."""
    level_points: tuple[Annotated[int, Range(ge=1, le=1000)], ...] | None = None
    """RT-DETRv2: sampled points per head of each of the 3 levels, the finest first (dec_n_points each)."""
    masks: bool | None = None
    """Predict a mask for every query, too: instances or, on a COCO panoptic dataset, things and stuff. The *-panoptic
    models do; --masks alone means yes."""
    aux_loss: bool | None = None
    """Train on the outputs of every decoder layer (yes)."""
    options: Annotated[dict[str, Any] | None, _NAMED_VALUES] = None
    """Options of a model of another package, which have no field here: on the command line `--options name=value ...`.
    """

    def overrides(self) -> dict[str, Any]:
        """Return the overrides of `build_model` that were set.

        Raises:
            SettingError: one of `options` has a field of its own.
        """
        fields = [f.name for f in dataclasses.fields(self)]
        options = self.options or {}
        doubled = next((name for name in options if name in fields), None)
        if doubled is not None:
            raise SettingError(f"model.options: {doubled} is a setting of its own: give model.{doubled}")
        values = {name: getattr(self, name) for name in fields if name not in ("name", "backbone_weights", "options")}
        return {name: value for name, value in values.items() if value is not None} | options
