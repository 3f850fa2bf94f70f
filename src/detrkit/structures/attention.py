"""`AttentionWeights`: the attention weights of one layer, computed when somebody asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.amp import is_autocast_available


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """Softmax attention of one layer, held as its queries and keys.

    The weights of an encoder layer are S x S numbers a head, 450 MB for DC5 and an image of 800 x 1199 pixels; its
    queries and keys are 8 MB. So the layer keeps these, and the weights are computed for the rows that are asked for.

    Attributes:
        q: (B, H, Q, D / H) projected queries.
        k: (B, H, S, D / H) projected keys.
        visible: bool that broadcasts to (B, 1, Q, S), True where a query may attend to a key; None: everywhere.
    """

    q: Tensor
    k: Tensor
    visible: Tensor | None

    @property
    def heads(self) -> int:
        """Number of heads H."""
        return self.q.shape[1]

    def full(self) -> Tensor:
        """Compute all weights: (B, H, Q, S), float32, or float64 of a double model."""
        return _precise_weights(self.q, self.k, self.visible)

    def rows(self, image: int, queries: Sequence[int] | Tensor) -> Tensor:
        """Compute the weights of n queries of one image of the batch: (H, n, S), in the dtype of `full`.

        Args:
            image: its number in the batch.
            queries: n indices of queries (in an encoder: of tokens).
        """
        chosen = torch.as_tensor(queries, dtype=torch.int64, device=self.q.device)
        visible = self.visible
        if visible is not None:
            visible = visible.expand(len(self.q), 1, -1, -1)[image]  # (1, 1 or Q, S)
            visible = visible[:, chosen] if visible.shape[1] > 1 else visible
        return _precise_weights(self.q[image][:, chosen], self.k[image], visible)

    def queries(self, start: int, stop: int) -> AttentionWeights:
        """Return self-attention among the queries from `start` to before `stop`, which see no others."""
        chosen = slice(start, stop)
        visible = self.visible
        if visible is not None:
            visible = visible.expand(*visible.shape[:-2], self.q.shape[2], self.k.shape[2])[..., chosen, chosen]
        return replace(self, q=self.q[:, :, chosen], k=self.k[:, :, chosen], visible=visible)

    def to(self, device: torch.device | str) -> AttentionWeights:
        """Return a copy with all tensors on `device`."""
        visible = None if self.visible is None else self.visible.to(device)
        return replace(self, q=self.q.to(device), k=self.k.to(device), visible=visible)


def attention_weights(q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)), (..., H, Q, S) (Vaswani et al. 2017, Eq. 1; DETR Sec. A.1).

    Args: as the attributes of `AttentionWeights`, with or without B.
    """
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, H, Q, S)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return scores.softmax(-1)


def _precise_weights(q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
    """Compute `attention_weights` in float32 or float64, as the fused kernels do inside.

    A row of 3750 weights in bfloat16 sums to 1 only within a few percent.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    device = q.device.type
    with torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext():
        return attention_weights(q.to(dtype), k.to(dtype), visible)
