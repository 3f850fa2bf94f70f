"""Convolutions of 3 x 3 with fewer multiplications: Winograd's minimal filtering, F(4 x 4, 3 x 3).

Lavin & Gray 2016 (Sec. 4.1): of a tile of 6 x 6 pixels d and a kernel g, the 4 x 4 outputs are
A^T [(G g G^T) * (B^T d B)] A, a product elementwise: 36 multiplications in place of 144. Summed over channels it is 36
matrix products. oneDNN has no such kernel for CPUs any more, so the tiles are gathered here, and the transforms are
matrix products, too: B^T d B of all channels is one of (36, 36), the Kronecker square of B^T.

The matrices are those of the points 0, 1, -1, 1/2, -2 and infinity: with 2 in the place of 1/2, the common choice,
errors are three times as large. Of random maps the largest error is 3 times that of the direct convolution; logits of
whole models move by 6e-6.

On two cores of a Xeon, against oneDNN's direct convolution with packed weights: 256 channels of 50 x 75 pixels take
12 ms in place of 20 with AVX-512, 22 in place of 48 with AVX2 (the same processor, told to use no more).
"""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor, nn

SWITCH = "DETRKIT_WINOGRAD"  # 0 in the environment: every convolution directly
_TILE, _OUT = 6, 4  # sides of a tile, and of its outputs
_AREA = _TILE * _TILE
_BLOCK = 320  # tiles whose products are computed together: fewer make slow products, more leave the caches
_LEAST_TILES = 16  # of a map: below, reading 4 times the weights takes more than is won
# product of the channels in and out from which it pays: below, the transforms take more than is won
_LEAST_CHANNELS = {"AVX2": 64 * 64, "AVX512": 64 * 128}

_A_T = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 1 / 2, -2, 0), (0, 1, 1, 1 / 4, 4, 0), (0, 1, -1, 1 / 8, -8, 1))
_G = (
    (1, 0, 0),
    (1 / 3, 1 / 3, 1 / 3),
    (-1 / 3, 1 / 3, -1 / 3),
    (-16 / 15, -8 / 15, -4 / 15),
    (1 / 15, -2 / 15, 4 / 15),
    (0, 0, 1),
)
_B_T = (
    (1, -3 / 2, -2, 3 / 2, 1, 0),
    (0, -1, 1 / 2, 5 / 2, 1, 0),
    (0, 1, -5 / 2, 1 / 2, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 1 / 2, -1, -1 / 2, 1, 0),
    (0, 1, -3 / 2, -2, 3 / 2, 1),
)


