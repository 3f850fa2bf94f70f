"""Names of the original code: how each model's tensors are called there, and what they tell of the model.

A rule is a pair of prefixes (detrkit, official), in the order in which the official state dict lists them; what follows
the prefix is the same in both, but for parts that `detrkit.weights.keymap` renames in all models. A parameter that the
official code lists several times (heads shared by several places) has several rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from detrkit.backbones import ResNetBackbone
from detrkit.backbones.resnet import SHALLOW
from detrkit.utils.errors import DetrkitError

if TYPE_CHECKING:
    from detrkit.models.base import DetectionModel
    from detrkit.models.deformable_base import DeformableModel
    from detrkit.models.deformable_detr import DeformableDETR
    from detrkit.models.demo import DETRdemo
    from detrkit.models.detr import DETR
    from detrkit.models.dino import DINO
    from detrkit.models.panoptic import MaskPredictor

Rule = tuple[str, str]
Infer = Callable[[Mapping[str, Tensor], int, bool, Mapping[str, Any]], dict[str, Any] | None]

# queries of the published H-Deformable-DETR: one-to-one, one-to-many; a table of their sum shows no border between them
HYBRID_QUERIES = (300, 1500)

# (blocks in layer1, blocks in layer3, whether they are bottlenecks)
DEPTHS = {
    (1, 1, False): "resnet10",
    (2, 2, False): "resnet18",
    (3, 6, False): "resnet34",
    (3, 6, True): "resnet50",
    (3, 23, True): "resnet101",
    (3, 36, True): "resnet152",
}


@dataclass(frozen=True, kw_only=True)
class OfficialNames:
    """Names of a model's tensors in its original code, and the inference of the model from them.

    Attributes:
        rules: yields the rules of a model (of its detector: masks have the same rules in all models).
        signature: tensors that identify the model, and the axis of each that has the model's width: the class head,
            and another one for weights whose class head was removed for fine-tuning. Empty: files of the original code
            are not recognized as this model's.
        infer: returns the options that tensors show, or None if they are another model's; takes the tensors by official
            name (without "detr." in front), the width, whether the file has masks, and the original code's arguments.
        fixed: arguments of the original code that change what is computed and not the tensors, with the one value that
            this model has.
        prepare: returns the tensors of a file by the names and shapes of `rules`, where versions of the original code
            differ in them without meaning.
        constants: returns further entries that the original code expects in a file of the model.
    """

    rules: Callable[[Any], Iterator[Rule]]
    signature: tuple[tuple[str, int], ...] = ()
    infer: Infer | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict
    constants: Callable[[Any], dict[str, Tensor]] = field(default=lambda model: {})


def segmentation_rules(predictor: MaskPredictor) -> Iterator[Rule]:
    """Yield the rules of facebookresearch/detr, models/segmentation.py: `DETRsegm` holds the detector as `detr`."""
    yield "segmentation.attention.query.", "bbox_attention.q_linear."
    yield "segmentation.attention.key.", "bbox_attention.k_linear."
    if predictor.prior is not None:  # detrkit's own: the original has masks for DETR alone
        yield "segmentation.prior.", "bbox_attention."
    for i in range(len(predictor.head.norms)):
        ours = f"convolutions.{i - 1}." if i else "first."
        yield f"segmentation.head.{ours}", f"mask_head.lay{i + 1}."
        yield f"segmentation.head.norms.{i}.", f"mask_head.gn{i + 1}."
    yield "segmentation.head.out.", "mask_head.out_lay."
    for i in range(len(predictor.head.adapters)):
        yield f"segmentation.head.adapters.{i}.", f"mask_head.adapter{i + 1}."


def resnet_rule(model: DetectionModel, official: str) -> Rule:
    """Return the rule of the backbone's weights.

    Args:
        model: a detrkit model.
        official: prefix in the original code, which has torchvision's ResNets.

    Raises:
        DetrkitError: another backbone.
    """
    if not isinstance(model.backbone, ResNetBackbone):
        raise DetrkitError(
            f"the official code has no backbone {model.backbone.name}, and no names for it: use a detrkit file "
            "(.safetensors)"
        )
    return "backbone.body.", official


def detr_rules(model: DETR) -> Iterator[Rule]:
    """Yield the rules of facebookresearch/detr, models/detr.py."""
    yield "encoder.", "transformer.encoder."
    yield "decoder.", "transformer.decoder."
    yield "class_head.", "class_embed."
    yield "box_head.", "bbox_embed."
    yield "queries.", "query_embed."
    yield "input_projection.", "input_proj."
    yield resnet_rule(model, "backbone.0.body.")
    yield "position_encoding.", "backbone.1."


def infer_detr(state: Mapping[str, Tensor], width: int, masks: bool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the options of a DETR; the number of heads shows only in the tensors of masks."""
    options = infer_sizes(state, width, queries="query_embed.weight")
    options |= {"masks": masks, "pre_norm": "transformer.encoder.norm.weight" in state}
    if masks and "mask_head.lay1.weight" in state:
        options["nheads"] = len(state["mask_head.lay1.weight"]) - width
    return options | infer_positions(state)


