"""Deformable DETR's transformer: encoder and decoder around deformable attention (Sec. 4.1), in the order of the data.

Positions on maps are kept relative to the valid part of each image ("valid ratios" convert them to the padded maps that
are sampled), so that an image's outputs do not depend on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detrkit.layers.attention import MultiHeadAttention
from detrkit.layers.checkpointing import checkpointed
from detrkit.layers.deformable import DeformableAttentionOutput, MSDeformAttention
from detrkit.layers.dropout import Dropout
from detrkit.layers.transformer import FeedForward
from detrkit.structures.attention import AttentionWeights
from detrkit.structures.outputs import Capturing, Outputs

Shapes = Sequence[tuple[int, int]]


class DeformableEncoderOutput(NamedTuple):
    """Result of a deformable encoder of NL layers.

    Attributes:
        memory: (B, S, D), what the decoder reads.
        hidden_states: NL (B, S, D) outputs of the layers; empty unless all is captured.
        sampling_locations: NL (B, S, H, L, P, 2) xy, the padded map being [0, 1]; empty unless captured.
        attention_weights: NL (B, S, H, L, P); empty unless captured.
    """

    memory: Tensor
    hidden_states: list[Tensor]
    sampling_locations: list[Tensor]
    attention_weights: list[Tensor]


class DeformableDecoderLayerOutput(NamedTuple):
    """Result of one deformable decoder layer.

    Attributes:
        hidden_states: (B, Q, D).
        self_attn_weights: of (B, H, Q, Q) weights, or None unless captured.
        sampling_locations: (B, Q, H, L, P, 2) xy, the padded map being [0, 1].
        attention_weights: (B, Q, H, L, P).
    """

    hidden_states: Tensor
    self_attn_weights: AttentionWeights | None
    sampling_locations: Tensor
    attention_weights: Tensor


class DeformableDecoderOutput(NamedTuple):
    """Result of a deformable decoder of NL layers.

    Attributes:
        logits: NL (B, Q, C), of the heads.
        boxes: NL (B, Q, 4) cxcywh in [0, 1], of the heads.
        hidden_states: NL (B, Q, D) outputs of the layers.
        reference_points: NL + 1 (B, Q, 2 or 4): of the first layer, and after each layer.
        self_attn_weights: NL, of (B, H, Q, Q) weights; empty unless captured, as the rest.
        sampling_locations: NL (B, Q, H, L, P, 2) xy, the padded map being [0, 1].
        attention_weights: NL (B, Q, H, L, P).
    """

    logits: list[Tensor]
    boxes: list[Tensor]
    hidden_states: list[Tensor]
    reference_points: list[Tensor]
    self_attn_weights: list[AttentionWeights]
    sampling_locations: list[Tensor]
    attention_weights: list[Tensor]

    def of_queries(self, start: int, stop: int) -> DeformableDecoderOutput:
        """Return the result of the queries from `start` to before `stop`, which see no others."""
        return DeformableDecoderOutput(*([_of_queries(value, start, stop) for value in part] for part in self))

    def outputs(self, *, aux: bool) -> Outputs:
        """Return the outputs of the last layer; with `aux`, those of the layers before it, too."""
        *earlier, outputs = map(Outputs, self.logits, self.boxes)
        outputs.aux = earlier if aux else []
        return outputs


def _of_queries(value: Any, start: int, stop: int) -> Any:
    return value.queries(start, stop) if isinstance(value, AttentionWeights) else value[:, start:stop]


class HeadsOutput(NamedTuple):
    """Result of the heads after one decoder layer.

    Attributes:
        logits: (B, Q, C).
        boxes: (B, Q, 4) cxcywh in [0, 1].
        reference_points: (B, Q, 4) of the next layer; None where they stay as they are.
    """

    logits: Tensor
    boxes: Tensor
    reference_points: Tensor | None


Heads = Callable[[int, Tensor, Tensor], HeadsOutput]


def cell_centers(spatial_shapes: Shapes, valid_sizes: Tensor) -> Tensor:
    """Compute the centers of all cells, (B, S, 2) xy relative to the valid part of the map.

    Args:
        spatial_shapes: (height, width) of every level in cells.
        valid_sizes: (B, L, 2) width and height of the valid part of every level in cells.
    """
    centers = []
    for level, (h, w) in enumerate(spatial_shapes):
        y, x = torch.meshgrid(
            torch.arange(h, dtype=valid_sizes.dtype, device=valid_sizes.device) + 0.5,
            torch.arange(w, dtype=valid_sizes.dtype, device=valid_sizes.device) + 0.5,
            indexing="ij",
        )
        centers.append(torch.stack([x, y], -1).view(1, -1, 2) / valid_sizes[:, level, None])
    return torch.cat(centers, 1)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention among the cells of all levels, then a feed-forward network.

    Args:
        width, heads, dim_feedforward: sizes of the layer.
        levels, points: as of `MSDeformAttention`.
        dropout: inside the feed-forward network and on both residual branches.
    """

    def __init__(
        self, width: int, heads: int, dim_feedforward: int, *, levels: int, points: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = MSDeformAttention(width, heads, levels=levels, points=points)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, dim_feedforward, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.drop = Dropout(dropout)

    def forward(
        self,
        src: Tensor,
        pos_embed: Tensor,
        reference_points: Tensor,
        spatial_shapes: Shapes,
        *,
        padding_mask: Tensor | None,
    ) -> DeformableAttentionOutput:
        """Compute one layer.

        Args:
            src: (B, S, D) tokens.
            pos_embed: (B, S, D) position encoding, with that of the level.
            reference_points: (B, S, L, 2) xy in [0, 1] of each level's padded map.
            spatial_shapes: (height, width) of every level in cells.
            padding_mask: (B, S) bool, True where padded, or None.
        """
        attended, locations, weights = self.self_attention(
            src + pos_embed, reference_points, src, spatial_shapes, padding_mask=padding_mask
        )
        x = self.norm1(src + self.drop(attended))
        return DeformableAttentionOutput(self.norm2(x + self.drop(self.feed_forward(x))), locations, weights)


class DeformableEncoder(nn.ModuleList):
    """A stack of `DeformableEncoderLayer`: it is made of them and is a list of them, which names their parameters."""

    checkpointing = False  # see `set_checkpointing`

    def forward(
        self,
        src: Tensor,
        *,
        pos_embed: Tensor,
        spatial_shapes: Shapes,
        valid_sizes: Tensor,
        valid_ratios: Tensor,
        padding_mask: Tensor | None,
        capture: Capturing = False,
    ) -> DeformableEncoderOutput:
        """Encode the tokens; each one's reference point is its own cell.

        Args:
            src: (B, S, D) tokens of all levels.
            pos_embed: (B, S, D) position encoding, with that of the level.
            spatial_shapes: (height, width) of every level in cells.
            valid_sizes: (B, L, 2) width and height of the valid part of every level in cells.
            valid_ratios: (B, L, 2) the same as a share of the padded map.
            padding_mask: (B, S) bool, True where padded, or None.
            capture: return sampling locations and weights, too; unless "attention", also the layers' tokens.
        """
        reference_points = cell_centers(spatial_shapes, valid_sizes)[:, :, None] * valid_ratios[:, None]
        memory, hidden_states, sampling_locations, attention_weights = src, [], [], []
        for layer in self:
            memory, locations, weights = checkpointed(
                layer,
                memory,
                pos_embed,
                reference_points,  # (B, S, L, 2)
                spatial_shapes,
                padding_mask=padding_mask,
                on=self.checkpointing,
            )
            if capture:
                sampling_locations.append(locations)
                attention_weights.append(weights)
            if capture is True:
                hidden_states.append(memory)
        return DeformableEncoderOutput(memory, hidden_states, sampling_locations, attention_weights)


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the memory, a feed-forward network.

    Args: as of `DeformableEncoderLayer`; and

        discrete: as of `MSDeformAttention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dim_feedforward: int,
        *,
        levels: int,
        points: int | Sequence[int],
        dropout: float,
        discrete: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)  # numbered as published: after self-attention
        self.cross_attention = MSDeformAttention(width, heads, levels=levels, points=points, discrete=discrete)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, dim_feedforward, dropout=dropout)
        self.norm3 = nn.LayerNorm(width)
        self.drop = Dropout(dropout)

    def forward(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        spatial_shapes: Shapes,
        *,
        padding_mask: Tensor | None,
        valid_ratios: Tensor | None = None,
        query_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        capture: bool = False,
    ) -> DeformableDecoderLayerOutput:
        """Compute one layer.

        Args:
            tgt: (B, Q, D) hidden states of the queries.
            query_pos: (B, Q, D).
            reference_points: (B, Q, L, 2 or 4) in [0, 1] of each level's padded map.
            memory: (B, S, D).
            spatial_shapes: (height, width) of every level in cells.
            padding_mask: (B, S) bool, True where padded, or None.
            valid_ratios: (B, L, 2), as of `MSDeformAttention.forward`.
            query_padding_mask: (B, Q) bool, True for queries that the others must not see, or None.
            attn_mask: (Q, Q) bool, True where a query must not attend to another, or None.
            capture: return the self-attention weights, too.
        """
        q = tgt + query_pos
        attended, self_attn_weights = self.self_attention(
            q, q, tgt, key_padding_mask=query_padding_mask, attn_mask=attn_mask, capture=capture
        )
        x = self.norm2(tgt + self.drop(attended))
        attended, locations, weights = self.cross_attention(
            x + query_pos,
            reference_points,
            memory,
            spatial_shapes,
            padding_mask=padding_mask,
            valid_ratios=valid_ratios,
        )
        x = self.norm1(x + self.drop(attended))
        x = self.norm3(x + self.drop(self.feed_forward(x)))
        return DeformableDecoderLayerOutput(x, self_attn_weights, locations, weights)


class DeformableDecoder(nn.ModuleList):
    """A stack of `DeformableDecoderLayer`: it is made of them and is a list of them, which names their parameters."""

    checkpointing = False  # see `set_checkpointing`

    def forward(
        self,
        tgt: Tensor,
        *,
        query_pos: Tensor | Callable[[Tensor], Tensor],
        reference_points: Tensor,
        memory: Tensor,
        spatial_shapes: Shapes,
        valid_ratios: Tensor,
        padding_mask: Tensor | None,
        heads: Heads,
        look_forward_twice: bool = False,
        layers: int | None = None,
        query_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        capture: Capturing = False,
    ) -> DeformableDecoderOutput:
        """Decode the queries, layer by layer, each followed by the heads.

        Args:
            tgt: (B, Q, D) first hidden states.
            query_pos: (B, Q, D); or (DINO) a function that returns it from a layer's (B, Q, 4) reference points.
            reference_points: (B, Q, 2) xy or (B, Q, 4) cxcywh in [0, 1] of the image without padding.
            memory: (B, S, D).
            spatial_shapes: (height, width) of every level in cells.
            valid_ratios: (B, L, 2) width and height of the valid part as a share of the padded map.
            padding_mask: (B, S) bool, True where padded, or None.
            heads: called with a layer's number, its (B, Q, D) hidden states and its (B, Q, 2 or 4) reference points.
                The reference points that they return, detached, are those of the next layer: its boxes under
                "iterative bounding box refinement" (Sec. 4.2).
            look_forward_twice: the heads of a layer get its reference points with their gradient, so that a layer
                learns from the loss of the next one, too (DINO, Sec. 3.5). The layer itself gets them detached.
            layers: the first so many are computed; None: all.
            query_padding_mask: (B, Q) bool, True for queries that the others must not see, or None.
            attn_mask: (Q, Q) bool, True where a query must not attend to another, or None.
            capture: return attention weights and sampling locations, too.
        """
        out = DeformableDecoderOutput([], [], [], [reference_points], [], [], [])
        x = tgt
        reference = reference_points  # of the heads
        for i, layer in enumerate(list(self)[:layers]):
            # (B, Q, L, 2 or 4) of the padded maps
            scaled = reference_points[:, :, None] * valid_ratios.repeat(1, 1, reference_points.shape[-1] // 2)[:, None]
            x, self_attn_weights, locations, weights = checkpointed(
                layer,
                x,
                query_pos(reference_points) if callable(query_pos) else query_pos,
                scaled,
                memory,
                spatial_shapes,
                padding_mask=padding_mask,
                valid_ratios=None if padding_mask is None else valid_ratios,
                query_padding_mask=query_padding_mask,
                attn_mask=attn_mask,
                capture=bool(capture),
                on=self.checkpointing,
            )
            logits, boxes, following = heads(i, x, reference)
            if following is not None:
                reference_points = following.detach()
                reference = following if look_forward_twice else reference_points
            out.logits.append(logits)
            out.boxes.append(boxes)
            out.hidden_states.append(x)
            out.reference_points.append(reference_points)
            if capture:
                out.self_attn_weights.append(self_attn_weights)
                out.sampling_locations.append(locations)
                out.attention_weights.append(weights)
        return out
