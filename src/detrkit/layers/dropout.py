"""A dropout layer that computes with `detrkit.ops.dropout`."""

from __future__ import annotations

from torch import Tensor, nn

from detrkit.ops.dropout import dropout


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, faster on a processor."""

    def forward(self, input: Tensor) -> Tensor:
        """Of any shape."""
        return dropout(input, self.p, self.training)
