"""Inference of the architecture from parameter names, shapes and arguments saved beside them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.demo import DETRdemo
from detrkit.models.detr import DETR
from detrkit.models.registry import ARCHITECTURES
from detrkit.weights.official import CLASS_HEADS, blocks, depth

# tensors that identify the kind of model, and the axis that has the model's width: the class head, and another one for
# weights whose class head was removed for fine-tuning
_SIGNS: tuple[tuple[type[nn.Module], tuple[tuple[str, int], ...]], ...] = (
    (DETRdemo, (("linear_class.weight", 1), ("query_pos", 1))),
    (DeformableDETR, (("class_embed.0.weight", 1), ("input_proj.0.0.weight", 0))),
    (DETR, (("class_embed.weight", 1), ("input_proj.weight", 0))),
)
_OFFICIAL_NAMES = ("transformer.", "linear_class.")  # in every official model, and in no other code's
UNDILATED = ("resnet10", "resnet18", "resnet34")  # have no DC5 form, so dilation is known
# arguments of the official main.py that are the model's; its others are of training and data
OFFICIAL_ARGUMENTS = (
    *("backbone", "dilation", "masks", "pre_norm", "position_embedding", "num_queries", "hidden_dim", "nheads"),
    *("dim_feedforward", "enc_layers", "dec_layers"),
    *("num_feature_levels", "with_box_refine", "two_stage", "enc_n_points", "dec_n_points"),
)


@dataclass(frozen=True)
class Told:
    """Known properties of a model.

    Attributes:
        kind: its class.
        options: arguments of the class, as far as they are known.
    """

    kind: type[nn.Module]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the architecture that has the most of the options; the others are overrides of it."""
        fitting = [
            arch
            for arch in ARCHITECTURES.values()
            if arch.build is self.kind and arch.options.items() <= self.options.items()
        ]
        return max(fitting, key=lambda arch: len(arch.options)).name

    @property
    def overrides(self) -> dict[str, Any]:
        """Options in which the model differs from the architecture of its name."""
        defaults = {**accepted(self.kind), **ARCHITECTURES[self.name].options}
        return {
            option: value
            for option, value in self.options.items()
            if option not in defaults or value != defaults[option]
        }

    @property
    def needs_dilation(self) -> bool:
        """True if dilation is unknown: a DC5 model and a plain one have the same tensors."""
        return "dilation" in accepted(self.kind) and "dilation" not in self.options


def tell(state: Mapping[str, Tensor], arguments: Mapping[str, Any] | None = None) -> Told | None:
    """Infer a model from its official weights.

    Args:
        state: tensors by official name.
        arguments: of the official `main.py`, which take precedence over the tensors.

    Returns:
        The model; None for tensors of something else. Dilation cannot be inferred from tensors, and the number of
        heads only from those of models with masks.
    """
    state = {name: tensor for name, tensor in state.items() if tensor.ndim}  # counters have no size
    masks = any(name.startswith("detr.") for name in state)  # the official DETRsegm holds the detector as `detr`
    inner = {name.removeprefix("detr."): tensor for name, tensor in state.items()}
    if not any(name.startswith(_OFFICIAL_NAMES) for name in inner):
        return None  # Hugging Face's Deformable DETR has the same heads
    matches = (
        (kind, inner[name].shape[axis])
        for kind, signs in _SIGNS
        for name, axis in signs
        if name in inner and inner[name].ndim > axis
    )
    kind, width = next(matches, (None, 0))
    if kind is None:
        return None
    inferred = Told(kind, _sizes(inner, width, "query_pos" if kind is DETRdemo else "query_embed.weight"))
    if kind is DeformableDETR:
        inferred.options.update(
            num_feature_levels=len(inner.get("transformer.level_embed", ())) or 1,
            with_box_refine=any(name.startswith("transformer.decoder.bbox_embed.") for name in inner),
            two_stage="transformer.enc_output.weight" in inner,
        )
    elif kind is DETR:
        inferred.options.update(masks=masks, pre_norm="transformer.encoder.norm.weight" in inner)
        if masks and "mask_head.lay1.weight" in state:
            inferred.options["nheads"] = len(state["mask_head.lay1.weight"]) - width
    if kind is not DETRdemo and (rows := inner.get("backbone.1.row_embed.weight")) is not None:
        inferred.options.update(position_embedding="learned", position_entries=len(rows))
    if inferred.options.get("backbone") in UNDILATED:
        inferred.options["dilation"] = False
    for option in OFFICIAL_ARGUMENTS:
        if arguments is not None and option in arguments:
            inferred.options[option] = arguments[option]
    # Deformable DETR's main.py has DETR's arguments, too, some of which its model does not take
    allowed = accepted(inferred.kind)
    return Told(inferred.kind, {option: value for option, value in inferred.options.items() if option in allowed})


def accepted(kind: Any) -> dict[str, Any]:
    """Return the arguments of a model's class and their defaults."""
    return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}


def classes_told(state: Mapping[str, Tensor], *, softmax: bool) -> int | None:
    """Return the number of labels of the class head, without "no object"; None without a class head."""
    rows = next((len(state[head]) for head in CLASS_HEADS if head in state and state[head].ndim), None)
    return None if rows is None else rows - softmax


def _sizes(state: Mapping[str, Tensor], width: int, queries: str) -> dict[str, Any]:
    """Infer the options that the tensors of every kind show.

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
    if (stem := state.get(f"{body}conv1.weight")) is not None and len(stem) != 64:
        options["backbone_width"] = len(stem)
    if f"{body}bn1.weight" in state and f"{body}bn1.running_mean" not in state:
        options["backbone_norm"] = "group"
    return options
