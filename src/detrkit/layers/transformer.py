"""DETR's transformer: encoder and decoder of the paper's Fig. 10 (Sec. A.3), in the order the data meets them.

The position encoding is added to queries and keys of every attention, never to values; the object queries are added
again at every decoder layer.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.layers.attention import AttentionOutput, MultiHeadAttention
from detrkit.layers.checkpointing import checkpointed
from detrkit.layers.dropout import Dropout
from detrkit.layers.linear import Linear
from detrkit.structures.attention import AttentionWeights
from detrkit.structures.outputs import Capturing


class EncoderOutput(NamedTuple):
    """Result of an encoder of NL layers.

    Attributes:
        memory: (B, S, D), what the decoder reads.
        hidden_states: NL (B, S, D) outputs of the layers; empty unless all is captured.
        attn_weights: NL, of (B, H, S, S) weights computed on request; empty unless captured.
    """

    memory: Tensor
    hidden_states: list[Tensor]
    attn_weights: list[AttentionWeights]


class DecoderLayerOutput(NamedTuple):
    """Result of one decoder layer.

    Attributes:
        hidden_states: (B, Q, D).
        self_attn_weights: of (B, H, Q, Q) weights, or None unless captured.
        cross_attn_weights: of (B, H, Q, S) weights, or None unless captured.
    """

    hidden_states: Tensor
    self_attn_weights: AttentionWeights | None
    cross_attn_weights: AttentionWeights | None


class DecoderOutput(NamedTuple):
    """Result of a decoder of NL layers.

    Attributes:
        hs: (NL, B, Q, D) normed outputs of all layers, what the heads read.
        hidden_states: NL (B, Q, D) outputs of the layers before the norm; empty unless captured.
        self_attn_weights: NL, of (B, H, Q, Q) weights; empty unless captured.
        cross_attn_weights: NL, of (B, H, Q, S) weights; empty unless captured.
    """

    hs: Tensor
    hidden_states: list[Tensor]
    self_attn_weights: list[AttentionWeights]
    cross_attn_weights: list[AttentionWeights]


def with_pos_embed(x: Tensor, pos_embed: Tensor | None) -> Tensor:
    """Add a position encoding, if there is one."""
    return x if pos_embed is None else x + pos_embed


def init_transformer(*modules: nn.Module) -> None:
    """Initialize every matrix of the modules with Xavier-uniform values, as published; a packed one counts as one."""
    for module in modules:
        for parameter in module.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)


class FeedForward(nn.Module):
    """Two linear layers around a ReLU or GELU, applied to every token (Vaswani et al. 2017, Sec. 3.3)."""

    def __init__(
        self, width: int, dim_feedforward: int, *, dropout: float, activation: Literal["relu", "gelu"] = "relu"
    ) -> None:
        super().__init__()
        self.activation = activation
        self.linear1 = Linear(width, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, width)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, S, D) to (B, S, D)."""
        if self.activation == "gelu":
            return self.linear2(self.drop(F.gelu(self.linear1(x))))
        return self.linear2(self.drop(self.linear1(x, relu=True)))


