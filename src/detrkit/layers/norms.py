"""Normalization layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GROUPS = 32  # groups of a group norm, or a quarter of the channels


def groups_divide(channels: int) -> bool:
    """Return whether a group norm of so many channels has groups of one size."""
    return channels >= 4 and channels % min(GROUPS, channels // 4) == 0


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are constants: what DETR does with a pretrained backbone.

    With 2 images per GPU the statistics of a batch are noise, so the published models keep ImageNet's
    (DETR Sec. 4, "Technical details"). All four tensors are buffers: they are saved, never trained.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W): x * scale + shift, folded to one multiply-add per value."""
        scale, shift = self.factors()
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift of every channel, (C,) each."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:  # type: ignore[no-untyped-def]
        # torchvision's ImageNet weights carry the counter of an ordinary batch norm
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018) whose statistics can be taken over the valid positions of a padded batch alone."""

    def forward(self, input: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalize every image by itself.

        Args:
            input: (B, C, H, W).
            valid: (B, 1, H, W) bool, True where not padded (the inverse of a padding mask); None without padding.

        Returns:
            (B, C, H, W); values at padded positions have no meaning.
        """
        return super().forward(input) if valid is None else group_norm_of_valid(self, input, valid)


def group_norm_of_valid(norm: nn.GroupNorm, x: Tensor, valid: Tensor) -> Tensor:
    """Apply a group norm with the statistics of the valid positions; arguments and result as of `GroupNorm.forward`."""
    grouped = x.unflatten(1, (norm.num_groups, -1))  # (B, G, C / G, H, W)
    weights = valid[:, None].to(x.dtype)  # (B, 1, 1, H, W)
    count = weights.sum((2, 3, 4), keepdim=True) * grouped.shape[2]
    mean = (grouped * weights).sum((2, 3, 4), keepdim=True) / count
    centered = (grouped - mean) * weights
    variance = centered.square().sum((2, 3, 4), keepdim=True) / count
    normed = (centered * (variance + norm.eps).rsqrt()).flatten(1, 2)
    return normed * norm.weight[:, None, None] + norm.bias[:, None, None]
