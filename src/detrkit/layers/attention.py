"""Multi-head attention on the fused kernel, with its weights on request."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.layers.checkpointing import checkpointed
from detrkit.layers.linear import Linear
from detrkit.ops.dense import linear
from detrkit.ops.dropout import dropout as drop_out

PART = 2**24  # attention weights that a processor computes together, where their gradient is asked for


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with several heads (Vaswani et al. 2017; DETR Sec. A.1).

    The parameters are laid out as in `torch.nn.MultiheadAttention` (one packed input projection), so that published
    weights load unchanged and Xavier initialisation sees the packed matrix, as it did in the published training.

    Args:
        width: channels of queries, keys, values and output.
        heads: number of heads; divides `width`.
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
        self, query: Tensor, key: Tensor, value: Tensor, *, padding: Tensor | None = None, capture: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from queries to keys.

        Args:
            query: (B, Q, D).
            key: (B, S, D).
            value: (B, S, D).
            padding: (B, S) bool, True where a key must not be seen; None when there is no padding, which lets the
                kernel skip the mask. Every image needs one valid key.
            capture: also return the weights, at the price of materialising them.

        Returns:
            (B, Q, D) output, and (B, heads, Q, S) attention weights or None.
        """
        width = query.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key:
            q, k = linear(query, weight[: 2 * width], bias[: 2 * width]).chunk(2, -1)
        else:
            q = linear(query, weight[:width], bias[:width])
            k = linear(key, weight[width : 2 * width], bias[width : 2 * width])
        v = linear(value, weight[2 * width :], bias[2 * width :])
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, L, D / heads)
        visible = None if padding is None else ~padding[:, None, None, :]  # (B, 1, 1, S)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if capture:
            out, weights = _attend(q, k, v, visible, dropout)
        elif dropout > 0.0 and query.device.type == "cpu":  # the kernel's dropout is slow there
            out = _attend_by_parts(q, k, v, visible, dropout)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2)), weights


def _attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """(B, heads, Q, D / heads) output and (B, heads, Q, S) weights of attention, step by step."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, heads, Q, S)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    weights = scores.softmax(-1)
    return drop_out(weights, dropout) @ v, weights


def _attend_by_parts(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
    """The output of `_attend`; large ones for some heads at a time, whose weights are not kept for the gradient."""
    weights_of_a_head = len(q) * q.shape[2] * k.shape[2]
    heads = max(1, PART // weights_of_a_head)
    if heads >= q.shape[1]:
        return _attend(q, k, v, visible, dropout)[0]
    parts = zip(*(t.split(heads, 1) for t in (q, k, v)), strict=True)
    return torch.cat([checkpointed(_attend, *part, visible, dropout, on=True)[0] for part in parts], 1)
