"""Multi-scale deformable attention on GPUs, in Triton: compiled for the device at hand when first used.

A program computes a few queries of one image and head, so that neighboring queries of an encoder find each other's
pixels in the cache. Forward, it keeps its output in registers and reads every corner once. Backward, it reads them
once more for the gradients of locations and weights, which are its own, and adds the gradient of the values with
atomic operations: sums over a pixel come in any order, so that the last bits differ between runs.

Sums are in float32 (float64 for float64). In float16 and bfloat16 the gradient of the values is added up in float32
and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _cells(y, x, height, width, channel, channels, heads, near):
    """Compute (BLOCK, CHANNELS) offsets of pixels from the first of an image, level and head, and an in-map mask."""
    inside = near & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    offsets = (y * width + x)[:, None] * (heads * channels) + channel[None, :]
    return offsets, inside[:, None] & (channel < channels)[None, :]


@triton.jit
def _point(locations, weights, at, height, width, valid, SUM: tl.constexpr):
    """Return for one point of each query: top left pixel, fractional offset, attention weight, in-bounds flag."""
    x = tl.load(locations + 2 * at, mask=valid, other=0.0).to(SUM) * width - 0.5
    y = tl.load(locations + 2 * at + 1, mask=valid, other=0.0).to(SUM) * height - 0.5
    weight = tl.load(weights + at, mask=valid, other=0.0).to(SUM)
    left = tl.floor(x)
    top = tl.floor(y)
    # further out no corner is in the map; there an int32 might overflow, and infinity minus infinity is NaN
    near = valid & (left > -2) & (left < width) & (top > -2) & (top < height)
    x0 = tl.where(near, left, 0.0).to(tl.int32)
    y0 = tl.where(near, top, 0.0).to(tl.int32)
    return x0, y0, tl.where(near, x - left, 0.0), tl.where(near, y - top, 0.0), weight, near


@triton.jit
def _forward_kernel(
    value,  # (B, S, H, D)
    levels,  # (L, 3) int32: height, width, first position
    locations,  # (B, Q, H, L, P, 2)
    weights,  # (B, Q, H, L, P)
    out,  # (B, Q, H, D)
    positions,
    queries,
    heads,
    channels,
    L: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    SUM: tl.constexpr,
):
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = query < queries
    row = (image * queries + query) * heads + head  # (BLOCK,)
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros((BLOCK, CHANNELS), dtype=SUM)
    for level in range(L):
        height = tl.load(levels + level * 3)
        width = tl.load(levels + level * 3 + 1)
        start = tl.load(levels + level * 3 + 2)
        map_ = value + ((image * positions + start) * heads + head) * channels
        for point in tl.static_range(P):
            at = row * (L * P) + level * P + point
            x, y, right, below, weight, near = _point(locations, weights, at, height, width, valid, SUM)
            cells, inside = _cells(y, x, height, width, channel, channels, heads, near)
            total += (weight * (1 - right) * (1 - below))[:, None] * tl.load(map_ + cells, inside, 0.0).to(SUM)
            cells, inside = _cells(y, x + 1, height, width, channel, channels, heads, near)
            total += (weight * right * (1 - below))[:, None] * tl.load(map_ + cells, inside, 0.0).to(SUM)
            cells, inside = _cells(y + 1, x, height, width, channel, channels, heads, near)
            total += (weight * (1 - right) * below)[:, None] * tl.load(map_ + cells, inside, 0.0).to(SUM)
            cells, inside = _cells(y + 1, x + 1, height, width, channel, channels, heads, near)
            total += (weight * right * below)[:, None] * tl.load(map_ + cells, inside, 0.0).to(SUM)
    keep = valid[:, None] & (channel < channels)[None, :]
    tl.store(out + row[:, None] * channels + channel[None, :], total.to(out.dtype.element_ty), mask=keep)


@triton.jit
def _scatter_gradient(grad_map, value_map, cells, inside, share, grad, SUM: tl.constexpr):
    """Add a corner's part of the gradient to its pixels; return their values (BLOCK, CHANNELS)."""
    tl.atomic_add(grad_map + cells, share[:, None] * grad, mask=inside, sem="relaxed")
    return tl.load(value_map + cells, inside, 0.0).to(SUM)


