"""Stages of a model: their names, their order, and the tolerance of each between two correct implementations.

The names are those of the arrays in a stage file. Numbers count from 0, those of the backbone's stages from 2.

| name | shape | content |
|---|---|---|
| `backbone.2` ... `backbone.5` | (B, C, h, w) | maps at stride 4 ... 32 (16 with dilation) |
| `projection.L` | (B, D, h, w) | level L as the encoder reads it |
| `position.L` | (B, D, h, w) | its position encoding, without a level embedding |
| `encoder.N` | (B, S, D) | tokens after layer N; levels one after the other, rows from the top |
| `fused.L` | (B, D, h, w) | RT-DETR: level L after the convolutions that fuse the levels |
| `memory` | (B, S, D) | what the decoder reads, where a norm follows the last layer or, of RT-DETR, a projection |
| `proposal.logits`, `proposal.boxes`, `proposal.index` | (B, S, C), (B, S, 4), (B, Q) | two-stage models: of all \
tokens (DINO, RT-DETR: of those chosen, (B, Q, C) and (B, Q, 4)), and the tokens that were chosen |
| `reference` | (B, Q, 2 or 4) | models with deformable attention: the first reference points or boxes, in [0, 1] |
| `decoder.N` | (B, Q, D) | queries after layer N |
| `queries.N` | (B, Q, D) | what the heads read, where a norm follows each layer |
| `logits.N`, `boxes.N` | (B, Q, C), (B, Q, 4) | predictions of layer N; boxes cxcywh in [0, 1] |
| `mask_attention`, `masks` | (B, Q, heads, h, w), (B, Q, H / 4, W / 4) | of models with masks; masks are logits |
| `loss_ce`, `loss_bbox_3`, ... | () | the criterion's terms, where there are targets |
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from detrkit.structures.outputs import Outputs, numbered

# Largest difference of a stage whose root mean square is at most 1, as of normed states; for others it is in
# proportion to the root mean square. From the goldens: the official code differs from itself by at most 2.6e-5 in
# logits, 5.6e-6 in boxes and 2.9e-4 in mask logits (threads, kernels, float64); a wrong epsilon gives 1e-4 in logits.
TOLERANCES = {
    "backbone": 1.5e-4,
    "projection": 5e-5,
    "position": 5e-6,
    "encoder": 1e-4,
    "fused": 1e-4,
    "memory": 1e-4,
    "proposal.logits": 3e-5,
    "proposal.boxes": 5e-6,
    "proposal.index": 0.0,
    "reference": 2e-5,
    "decoder": 1.5e-4,
    "queries": 1.5e-4,
    "logits": 6e-5,
    "boxes": 2e-5,
    "mask_attention": 3e-5,
    "masks": 6e-4,
    "loss": 2e-5,
}
# Softmax weights: the error of a weight is in proportion to it, and weights are greater with fewer cells. At 128 x 160
# pixels transformers differed from detrkit by 3.3e-6, 6e-6 of the largest weight.
RELATIVE_STAGES = ("mask_attention",)
# in the order of the data; the parts of a decoder layer stand together, since the next layer may read its boxes
_GROUPS = (
    "backbone",
    "projection",
    "position",
    "encoder",
    "fused",
    "memory",
    "proposal",
    "reference",
    "decoder",
    "mask",
    "loss",
)
_LAYER_STAGES = ("decoder", "queries", "logits", "boxes")
_PROPOSAL = ("logits", "boxes", "index")
_NAME = re.compile(
    r"(backbone|projection|position|encoder|fused|decoder|queries|logits|boxes)\.(\d+)|proposal\.(?:logits|boxes|index)"
    r"|memory|reference|mask_attention|masks|loss_\w+"
)


def is_stage(name: str) -> bool:
    """Return whether an array of that name is a stage."""
    return _NAME.fullmatch(name) is not None


def tolerance_of(name: str) -> float:
    """Return the tolerance of a stage with a root mean square up to 1.

    For RELATIVE_STAGES it is relative to the largest value of the stage.
    """
    return TOLERANCES[name] if name in TOLERANCES else TOLERANCES[re.split(r"[._]", name)[0]]


def order_of(name: str) -> tuple[int, int, int, str]:
    """Return a sort key that puts stages in the order of the data."""
    head, _, tail = name.partition(".")
    number = int(tail) if tail.isdigit() else 0
    if head in _LAYER_STAGES:
        return _GROUPS.index("decoder"), number, _LAYER_STAGES.index(head), ""
    if head == "proposal":
        return _GROUPS.index("proposal"), _PROPOSAL.index(tail), 0, ""
    if head.startswith("loss"):
        layer = re.search(r"_(\d+)$", head)  # terms without a number are those of the last layer
        return _GROUPS.index("loss"), -1 if head.endswith("_enc") else int(layer[1]) if layer else 10**6, 0, head
    group = "mask" if head.startswith("mask") else head
    return _GROUPS.index(group), number, 0, head


def stages_of(outputs: Outputs) -> dict[str, Tensor]:
    """Return the stages of a detrkit model's outputs, without losses.

    Args:
        outputs: of `model(images, capture=True)`.

    Raises:
        ValueError: nothing was captured.
    """
    if outputs.capture is None:
        raise ValueError("the outputs hold no stages: call the model with capture=True")
    captured = outputs.capture.stages
    stages = {name: tensor for name, tensor in captured.items() if is_stage(name)}
    queries = captured["queries"]  # (L, B, Q, D)
    last = len(queries) - 1
    if stages["memory"].ndim == 4:
        stages["memory"] = stages["memory"].flatten(2).transpose(1, 2)  # (B, S, D)
    stages |= numbered("queries", list(queries))
    if "init_reference" in captured:
        stages["reference"] = captured["init_reference"]
    if "proposal_index" in captured:
        stages["proposal.index"] = captured["proposal_index"]
    return distinct_stages(stages | predictions_of(outputs, last))


def predictions_of(outputs: Outputs, last: int) -> dict[str, Tensor]:
    """Return logits, boxes and masks as stages.

    Args:
        outputs: of any framework.
        last: number of the last decoder layer.
    """
    layers = [*outputs.aux, outputs]
    first = last + 1 - len(layers)
    stages = numbered("logits", [layer.logits for layer in layers], first=first)
    stages |= numbered("boxes", [layer.boxes for layer in layers], first=first)
    if outputs.encoder is not None:
        stages |= {"proposal.logits": outputs.encoder.logits, "proposal.boxes": outputs.encoder.boxes}
    if outputs.masks is not None:
        stages["masks"] = outputs.masks
    return stages


def distinct_stages(stages: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop memory and queries where they equal the layers' outputs, because there is no norm in between."""
    last = max((int(n.split(".")[1]) for n in stages if n.startswith("encoder.")), default=0)
    layer_of = {
        "memory": f"encoder.{last}",
        **{n: "decoder." + n.split(".")[1] for n in stages if n.startswith("queries.")},
    }
    same = {
        name
        for name, layer in layer_of.items()
        if name in stages and layer in stages and torch.equal(stages[name], stages[layer])
    }
    return {name: tensor for name, tensor in stages.items() if name not in same}