def pays(weight: Tensor, geometry: nn.Conv2d, height: int, width: int) -> bool:
    """Return whether a convolution is one of 3 x 3 that is faster like this on this kind of processor.

    The answer goes by sizes and instructions, by what was measured with either, not by a measurement at hand: results
    would change from one process to the next. DETRKIT_WINOGRAD=0 in the environment switches it off.

    Args:
        weight: (O, I, h, w), float32.
        geometry: has stride, padding, dilation and groups.
        height: of the map.
        width: of the map.
    """
    tiles = -(-height // _OUT) * -(-width // _OUT)
    plain = geometry.stride == (1, 1) and geometry.dilation == (1, 1) and geometry.groups == 1
    return (
        plain
        and os.environ.get(SWITCH, "1") != "0"
        and geometry.padding == (1, 1)
        and tuple(weight.shape[2:]) == (3, 3)
        and weight.dtype == torch.float32
        and tiles >= _LEAST_TILES
        and weight.shape[0] * weight.shape[1] >= _LEAST_CHANNELS.get(_capability(), 2**62)
    )


@cache
def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


@cache
def _matrix(rows: tuple[tuple[float, ...], ...]) -> Tensor:
    """Return the Kronecker square of a matrix, in float32."""
    with torch.inference_mode(False):
        matrix = torch.tensor(rows, dtype=torch.float64, device="cpu")
        return torch.kron(matrix, matrix).float()


def transformed(weight: Tensor) -> Tensor:
    """Return a kernel's transform G g G^T for `convolve`, (36, I, O), of (O, I, 3, 3); four times as large."""
    g = torch.tensor(_G, dtype=torch.float64, device="cpu")
    kernels = weight.detach().double().permute(2, 3, 1, 0)  # (3, 3, I, O)
    return (torch.kron(g, g) @ kernels.reshape(9, -1)).float().view(_AREA, *kernels.shape[2:])


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Compute a convolution of 3 x 3 with a margin of zeros, without gradients.

    Args:
        x: (B, I, H, W) float32.
        weight: (36, I, O), by `transformed`.
        bias: (O,) or None.
        residual: (B, O, H, W), added to the result; it is not changed.
        relu: apply ReLU last.

    Returns:
        (B, O, H, W), channels last.
    """
    (count, channels, height, width), out_channels = x.shape, weight.shape[2]
    size = (count, out_channels, height, width)
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    down, across = -(-height // _OUT), -(-width // _OUT)
    blocks = -(-down // max(1, _BLOCK // across))
    rows = -(-down // blocks)  # of tiles in a block
    work = _Work(x, rows, across, channels, out_channels)
    source, target = x.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
    added = None if residual is None else residual.permute(0, 2, 3, 1)
    for image in range(count):
        for first in range(0, down, rows):
            top, bottom = _OUT * first, min(_OUT * (first + rows), height)
            part = target[image, top:bottom]
            y = work.block(source[image], top, weight)  # (rows, 4, across, 4, O)
            if bottom - top == _OUT * rows and width == _OUT * across:
                whole = part.view(y.shape)
                whole.copy_(y) if bias is None else torch.add(y, bias, out=whole)
            else:
                y = y if bias is None else y + bias
                part.copy_(y.reshape(_OUT * rows, _OUT * across, -1)[: bottom - top, :width])
            if added is not None:
                part.add_(added[image, top:bottom])
            if relu:
                part.relu_()
    return out


class _Work:
    """Buffers of a block of tiles, which stay in the caches from one block to the next.

    Args:
        like: of the dtype and device.
        rows, across: tiles of a block, down and across.
        channels, out_channels: of the convolution.
    """

    def __init__(self, like: Tensor, rows: int, across: int, channels: int, out_channels: int) -> None:
        tiles = rows * across
        self._padded = like.new_zeros((_OUT * rows + 2, _OUT * across + 2, channels))
        line = self._padded.stride(0)
        # tile (i, j) at (4 i, 4 j) of the padded rows, by its pixels first
        shape, steps = (_TILE, _TILE, rows, across, channels), (line, channels, _OUT * line, _OUT * channels, 1)
        self._tiles = self._padded.as_strided(shape, steps)
        self._gathered = like.new_empty(shape)
        self._inputs = like.new_empty((_AREA, tiles, channels))
        self._products = like.new_empty((_AREA, tiles, out_channels))
        self._outputs = like.new_empty((_OUT, _OUT, rows, across, out_channels))

    def block(self, source: Tensor, top: int, weight: Tensor) -> Tensor:
        """Compute the output of a (H, W, I) map from the row `top` on: a view (rows, 4, across, 4, O)."""
        padded, (height, width) = self._padded, source.shape[:2]
        begin, end = max(top - 1, 0), min(top - 1 + padded.shape[0], height)
        above = begin - (top - 1)
        padded[:above].zero_()
        padded[above : above + end - begin, 1 : width + 1].copy_(source[begin:end])
        padded[above + end - begin :].zero_()
        self._gathered.copy_(self._tiles)
        torch.mm(_matrix(_B_T), self._gathered.view(_AREA, -1), out=self._inputs.view(_AREA, -1))
        torch.bmm(self._inputs, weight, out=self._products)
        torch.mm(_matrix(_A_T), self._products.view(_AREA, -1), out=self._outputs.view(_OUT * _OUT, -1))
        return self._outputs.permute(2, 0, 3, 1, 4)
