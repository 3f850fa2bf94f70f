"""The multi-layer perceptron of the box head."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from detrkit.layers.linear import Linear


class MLP(nn.Module):
    """Linear layers with ReLU between them (DETR's box head has 3; Sec. 3.2, "prediction feed-forward networks")."""

    def __init__(self, width_in: int, width_hidden: int, width_out: int, *, layers: int) -> None:
        super().__init__()
        widths = [width_in, *[width_hidden] * (layers - 1), width_out]
        self.layers = nn.ModuleList(Linear(i, o) for i, o in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width_in) to (..., width_out), without a final activation."""
        for layer in self.layers[:-1]:
            x = layer(x, relu=True)
        return self.layers[-1](x)
