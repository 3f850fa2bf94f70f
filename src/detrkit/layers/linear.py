"""A linear layer that computes with `detrkit.ops.linear`."""

from __future__ import annotations

from torch import Tensor, nn

from detrkit.ops.dense import linear


class Linear(nn.Linear):
    """`torch.nn.Linear` with the same parameters and results, about twice as fast on AMD CPUs."""

    def forward(self, input: Tensor, *, relu: bool = False) -> Tensor:
        """Map (..., in_features) to (..., out_features), with a ReLU after it if asked."""
        return linear(input, self.weight, self.bias, relu=relu)
