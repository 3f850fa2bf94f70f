"""RT-DETR's efficient hybrid encoder (Zhao et al. 2024, Sec. 4.2), in the order of the data.

Attention within the coarsest map alone (AIFI), then convolutions that fuse the maps of all levels (CCFF): from coarse
to fine, and back. Padded cells are set to zero before every convolution that reads neighbors, so that in inference an
image's maps do not depend on the batch it is in; the batch norms' statistics do in training, as always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.layers.conv_norm import ConvNorm, added
from detrkit.layers.position import sine_of_cells
from detrkit.layers.transformer import Encoder
from detrkit.structures.attention import AttentionWeights
from detrkit.structures.outputs import Capturing


class HybridEncoderOutput(NamedTuple):
    """Result of the hybrid encoder.

    Attributes:
        maps: L (B, D, h, w), the finest first; values at padded cells have no meaning.
        projected: L (B, D, h, w), the backbone's maps at the encoder's width, without attention.
        position: (h, w, D) position encoding of the coarsest map.
        hidden_states: (B, S, D) outputs of the attention layers; empty unless all is captured.
        attn_weights: of the attention layers, (B, H, S, S) computed on request, S = h * w cells of the coarsest map;
            empty unless captured.
    """

    maps: list[Tensor]
    projected: list[Tensor]
    position: Tensor
    hidden_states: list[Tensor]
    attn_weights: list[AttentionWeights]


class RepBlock(nn.Module):
    """A 3 x 3 and a 1 x 1 convolution side by side, in inference a single 3 x 3 one (RepVGG, Ding et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, width, 3)
        self.conv2 = ConvNorm(width, width, 1)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """Map (B, C, h, w) to (B, C, h, w); arguments as of `Fusion.forward`."""
        return added([self.conv1, self.conv2], _zero_padding(x, keep), activation="silu")


class Fusion(nn.Module):
    """Fuses two maps of one size (Fig. 5): three `RepBlock` beside a 1 x 1 convolution of both maps.

    Args:
        width: channels D of each map and of the result.
        expansion: channels of the blocks as a share of D.
    """

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        inner = int(width * expansion)
        self.conv1 = ConvNorm(2 * width, inner, 1, activation="silu")
        self.conv2 = ConvNorm(2 * width, inner, 1, activation="silu")
        self.bottlenecks = nn.ModuleList(RepBlock(inner) for _ in range(3))
        self.conv3 = ConvNorm(inner, width, 1, activation="silu") if inner != width else nn.Identity()

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """Map both maps (B, 2 * D, h, w) to (B, D, h, w).

        Args:
            x: the maps.
            keep: (B, 1, h, w) bool, False where padded; None without padding.
        """
        y = self.conv1(x)
        for block in self.bottlenecks:
            y = block(y, keep)
        fused: Tensor = self.conv3(y + self.conv2(x))
        return fused


class HybridEncoder(nn.Module):
    """Maps of three strides to as many of one width that know of each other.

    Args:
        channels: of the backbone's maps, the finest first.
        width: channels D.
        heads, dim_feedforward, layers, dropout: of the attention within the coarsest map.
        expansion: of `Fusion`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        *,
        heads: int,
        dim_feedforward: int,
        layers: int,
        dropout: float,
        expansion: float,
    ) -> None:
        super().__init__()
        steps = len(channels) - 1
        self.input_proj = nn.ModuleList(ConvNorm(c, width, 1) for c in channels)
        self.encoder = Encoder(
            layers,
            width,
            heads,
            dim_feedforward,
            dropout=dropout,
            pre_norm=False,
            final_norm=False,
            activation="gelu",
        )
        self.lateral_convs = nn.ModuleList(ConvNorm(width, width, 1, activation="silu") for _ in range(steps))
        self.fpn_blocks = nn.ModuleList(Fusion(width, expansion) for _ in range(steps))
        self.downsample_convs = nn.ModuleList(
            ConvNorm(width, width, 3, stride=2, activation="silu") for _ in range(steps)
        )
        self.pan_blocks = nn.ModuleList(Fusion(width, expansion) for _ in range(steps))

    def forward(
        self, features: Sequence[Tensor], masks: Sequence[Tensor], *, padded: bool, capture: Capturing = False
    ) -> HybridEncoderOutput:
        """Encode the backbone's maps.

        Args:
            features: L (B, C, h, w), the finest first; each has half the cells of the one before, rounded up.
            masks: L (B, h, w) bool, True where padded.
            padded: whether any cell is.
            capture: return attention weights, too; unless "attention", also the hidden states.
        """
        keep = [~mask[:, None] if padded else None for mask in masks]
        projected = [projection(x) for projection, x in zip(self.input_proj, features, strict=True)]

        # attention within the coarsest map (AIFI)
        h, w = projected[-1].shape[2:]
        position = sine_of_cells(h, w, projected[-1].shape[1], device=projected[-1].device)
        encoded = self.encoder(
            projected[-1].flatten(2).transpose(1, 2),  # (B, S, D)
            pos_embed=position.flatten(0, 1).to(projected[-1].dtype),
            key_padding_mask=masks[-1].flatten(1) if padded else None,
            capture=capture,
        )
        top = encoded.memory.transpose(1, 2).unflatten(2, (h, w))  # (B, D, h, w)

        # from coarse to fine
        laterals = []  # the coarsest first
        for i, (lateral, fuse) in enumerate(zip(self.lateral_convs, self.fpn_blocks, strict=True)):
            finer, finer_keep = projected[-2 - i], keep[-2 - i]
            top = lateral(top)
            laterals.append(top)
            # nearest: cell i // 2, as sides are halved and rounded up
            upsampled = F.interpolate(top, size=finer.shape[-2:], mode="nearest")
            top = fuse(torch.cat([upsampled, finer], 1), finer_keep)

        # and back
        maps = [top]
        for i, (downsample, fuse) in enumerate(zip(self.downsample_convs, self.pan_blocks, strict=True)):
            halved = downsample(_zero_padding(maps[-1], keep[i]))
            maps.append(fuse(torch.cat([halved, laterals[-1 - i]], 1), keep[i + 1]))
        return HybridEncoderOutput(maps, projected, position, encoded.hidden_states, encoded.attn_weights)


def _zero_padding(x: Tensor, keep: Tensor | None) -> Tensor:
    """Set padded cells of a (B, C, h, w) map to zero; `keep` as of `Fusion.forward`."""
    return x if keep is None else x.masked_fill(~keep, 0.0)
