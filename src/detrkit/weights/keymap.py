"""Rule tables between detrkit's parameter names and those of the official repositories.

A rule is a pair of prefixes (detrkit, official), in the order in which the official state dict lists them; what follows
the prefix is the same in both, but for the renamed parts in `PARTS`. A parameter that the official code lists several
times (heads shared by several places) has several rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.demo import DETRdemo
from detrkit.models.detr import DETR
from detrkit.models.panoptic import MaskPredictor
from detrkit.utils.errors import DetrkitError

Rule = tuple[str, str]

# dotted parts of a name after its prefix
PARTS: tuple[Rule, ...] = (
    ("self_attention", "self_attn"),
    ("cross_attention", "multihead_attn"),
    ("feed_forward.linear1", "linear1"),
    ("feed_forward.linear2", "linear2"),
)


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


def detr_rules(model: DETR) -> Iterator[Rule]:
    """Yield the rules of facebookresearch/detr, models/detr.py."""
    yield "encoder.", "transformer.encoder."
    yield "decoder.", "transformer.decoder."
    yield "class_head.", "class_embed."
    yield "box_head.", "bbox_embed."
    yield "queries.", "query_embed."
    yield "input_projection.", "input_proj."
    yield "backbone.body.", "backbone.0.body."
    yield "position_encoding.", "backbone.1."


def demo_rules(model: DETRdemo) -> Iterator[Rule]:
    """Yield the rules of the notebook's `DETRdemo`."""
    yield "queries", "query_pos"
    yield "row_embed", "row_embed"
    yield "col_embed", "col_embed"
    yield "backbone.body.", "backbone."
    yield "input_projection.", "conv."
    yield "encoder.", "transformer.encoder."
    yield "decoder.", "transformer.decoder."
    yield "class_head.", "linear_class."
    yield "box_head.", "linear_bbox."


def deformable_rules(model: DeformableDETR) -> Iterator[Rule]:
    """Yield the rules of fundamentalvision/Deformable-DETR, models/deformable_detr.py.

    Raises:
        DetrkitError: two stages without box refinement, which the official code cannot run.
    """
    if model.two_stage and not model.with_box_refine:
        raise DetrkitError(
            "a model with two_stage and without with_box_refine has no official names: the official code has none"
        )
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
    if not model.two_stage:
        yield "queries.", "query_embed."
    for level in range(len(model.projections)):
        yield f"projections.{level}.", f"input_proj.{level}.0."
        yield f"projection_norms.{level}.", f"input_proj.{level}.1."
    yield "backbone.body.", "backbone.0.body."
    yield "position_encoding.", "backbone.1."


RULES: dict[type[nn.Module], Callable[..., Iterator[Rule]]] = {
    DETR: detr_rules,
    DETRdemo: demo_rules,
    DeformableDETR: deformable_rules,
}


def official_names(model: nn.Module) -> list[Rule]:
    """Return (official name, detrkit name) of every entry of the official state dict, in its order.

    Raises:
        TypeError: a module that has no official counterpart.
        DetrkitError: options that have none.
        KeyError: an entry of the model that no rule covers (the table is incomplete).
    """
    rules = next((RULES[kind] for kind in RULES if isinstance(model, kind)), None)
    if rules is None:
        supported = ", ".join(kind.__name__ for kind in RULES)
        raise TypeError(f"{type(model).__name__} has no official names: expected one of {supported}")
    state_names = list(model.state_dict())
    table = list(rules(model))
    if (predictor := getattr(model, "segmentation", None)) is not None:
        table = [(ours, f"detr.{theirs}") for ours, theirs in table] + list(segmentation_rules(predictor))
    names = [
        (theirs + _renamed(name[len(ours) :]), name)
        for ours, theirs in table
        for name in state_names
        if name.startswith(ours)
    ]
    uncovered = sorted(set(state_names) - {ours for _, ours in names})
    if uncovered:
        raise KeyError(f"no rule gives the official name of {', '.join(uncovered)}")
    return names


def _renamed(rest: str) -> str:
    """Rename the parts of `PARTS` in a name after its prefix."""
    dotted = f".{rest}"
    for ours, theirs in PARTS:
        dotted = dotted.replace(f".{ours}.", f".{theirs}.")
    return dotted[1:]