@triton.jit
def _backward_kernel(
    grad,  # (B, Q, H, D)
    value,  # (B, S, H, D)
    levels,  # (L, 3) int32: height, width, first position
    locations,  # (B, Q, H, L, P, 2)
    weights,  # (B, Q, H, L, P)
    grad_value,  # (B, S, H, D) of the sums' type, zeros
    grad_locations,  # (B, Q, H, L, P, 2)
    grad_weights,  # (B, Q, H, L, P)
    positions,
    queries,
    heads,
    channels,
    L: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    SUM: tl.constexpr,
):
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = query < queries
    row = (image * queries + query) * heads + head  # (BLOCK,)
    channel = tl.arange(0, CHANNELS)
    keep = valid[:, None] & (channel < channels)[None, :]
    grad_out = tl.load(grad + row[:, None] * channels + channel[None, :], keep, 0.0).to(SUM)
    for level in range(L):
        height = tl.load(levels + level * 3)
        width = tl.load(levels + level * 3 + 1)
        start = tl.load(levels + level * 3 + 2)
        first = ((image * positions + start) * heads + head) * channels
        v, g = value + first, grad_value + first
        for point in tl.static_range(P):
            at = row * (L * P) + level * P + point
            x, y, right, below, weight, near = _point(locations, weights, at, height, width, valid, SUM)
            left, above = 1 - right, 1 - below
            cells, inside = _cells(y, x, height, width, channel, channels, heads, near)
            top_left = _scatter_gradient(g, v, cells, inside, weight * left * above, grad_out, SUM)
            cells, inside = _cells(y, x + 1, height, width, channel, channels, heads, near)
            top_right = _scatter_gradient(g, v, cells, inside, weight * right * above, grad_out, SUM)
            cells, inside = _cells(y + 1, x, height, width, channel, channels, heads, near)
            low_left = _scatter_gradient(g, v, cells, inside, weight * left * below, grad_out, SUM)
            cells, inside = _cells(y + 1, x + 1, height, width, channel, channels, heads, near)
            low_right = _scatter_gradient(g, v, cells, inside, weight * right * below, grad_out, SUM)

            top = left[:, None] * top_left + right[:, None] * top_right
            low = left[:, None] * low_left + right[:, None] * low_right
            horizontal = above[:, None] * (top_right - top_left) + below[:, None] * (low_right - low_left)
            to_weight = tl.sum((above[:, None] * top + below[:, None] * low) * grad_out, axis=1)
            to_x = tl.sum(horizontal * grad_out, axis=1) * weight * width
            to_y = tl.sum((low - top) * grad_out, axis=1) * weight * height
            tl.store(grad_weights + at, to_weight.to(grad_weights.dtype.element_ty), mask=valid)
            tl.store(grad_locations + 2 * at, to_x.to(grad_locations.dtype.element_ty), mask=valid)
            tl.store(grad_locations + 2 * at + 1, to_y.to(grad_locations.dtype.element_ty), mask=valid)


def forward(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Compute `detrkit.ops.ms_deform_attn`, with the same arguments and result, for CUDA tensors."""
    b, s, h, d = value.shape
    q = locations.shape[1]
    out = value.new_empty(b, q, h * d)
    if out.numel():
        constants = _constants(value, locations, _warps(b * q * h))
        with torch.cuda.device_of(value):
            _forward_kernel[(triton.cdiv(q, constants["BLOCK"]), h, b)](
                value.contiguous(),
                _levels(tuple(shapes), value.device),
                locations.contiguous(),
                weights.contiguous(),
                out,
                s,
                q,
                h,
                d,
                **constants,
            )
    return out


def backward(
    grad: Tensor, value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of `forward`: arguments and result as in `ms_deform_cpu.backward`; CUDA tensors."""
    b, s, h, d = value.shape
    q = locations.shape[1]
    grad_value = torch.zeros(value.shape, dtype=torch.promote_types(value.dtype, torch.float32), device=value.device)
    grad_locations = torch.empty(locations.shape, dtype=locations.dtype, device=value.device)
    grad_weights = torch.empty(weights.shape, dtype=weights.dtype, device=value.device)
    if grad_weights.numel():
        constants = _constants(value, locations, _warps(b * q * h))
        with torch.cuda.device_of(value):
            _backward_kernel[(triton.cdiv(q, constants["BLOCK"]), h, b)](
                grad.contiguous(),
                value.contiguous(),
                _levels(tuple(shapes), value.device),
                locations.contiguous(),
                weights.contiguous(),
                grad_value,
                grad_locations,
                grad_weights,
                s,
                q,
                h,
                d,
                **constants,
            )
    return grad_value.to(value.dtype), grad_locations, grad_weights


@lru_cache(maxsize=16)
def _levels(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return (L, 3) int32: height, width and first position of every level.

    The tensor is cached, as a copy to the device costs a launch.
    """
    starts = [sum(h * w for h, w in shapes[:i]) for i in range(len(shapes))]
    return torch.tensor([(h, w, s) for (h, w), s in zip(shapes, starts, strict=True)], dtype=torch.int32, device=device)


def _constants(value: Tensor, locations: Tensor, warps: int) -> dict[str, Any]:
    """Return the compile-time constants of the kernels."""
    channels = triton.next_power_of_2(value.shape[3])
    return {
        "L": locations.shape[3],
        "P": locations.shape[4],
        "BLOCK": max(1, 128 * warps // channels),  # a thread reads and adds four channels at once
        "CHANNELS": channels,
        "SUM": tl.float64 if value.dtype == torch.float64 else tl.float32,
        "num_warps": warps,
    }


def _warps(rows: int) -> int:
    """Return the warps per program: the few queries of a decoder are divided into more and smaller programs."""
    return 4 if rows >= 65536 else 1
