"""Deformable attention and the encoder and decoder layers around it (Deformable DETR, Sec. 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrkit.layers.attention import MultiHeadAttention
from detrkit.layers.dropout import Dropout
from detrkit.layers.linear import Linear
from detrkit.layers.transformer import FeedForward
from detrkit.ops.ms_deform import ms_deform_attn


class MSDeformAttention(nn.Module):
    """Every query attends to a few points around its reference, on every level.

    Args:
        width: channels of queries, values and output.
        heads: number of heads; divides `width`.
        levels: number of feature levels.
        points: sampled points per head and level.
    """

    def __init__(self, width: int, heads: int, *, levels: int, points: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = Linear(width, heads * levels * points * 2)
        self.attention_weights = Linear(width, heads * levels * points)
        self.value_proj = Linear(width, width)
        self.output_proj = Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Points start on rays, one direction a head, the k-th at distance k pixels; weights start equal (Sec. A.4)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        ray = torch.stack([angle.cos(), angle.sin()], -1)  # (heads, 2)
        ray = ray / ray.abs().max(-1, keepdim=True).values
        distance = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = ray[:, None, None] * distance[:, None]  # (heads, 1, points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        *,
        padding: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attends from queries to the maps.

        Args:
            query: (B, Q, D), position added.
            references: (B, Q, L, 2) xy or (B, Q, L, 4) cxcywh in [0, 1] of each level's padded map.
            memory: (B, S, D) flattened maps.
            shapes: (height, width) of every level.
            padding: (B, S) bool, True where padded: these values count as 0; None when nothing is padded.

        Returns:
            (B, Q, D) output, (B, Q, heads, L, P, 2) sampling locations, (B, Q, heads, L, P) attention weights.
        """
        b, q, _ = query.shape
        value = self.value_proj(memory)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.unflatten(-1, (self.heads, -1))  # (B, S, heads, D / heads)
        offsets = self.sampling_offsets(query).view(b, q, self.heads, -1)  # (B, Q, heads, L * P * 2)
        weights = self.attention_weights(query).view(b, q, self.heads, -1).softmax(-1)
        weights = weights.view(b, q, self.heads, self.levels, self.points)
        # what all heads share is spread over the points first: broadcast along axes of 2 and 4, the encoder's 22,000
        # queries take 22 ms a layer, and 3 ms so
        centre = self._of_points(references[..., :2])  # (B, Q, 1, L * P * 2)
        if references.shape[-1] == 2:
            scale = self._of_points(references.new_tensor([(w, h) for h, w in shapes]))  # offsets are in pixels
            locations = torch.addcdiv(centre, offsets, scale)
        else:
            # offsets in half boxes, a step being 1 / points of it
            locations = centre + offsets / self.points * self._of_points(references[..., 2:]) * 0.5
        locations = locations.view(b, q, self.heads, self.levels, self.points, 2)
        out = ms_deform_attn(value, shapes, locations, weights)
        return self.output_proj(out), locations, weights

    def _of_points(self, x: Tensor) -> Tensor:
        """What every level has, for every one of its points: (..., L, 2) to (..., 1, L * P * 2)."""
        return x[..., None, :].expand(*x.shape[:-1], self.points, 2).flatten(-3)[..., None, :]


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention among the cells of all levels, then a feed-forward network (Sec. 4.1)."""

    def __init__(self, width: int, heads: int, hidden: int, *, levels: int, points: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = MSDeformAttention(width, heads, levels=levels, points=points)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.drop = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        references: Tensor,
        shapes: Sequence[tuple[int, int]],
        *,
        padding: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, D) tokens to (B, S, D), with the sampling locations and weights of `MSDeformAttention`."""
        update, locations, weights = self.self_attention(x + position, references, x, shapes, padding=padding)
        x = self.norm1(x + self.drop(update))
        return self.norm2(x + self.drop(self.feed_forward(x))), locations, weights


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the memory, a feed-forward network (Sec. 4.1)."""

    def __init__(self, width: int, heads: int, hidden: int, *, levels: int, points: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(width)  # numbered as published: after self-attention
        self.cross_attention = MSDeformAttention(width, heads, levels=levels, points=points)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout=dropout)
        self.norm3 = nn.LayerNorm(width)
        self.drop = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        references: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        *,
        padding: Tensor | None,
        absent: Tensor | None = None,
        capture: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """One layer.

        Args:
            x: (B, Q, D) query states.
            query_position: (B, Q, D).
            references: (B, Q, L, 2 or 4) in [0, 1] of each level's padded map.
            memory: (B, S, D).
            shapes: (height, width) of every level.
            padding: (B, S) bool, True where padded, or None.
            absent: (B, Q) bool, True for queries that the others must not see, or None.
            capture: also return the self-attention weights.

        Returns:
            (B, Q, D) states, (B, heads, Q, Q) self-attention or None, sampling locations, attention weights.
        """
        q = x + query_position
        update, among = self.self_attention(q, q, x, padding=absent, capture=capture)
        x = self.norm2(x + self.drop(update))
        update, locations, weights = self.cross_attention(
            x + query_position, references, memory, shapes, padding=padding
        )
        x = self.norm1(x + self.drop(update))
        return self.norm3(x + self.drop(self.feed_forward(x))), among, locations, weights
