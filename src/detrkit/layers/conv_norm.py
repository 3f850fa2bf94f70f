"""Convolution, norm and activation as one layer, and several that read the same map as one: RT-DETR's blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.layers.folding import fold
from detrkit.layers.norms import FrozenBatchNorm2d
from detrkit.ops.dense import convolve

Activation = Literal["none", "relu", "silu"]


class ConvNorm(nn.Module):
    """A convolution without bias that keeps the map's size (but for the stride), its norm and an activation.

    Where the norm's statistics are constant (a frozen norm, or any batch norm in eval mode) it is folded into the
    convolution (`detrkit.layers.folding`).

    Args:
        channels_in, channels_out: of the convolution.
        kernel: side in cells, odd.
        stride: in cells.
        activation: after the norm.
        norm: makes the norm of so many channels.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        activation: Activation = "none",
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = norm(channels_out)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map (B, C, h, w) to (B, C', ceil(h / stride), ceil(w / stride)).

        Args:
            x: the map.
            residual: added before the activation, which is then no SiLU; its memory may be used for the result.
        """
        return added([self], x, activation=self.activation, residual=residual)


def added(
    branches: Sequence[ConvNorm], x: Tensor, *, activation: Activation = "none", residual: Tensor | None = None
) -> Tensor:
    """Compute the sum of layers that read the same map, in inference as one convolution, then an activation.

    Args:
        branches: of one stride, the largest kernel first; their own activations are not applied.
        x: (B, C, h, w).
        activation: of the sum.
        residual: as of `ConvNorm.forward`.
    """
    first = branches[0].conv
    if all(_constant(branch.norm) for branch in branches):
        weight, bias = fold([(branch.conv, branch.norm) for branch in branches], x)  # type: ignore[misc]
        padding = first.padding
        assert not isinstance(padding, str)
        return convolve(
            x,
            weight,
            bias,
            stride=first.stride,
            padding=padding,
            residual=residual,
            relu=activation == "relu",
            silu=activation == "silu",
        )
    y = branches[0].norm(first(x))
    for branch in branches[1:]:
        y = y + branch.norm(branch.conv(x))
    y = y if residual is None else y + residual
    return F.silu(y) if activation == "silu" else F.relu(y) if activation == "relu" else y


def _constant(norm: nn.Module) -> bool:
    """Return whether a norm is the same function of every map: its statistics are no map's own."""
    return isinstance(norm, FrozenBatchNorm2d) or (isinstance(norm, nn.BatchNorm2d) and not norm.training)
