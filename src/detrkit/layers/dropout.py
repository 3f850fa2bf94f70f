"""A dropout layer that computes with `detrkit.ops.dropout`."""

from __future__ import annotations

from torch import Tensor, nn

from detrkit.ops.dropout import dropout


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, faster on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop values of a tensor of any shape."""
        return dropout(input, self.p, self.training)