class EncoderLayer(nn.Module):
    """Self-attention among the tokens of the feature map, then a feed-forward network, each with a residual.

    Args:
        width, heads, dim_feedforward: sizes of the layer.
        dropout: on attention weights, inside the feed-forward network and on both residual branches.
        pre_norm: normalize the input of each part (official `--pre_norm`) instead of its output.
        activation: of the feed-forward network (DETR: "relu", RT-DETR: "gelu").
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dim_feedforward: int,
        *,
        dropout: float,
        pre_norm: bool,
        activation: Literal["relu", "gelu"] = "relu",
    ) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.feed_forward = FeedForward(width, dim_feedforward, dropout=dropout, activation=activation)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.drop = Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self,
        src: Tensor,
        *,
        pos_embed: Tensor | None,
        key_padding_mask: Tensor | None,
        capture: bool = False,
    ) -> AttentionOutput:
        """Compute one layer.

        Args:
            src: (B, S, D) tokens.
            pos_embed: (B, S, D) position encoding, or None.
            key_padding_mask: (B, S) bool, True where padded, or None.
            capture: return the attention weights, too.

        Returns:
            (B, S, D) tokens, and their attention weights, (B, H, S, S), or None.
        """
        x = src
        y = self.norm1(x) if self.pre_norm else x
        q = with_pos_embed(y, pos_embed)
        attended, weights = self.self_attention(q, q, y, key_padding_mask=key_padding_mask, capture=capture)
        x = x + self.drop(attended)
        if not self.pre_norm:
            x = self.norm1(x)
        x = x + self.drop(self.feed_forward(self.norm2(x) if self.pre_norm else x))
        if not self.pre_norm:
            x = self.norm2(x)
        return AttentionOutput(x, weights)


class Encoder(nn.Module):
    """A stack of encoder layers; `final_norm` where the published model has one (pre-norm DETR, the demo)."""

    checkpointing = False  # see `set_checkpointing`

    def __init__(
        self,
        num_layers: int,
        width: int,
        heads: int,
        dim_feedforward: int,
        *,
        dropout: float,
        pre_norm: bool,
        final_norm: bool,
        activation: Literal["relu", "gelu"] = "relu",
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"dropout": dropout, "pre_norm": pre_norm, "activation": activation}
        self.layers = nn.ModuleList(EncoderLayer(width, heads, dim_feedforward, **options) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width) if final_norm else None

    def forward(
        self,
        src: Tensor,
        *,
        pos_embed: Tensor | None,
        key_padding_mask: Tensor | None,
        capture: Capturing = False,
    ) -> EncoderOutput:
        """Encode (B, S, D) tokens; arguments as of `EncoderLayer.forward`; "attention" keeps no hidden states."""
        x = src
        hidden_states, attn_weights = [], []
        for layer in self.layers:
            x, weights = checkpointed(
                layer,
                x,
                pos_embed=pos_embed,
                key_padding_mask=key_padding_mask,
                capture=bool(capture),
                on=self.checkpointing,
            )
            if capture:
                attn_weights.append(weights)
            if capture is True:
                hidden_states.append(x)
        return EncoderOutput(x if self.norm is None else self.norm(x), hidden_states, attn_weights)


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the memory, a feed-forward network, each with a residual.

    Args: as `EncoderLayer`.
    """

    def __init__(self, width: int, heads: int, dim_feedforward: int, *, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.cross_attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.feed_forward = FeedForward(width, dim_feedforward, dropout=dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.drop = Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        key: Tensor,
        *,
        query_pos: Tensor | None,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None = None,
        capture: bool = False,
    ) -> DecoderLayerOutput:
        """Compute one layer.

        Args:
            tgt: (B, Q, D) hidden states of the queries.
            memory: (B, S, D) encoder output, the values.
            key: (B, S, D) memory with its position encoding added.
            query_pos: (B, Q, D) object queries, or None.
            key_padding_mask: (B, S) bool, True where the memory is padding, or None.
            attn_mask: (Q, Q) bool, True where a query must not attend to another, or None.
            capture: return both attention weights, too.
        """
        pre_norm = self.pre_norm
        x = tgt
        y = self.norm1(x) if pre_norm else x
        q = with_pos_embed(y, query_pos)
        attended, self_attn_weights = self.self_attention(q, q, y, attn_mask=attn_mask, capture=capture)
        x = x + self.drop(attended)
        if not pre_norm:
            x = self.norm1(x)
        y = self.norm2(x) if pre_norm else x
        attended, cross_attn_weights = self.cross_attention(
            with_pos_embed(y, query_pos), key, memory, key_padding_mask=key_padding_mask, capture=capture
        )
        x = x + self.drop(attended)
        if not pre_norm:
            x = self.norm2(x)
        x = x + self.drop(self.feed_forward(self.norm3(x) if pre_norm else x))
        if not pre_norm:
            x = self.norm3(x)
        return DecoderLayerOutput(x, self_attn_weights, cross_attn_weights)


class Decoder(nn.Module):
    """A stack of decoder layers whose one final norm applies to every layer's output (DETR Sec. 3.2)."""

    checkpointing = False  # see `set_checkpointing`

    def __init__(
        self, num_layers: int, width: int, heads: int, dim_feedforward: int, *, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, dim_feedforward, dropout=dropout, pre_norm=pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        *,
        pos_embed: Tensor | None,
        query_pos: Tensor | None,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None = None,
        capture: Capturing = False,
    ) -> DecoderOutput:
        """Decode the queries.

        Args:
            tgt: (B, Q, D) first hidden states (zeros in DETR, the queries in the demo).
            memory: (B, S, D) encoder output.
            pos_embed: (B, S, D) position encoding of the memory, or None.
            query_pos: (B, Q, D) object queries, or None.
            key_padding_mask: (B, S) bool, True where padded, or None.
            attn_mask: (Q, Q) bool, True where a query must not attend to another, or None.
            capture: return the attention weights, and the hidden states before the norm, too.
        """
        x = tgt
        key = with_pos_embed(memory, pos_embed)
        hs, hidden_states, self_attn_weights, cross_attn_weights = [], [], [], []
        for layer in self.layers:
            x, self_weights, cross_weights = checkpointed(
                layer,
                x,
                memory,
                key,
                query_pos=query_pos,
                key_padding_mask=key_padding_mask,
                attn_mask=attn_mask,
                capture=bool(capture),
                on=self.checkpointing,
            )
            hs.append(self.norm(x))
            if capture:
                hidden_states.append(x)
                self_attn_weights.append(self_weights)
                cross_attn_weights.append(cross_weights)
        return DecoderOutput(torch.stack(hs), hidden_states, self_attn_weights, cross_attn_weights)
