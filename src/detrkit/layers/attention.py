"""Multi-head attention on the fused kernel; its weights are computed on request."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.layers.checkpointing import checkpointed
from detrkit.layers.linear import Linear
from detrkit.ops.dense import linear
from detrkit.ops.dropout import dropout as drop_out
from detrkit.structures.attention import AttentionWeights, attention_weights

ATTENTION_CHUNK = 2**24  # attention weights computed at once on a CPU where gradients are needed


class AttentionOutput(NamedTuple):
    """Result of an attention layer.

    Attributes:
        output: (B, Q, D).
        attn_weights: of the layer, (B, H, Q, S), computed on request; None unless captured.
    """

    output: Tensor
    attn_weights: AttentionWeights | None


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with several heads (Vaswani et al. 2017; DETR Sec. A.1).

    The parameters are laid out as in `torch.nn.MultiheadAttention` (one packed input projection), so that published
    weights load unchanged and Xavier initialization sees the packed matrix, as it did in the published training.

    Args:
        width: channels D of queries, keys, values and output.
        heads: number of heads H; divides `width`.
        dropout: on the attention weights, in training.
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        capture: bool = False,
    ) -> AttentionOutput:
        """Attend from queries to keys.

        Args:
            query: (B, Q, D).
            key: (B, S, D).
            value: (B, S, D).
            key_padding_mask: (B, S) bool, True where a key is padding and gets no attention; None without padding,
                which lets the kernel skip the mask. Each image needs one valid key.
            attn_mask: (Q, S) bool, True where a query must not attend to a key, as in `torch.nn.MultiheadAttention`;
                None for no restriction. Each query needs one key that is not padding; in self-attention a padded one
                sees itself.
            capture: return the attention weights, too, which keeps the layer's queries and keys in memory.
        """
        width = query.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key:
            q, k = linear(query, weight[: 2 * width], bias[: 2 * width]).chunk(2, -1)
        else:
            q = linear(query, weight[:width], bias[:width])
            k = linear(key, weight[width : 2 * width], bias[width : 2 * width])
        v = linear(value, weight[2 * width :], bias[2 * width :])
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, H, Q or S, D / H)
        visible = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]  # (B, 1, 1, S)
        if attn_mask is not None:
            visible = ~attn_mask if visible is None else visible & ~attn_mask  # (Q, S) or (B, 1, Q, S)
            if key_padding_mask is not None and query is key:
                # a padded one, which no other sees, may have none to see but itself: without any its softmax is NaN
                visible = visible | torch.eye(len(attn_mask), dtype=torch.bool, device=attn_mask.device)
        dropout = self.dropout if self.training else 0.0
        if dropout > 0.0 and query.device.type == "cpu":  # the kernel's dropout is slow there
            out = _attend_in_chunks(q, k, v, visible, dropout)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)
        weights = AttentionWeights(q, k, visible) if capture else None
        return AttentionOutput(self.out_proj(out.transpose(1, 2).flatten(2)), weights)


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """Compute attention step by step: the (B, H, Q, D / H) output."""
    return drop_out(attention_weights(q, k, visible), dropout) @ v


def _attend_in_chunks(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """Compute the output of `_attend` over chunks of heads, without keeping the weights for the gradient."""
    weights_per_head = len(q) * q.shape[2] * k.shape[2]
    heads_per_chunk = max(1, ATTENTION_CHUNK // weights_per_head)
    if heads_per_chunk >= q.shape[1]:
        return _attend(q, k, v, visible, dropout)
    chunks = zip(*(t.split(heads_per_chunk, 1) for t in (q, k, v)), strict=True)
    return torch.cat([checkpointed(_attend, *chunk, visible, dropout, on=True) for chunk in chunks], 1)
