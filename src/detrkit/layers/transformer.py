"""DETR's transformer: encoder and decoder of the paper's Fig. 10 (Sec. A.3), in the order the data meets them.

The position encoding is added to queries and keys of every attention, never to values; the object queries are added
again at every decoder layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrkit.layers.attention import MultiHeadAttention
from detrkit.layers.checkpointing import checkpointed
from detrkit.layers.dropout import Dropout
from detrkit.layers.linear import Linear


def _with(x: Tensor, position: Tensor | None) -> Tensor:
    return x if position is None else x + position


def init_transformer(*parts: nn.Module) -> None:
    """Xavier-uniform values for every matrix of the parts, as published; packed projections count as one matrix."""
    for part in parts:
        for parameter in part.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)


class FeedForward(nn.Module):
    """Two linear layers around a ReLU, applied to every token (Vaswani et al. 2017, Sec. 3.3)."""

    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.linear1 = Linear(width, hidden)
        self.linear2 = Linear(hidden, width)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        hidden = self.drop(self.linear1(x, relu=True))
        return self.linear2(hidden)


class EncoderLayer(nn.Module):
    """Self-attention among the tokens of the feature map, then a feed-forward network, each with a residual.

    Args:
        width, heads, hidden: sizes of the layer.
        dropout: on attention weights, inside the feed-forward network and on both residual branches.
        pre_norm: normalise the input of each part (official `--pre_norm`) instead of its output.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.feed_forward = FeedForward(width, hidden, dropout=dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.drop = Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self, x: Tensor, *, position: Tensor | None, padding: Tensor | None, capture: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """One layer.

        Args:
            x: (B, S, D) tokens.
            position: (B, S, D) encoding, or None.
            padding: (B, S) bool, True where padded, or None.
            capture: also return the attention weights.

        Returns:
            (B, S, D) tokens, and (B, heads, S, S) attention weights or None.
        """
        y = self.norm1(x) if self.pre_norm else x
        q = _with(y, position)
        update, weights = self.self_attention(q, q, y, padding=padding, capture=capture)
        x = x + self.drop(update)
        if not self.pre_norm:
            x = self.norm1(x)
        x = x + self.drop(self.feed_forward(self.norm2(x) if self.pre_norm else x))
        if not self.pre_norm:
            x = self.norm2(x)
        return x, weights


class Encoder(nn.Module):
    """A stack of encoder layers; `final_norm` where the published model has one (pre-norm DETR, the demo)."""

    checkpointing = False  # see `set_checkpointing`

    def __init__(
        self, layers: int, width: int, heads: int, hidden: int, *, dropout: float, pre_norm: bool, final_norm: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, hidden, dropout=dropout, pre_norm=pre_norm) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width) if final_norm else None

    def forward(
        self, x: Tensor, *, position: Tensor | None, padding: Tensor | None, capture: bool = False
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(B, S, D) tokens to the memory, alike; if captured, each layer's tokens and (B, heads, S, S) weights, too."""
        states, attention = [], []
        for layer in self.layers:
            x, weights = checkpointed(
                layer, x, position=position, padding=padding, capture=capture, on=self.checkpointing
            )
            if weights is not None:
                states.append(x)
                attention.append(weights)
        return (x if self.norm is None else self.norm(x)), states, attention


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the memory, a feed-forward network, each with a residual.

    Args: as `EncoderLayer`.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.cross_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.feed_forward = FeedForward(width, hidden, dropout=dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.drop = Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        key: Tensor,
        *,
        query_position: Tensor | None,
        padding: Tensor | None,
        capture: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """One layer.

        Args:
            x: (B, Q, D) query states.
            memory: (B, S, D) encoder output, the values.
            key: (B, S, D) memory with its position encoding added.
            query_position: (B, Q, D) object queries, or None.
            padding: (B, S) bool, True where the memory is padding, or None.
            capture: also return both attention weights.

        Returns:
            (B, Q, D) states, (B, heads, Q, Q) self-attention and (B, heads, Q, S) cross-attention or None.
        """
        pre = self.pre_norm
        y = self.norm1(x) if pre else x
        q = _with(y, query_position)
        update, among = self.self_attention(q, q, y, capture=capture)
        x = x + self.drop(update)
        if not pre:
            x = self.norm1(x)
        y = self.norm2(x) if pre else x
        update, across = self.cross_attention(_with(y, query_position), key, memory, padding=padding, capture=capture)
        x = x + self.drop(update)
        if not pre:
            x = self.norm2(x)
        x = x + self.drop(self.feed_forward(self.norm3(x) if pre else x))
        if not pre:
            x = self.norm3(x)
        return x, among, across


class Decoder(nn.Module):
    """A stack of decoder layers whose one final norm applies to every layer's output (DETR Sec. 3.2)."""

    checkpointing = False  # see `set_checkpointing`

    def __init__(self, layers: int, width: int, heads: int, hidden: int, *, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, hidden, dropout=dropout, pre_norm=pre_norm) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        *,
        position: Tensor | None,
        query_position: Tensor | None,
        padding: Tensor | None,
        capture: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """Decodes the queries.

        Args:
            x: (B, Q, D) initial states (zeros in DETR, the queries in the demo).
            memory: (B, S, D) encoder output.
            position: (B, S, D) encoding of the memory, or None.
            query_position: (B, Q, D) object queries, or None.
            padding: (B, S) bool, True where padded, or None.
            capture: also return the attention weights, and the states before the norm.

        Returns:
            (L, B, Q, D) normed states of every layer; per layer (B, Q, D) states before the norm; per layer
            (B, heads, Q, Q) self-attention; per layer (B, heads, Q, S) cross-attention (empty lists unless captured).
        """
        key = _with(memory, position)
        states, before, among, across = [], [], [], []
        for layer in self.layers:
            x, own, cross = checkpointed(
                layer,
                x,
                memory,
                key,
                query_position=query_position,
                padding=padding,
                capture=capture,
                on=self.checkpointing,
            )
            states.append(self.norm(x))
            if own is not None and cross is not None:
                before.append(x)
                among.append(own)
                across.append(cross)
        return torch.stack(states), before, among, across