def demo_rules(model: DETRdemo) -> Iterator[Rule]:
    """Yield the rules of the notebook's `DETRdemo`."""
    yield "queries", "query_pos"
    yield "row_embed", "row_embed"
    yield "col_embed", "col_embed"
    yield resnet_rule(model, "backbone.")
    yield "input_projection.", "conv."
    yield "encoder.", "transformer.encoder."
    yield "decoder.", "transformer.decoder."
    yield "class_head.", "linear_class."
    yield "box_head.", "linear_bbox."


def infer_demo(state: Mapping[str, Tensor], width: int, masks: bool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the options of the notebook's model."""
    return infer_sizes(state, width, queries="query_pos")


def deformable_rules(model: DeformableDETR) -> Iterator[Rule]:
    """Yield the rules of fundamentalvision/Deformable-DETR, models/deformable_detr.py.

    Raises:
        DetrkitError: two stages without box refinement, which the official code cannot run.
    """
    if model.two_stage and not model.with_box_refine:
        raise DetrkitError(
            "a model with two_stage and without with_box_refine has no official names: the official code has none"
        )
    yield from deformable_transformer_rules(model)
    # heads that refine boxes or propose them are listed in the decoder, too
    if model.with_box_refine:
        yield "box_heads.", "transformer.decoder.bbox_embed."
    if model.two_stage:
        yield "class_heads.", "transformer.decoder.class_embed."
        yield "proposal_memory.", "transformer.enc_output."
        yield "proposal_memory_norm.", "transformer.enc_output_norm."
        yield "proposal_query.", "transformer.pos_trans."
        yield "proposal_query_norm.", "transformer.pos_trans_norm."
    else:
        yield "reference_points.", "transformer.reference_points."
    for ours, theirs in (("class_heads.", "class_embed."), ("box_heads.", "bbox_embed.")):
        if model.with_box_refine:
            yield ours, theirs
        else:  # one head, listed once for every decoder layer
            for i in range(len(model.decoder)):
                yield f"{ours}0.", f"{theirs}{i}."
    if not model.two_stage or model.mixed_selection:
        yield "queries.", "query_embed."
    yield from projection_rules(model)
    yield resnet_rule(model, "backbone.0.body.")
    yield "position_encoding.", "backbone.1."


def deformable_transformer_rules(model: DeformableDETR | DINO) -> Iterator[Rule]:
    """Yield the rules of the layers that all deformable models have."""
    yield "level_embed", "transformer.level_embed"
    yield "encoder.", "transformer.encoder.layers."
    for i in range(len(model.decoder)):
        for ours, theirs in (
            ("cross_attention", "cross_attn"),
            ("norm1", "norm1"),
            ("self_attention", "self_attn"),
            ("norm2", "norm2"),
            ("feed_forward.linear1", "linear1"),
            ("feed_forward.linear2", "linear2"),
            ("norm3", "norm3"),
        ):
            yield f"decoder.{i}.{ours}.", f"transformer.decoder.layers.{i}.{theirs}."


def projection_rules(model: DeformableModel) -> Iterator[Rule]:
    """Yield the rules of the convolutions that make the levels, with their norms."""
    for level in range(len(model.projections)):
        yield f"projections.{level}.", f"input_proj.{level}.0."
        yield f"projection_norms.{level}.", f"input_proj.{level}.1."


def dino_rules(model: DINO) -> Iterator[Rule]:
    """Yield the rules of IDEA-Research/DINO, models/dino/dino.py."""
    yield from deformable_transformer_rules(model)
    yield "decoder_norm.", "transformer.decoder.norm."
    yield "query_position.", "transformer.decoder.ref_point_head."
    for prefix in ("transformer.decoder.", ""):  # the one head is listed for every layer, twice
        for ours, theirs in (("box_heads.0.", "bbox_embed"), ("class_heads.0.", "class_embed")):
            for i in range(len(model.decoder)):
                yield ours, f"{prefix}{theirs}.{i}."
        if prefix:
            yield "queries.", "transformer.tgt_embed."
            yield "proposal_memory.", "transformer.enc_output."
            yield "proposal_memory_norm.", "transformer.enc_output_norm."
            yield "box_heads.1.", "transformer.enc_out_bbox_embed."
            yield "class_heads.1.", "transformer.enc_out_class_embed."
            yield "label_embed.", "label_enc."
            yield from projection_rules(model)
            yield resnet_rule(model, "backbone.0.body.")
            yield "position_encoding.", "backbone.1."


def infer_deformable(
    state: Mapping[str, Tensor], width: int, masks: bool, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Infer the options of a Deformable DETR.

    Two stages with a table of contents are mixed selection (H-Deformable-DETR's code). Whether such a model looks
    forward twice does not show: only gradients depend on it.
    """
    options = infer_sizes(state, width, queries="query_embed.weight")
    options |= {
        "masks": masks,
        "num_feature_levels": len(state.get("transformer.level_embed", ())) or 1,
        "with_box_refine": any(name.startswith("transformer.decoder.bbox_embed.") for name in state),
        "two_stage": "transformer.enc_output.weight" in state,
    }
    options["mixed_selection"] = options["two_stage"] and "num_queries" in options
    return options | infer_positions(state)


def infer_hybrid(
    state: Mapping[str, Tensor], width: int, masks: bool, arguments: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Infer the options of an H-Deformable-DETR; None for other Deformable DETRs.

    Its one table holds the contents of both kinds of queries. Without arguments a table of 1800 is 300 + 1500, as
    published; any other counts as one-to-one queries alone, which is a Deformable DETR with mixed selection.
    """
    options = infer_deformable(state, width, masks, arguments)
    one_to_many = arguments.get("num_queries_one2many")
    if one_to_many is None and options["mixed_selection"] and options["num_queries"] == sum(HYBRID_QUERIES):
        options["num_queries"], one_to_many = HYBRID_QUERIES
    return options | {"num_queries_one2many": one_to_many} if one_to_many else None


def infer_dino(state: Mapping[str, Tensor], width: int, masks: bool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the options of a DINO: 1 x 1 convolutions project the backbone's stages, 3 x 3 ones make further levels."""
    options = infer_sizes(state, width, queries="transformer.tgt_embed.weight")
    options |= {"masks": masks, "num_feature_levels": len(state.get("transformer.level_embed", ())) or 1}
    kernels = [t.shape[-1] for n, t in state.items() if re.fullmatch(r"input_proj\.\d+\.0\.weight", n) and t.ndim == 4]
    if options["num_feature_levels"] > 1 and 1 <= (stages := kernels.count(1)) <= 4:
        options["backbone_stages"] = tuple(range(6 - stages, 6))
    return options | infer_positions(state)


def used_labels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a DINO's tensors with the classes + 1 rows of its label table that can be used.

    The original code sets the number of rows apart from the classes (dn_labelbook_size), so that files of people's own
    classes often have more; no label ever chooses these.
    """
    entries = dict(state)
    for prefix in ("", "detr."):
        table, head = (entries.get(f"{prefix}{name}.weight") for name in ("label_enc", "class_embed.0"))
        if table is not None and head is not None and table.ndim and head.ndim and len(table) > len(head) + 1:
            entries[f"{prefix}label_enc.weight"] = table[: len(head) + 1]
    return entries


def infer_sizes(state: Mapping[str, Tensor], width: int, *, queries: str) -> dict[str, Any]:
    """Infer the options that the tensors of every model show.

    Args:
        state: official names, without "detr." in front.
        width: D.
        queries: name of the queries, (Q, ...).
    """
    body = "backbone.0.body." if "backbone.0.body.conv1.weight" in state else "backbone."
    options: dict[str, Any] = {"hidden_dim": width}
    for part in ("encoder", "decoder"):
        layers = rf"transformer\.{part}\.layers\.(\d+)\."
        options[f"{part[:3]}_layers"] = blocks(state, layers)
    if (inner := state.get("transformer.decoder.layers.0.linear1.weight")) is not None:
        options["dim_feedforward"] = len(inner)
    if queries in state:  # two-stage models have proposals instead
        options["num_queries"] = len(state[queries])
    if (backbone := depth(state)) is not None:
        options["backbone"] = backbone
        if backbone in SHALLOW:  # has no DC5 form, so dilation is known
            options["dilation"] = False
    if (stem := state.get(f"{body}conv1.weight")) is not None and len(stem) != 64:
        options["backbone_width"] = len(stem)
    if f"{body}bn1.weight" in state and f"{body}bn1.running_mean" not in state:
        options["backbone_norm"] = "group"
    return options


def infer_positions(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the options of a learned position encoding; a sine has no tensors."""
    rows = state.get("backbone.1.row_embed.weight")
    return {} if rows is None else {"position_embedding": "learned", "position_entries": len(rows)}


def blocks(names: Mapping[str, Tensor], pattern: str) -> int:
    """Count the numbered blocks of a state dict: 1 + the largest number that the first group of `pattern` matches."""
    return 1 + max((int(m[1]) for n in names if (m := re.search(pattern, n))), default=-1)


def depth(names: Mapping[str, Tensor]) -> str | None:
    """Return the name of the ResNet in a state dict, recognized by its numbers of blocks."""
    first, third = (blocks(names, rf"backbone\.(?:\d+\.body\.)?layer{n}\.(\d+)\.") for n in (1, 3))
    return DEPTHS.get((first, third, any(".layer1.0.conv3." in n for n in names)))


DETR_NAMES = OfficialNames(
    rules=detr_rules, signature=(("class_embed.weight", 1), ("input_proj.weight", 0)), infer=infer_detr
)
DEFORMABLE_NAMES = OfficialNames(
    rules=deformable_rules,
    signature=(("class_embed.0.weight", 1), ("input_proj.0.0.weight", 0)),
    infer=infer_deformable,
)
HYBRID_NAMES = OfficialNames(rules=deformable_rules, signature=DEFORMABLE_NAMES.signature, infer=infer_hybrid)
DINO_NAMES = OfficialNames(
    rules=dino_rules,
    signature=(("transformer.tgt_embed.weight", 1),),  # Deformable DETR has heads of the same names
    infer=infer_dino,
    fixed={
        "pe_temperatureH": 20,
        "pe_temperatureW": 20,
        "pre_norm": False,
        "transformer_activation": "relu",
        "decoder_sa_type": "sa",
        "two_stage_type": "standard",
        "num_patterns": 0,
    },
    prepare=used_labels,
)
DEMO_NAMES = OfficialNames(rules=demo_rules, signature=(("linear_class.weight", 1), ("query_pos", 1)), infer=infer_demo)
