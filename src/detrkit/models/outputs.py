"""What a model takes and gives: `Target`, `Outputs` and `Capture`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


def _moved(value: Any, device: torch.device | str) -> Any:
    """`value` with every tensor in it on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, (Target, Outputs, Capture)):
        return value.to(device)
    if isinstance(value, list):
        return [_moved(v, device) for v in value]
    return value


@dataclass
class Target:
    """The objects of one image, as the criterion wants them.

    Attributes:
        labels: (N,) int64 class indices, contiguous from 0 (or raw COCO ids in the official 91-id mode).
        boxes: (N, 4) float cxcywh in [0, 1], relative to the image without padding.
        masks: (N, H, W) bool, at the size of the network input, or None.
        image_id: the dataset's id of the image; names the image in warnings and errors.
        size: (height, width) in pixels of the network input without padding.
        orig_size: (height, width) in pixels of the image file.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor | None = None
    image_id: int | str | None = None
    size: tuple[int, int] | None = None
    orig_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Target:
        """A copy with all tensors on `device`."""
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})


@dataclass
class Capture:
    """What a model looked at, returned by `model(images, capture=True)`.

    Attributes:
        encoder_attention: one (B, heads, S, S) tensor per encoder layer, S = h * w tokens in row-major order;
            deformable models: (B, S, heads, L, P) weights of the sampled points.
        decoder_attention: one (B, heads, Q, S) tensor per decoder layer: cross-attention of queries to tokens;
            deformable models: (B, Q, heads, L, P) weights of the sampled points.
        encoder_locations: deformable models: per encoder layer (B, S, heads, L, P, 2) xy, the padded map being [0, 1]; a
            point may lie outside.
        decoder_locations: deformable models: per decoder layer (B, Q, heads, L, P, 2).
        query_attention: one (B, heads, Q, Q) tensor per decoder layer: self-attention among queries.
        feature_shapes: (h, w) of the feature map, or of each level of maps, behind the tokens.
        padding: (B, S) bool, True where a token is padding.
        stages: intermediate tensors by name, for checks of fidelity. DETR: `feature` (B, C, h, w), `input_projection`,
            `position` and `memory` (B, D, h, w), `queries` (L, B, Q, D). Deformable DETR: `feature`,
            `memory` (B, S, D), `queries`, `init_reference` (B, Q, 2 or 4), `inter_references` (L, B, Q, 2 or 4),
            `proposal_index` (B, Q).
    """

    encoder_attention: list[Tensor] = field(default_factory=list)
    decoder_attention: list[Tensor] = field(default_factory=list)
    query_attention: list[Tensor] = field(default_factory=list)
    encoder_locations: list[Tensor] = field(default_factory=list)
    decoder_locations: list[Tensor] = field(default_factory=list)
    feature_shapes: list[tuple[int, int]] = field(default_factory=list)
    padding: Tensor | None = None
    stages: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_one_map(
        cls,
        *,
        attention: tuple[list[Tensor], list[Tensor], list[Tensor]],
        padding: Tensor,
        feature: Tensor,
        input_projection: Tensor,
        position: Tensor,
        memory: Tensor,
        queries: Tensor,
    ) -> Capture:
        """The record of a model that reads a single feature map of h * w = S cells.

        Args:
            attention: per layer weights of encoder, decoder cross-attention and decoder self-attention.
            padding: (B, h, w) bool.
            feature: (B, C, h, w).
            input_projection: (B, D, h, w).
            position: (B, D, h, w).
            memory: (B, S, D).
            queries: (L, B, Q, D).
        """
        h, w = padding.shape[1:]
        encoder, across, among = attention
        return cls(
            encoder_attention=encoder,
            decoder_attention=across,
            query_attention=among,
            feature_shapes=[(h, w)],
            padding=padding.flatten(1),
            stages={
                "feature": feature,
                "input_projection": input_projection,
                "position": position,
                "memory": memory.transpose(1, 2).unflatten(2, (h, w)),
                "queries": queries,
            },
        )

    def to(self, device: torch.device | str) -> Capture:
        """A copy with all tensors on `device`."""
        moved = {f.name: _moved(getattr(self, f.name), device) for f in fields(self)}
        return replace(self, **moved | {"stages": {k: v.to(device) for k, v in self.stages.items()}})


@dataclass
class Outputs:
    """What a model predicts for a batch.

    Attributes:
        logits: (B, Q, C) class logits. DETR: softmax logits, the last class is "no object".
        boxes: (B, Q, 4) cxcywh in [0, 1], relative to each image without padding.
        masks: (B, Q, h, w) mask logits, or None.
        aux: Outputs of the earlier decoder layers, first to last but one; empty without auxiliary outputs.
        encoder: Outputs of the two-stage proposal head over all tokens, or None.
        capture: attention and intermediate tensors when the model was called with `capture=True`, else None.
    """

    logits: Tensor
    boxes: Tensor
    masks: Tensor | None = None
    aux: list[Outputs] = field(default_factory=list)
    encoder: Outputs | None = None
    capture: Capture | None = None

    def to(self, device: torch.device | str) -> Outputs:
        """A copy with all tensors on `device`."""
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})
