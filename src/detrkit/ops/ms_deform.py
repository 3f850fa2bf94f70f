"""Multi-scale deformable attention (Deformable DETR, Eq. 3): weighted bilinear samples from a pyramid of maps.

One function with three backends, none of which needs a compiler when detrkit is installed:

- "reference": `grid_sample`; any device, any transform; used by exports;
- "cpu": `ms_deform_cpu`, ten times as fast on a CPU (benchmarks/ms_deform.py);
- "triton": `ms_deform_triton`, kernels for GPUs, compiled by Triton when first used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.ops import ms_deform_cpu

Backend = Literal["auto", "reference", "cpu", "triton"]
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_selected: list[Backend] = ["auto"]


def ms_deform_attn(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sample every query's points from every level and add them up by weight.

    Pixel centers are at (i + 0.5) / size; outside a map every value is 0. Half precision is summed up in float32.
    Differentiable once with respect to the three tensors. Which implementation runs follows from the device, see
    `ms_deform_backend`.

    Args:
        value: (B, S, H, D): the maps of all levels, flattened in row-major order and concatenated.
        spatial_shapes: (height, width) of each of the L levels as Python ints (tensors would wait for the device);
            S = sum of height * width.
        locations: (B, Q, H, L, P, 2) xy in [0, 1] of each level's map; may lie outside.
        weights: (B, Q, H, L, P).

    Returns:
        (B, Q, H * D), of the value's dtype.

    Raises:
        ValueError: tensors and shapes that do not fit each other.
        RuntimeError: `ms_deform_backend` names one that cannot run here.
    """
    b, s, h, _ = value.shape
    sizes = [height * width for height, width in spatial_shapes]
    if sum(sizes) != s:
        raise ValueError(f"value has {s} positions, the levels {list(spatial_shapes)} have {sum(sizes)}")
    q, points = locations.shape[1], locations.shape[4]
    if locations.shape != (b, q, h, len(sizes), points, 2):
        expected = f"({b}, Q, {h}, {len(sizes)}, P, 2)"
        raise ValueError(f"locations are {tuple(locations.shape)}; value and levels need {expected}")
    if weights.shape != locations.shape[:-1]:
        raise ValueError(
            f"weights are {tuple(weights.shape)}, locations {tuple(locations.shape)} need one for each point"
        )
    if _backend(value) == "reference":
        return reference(value, spatial_shapes, locations, weights)
    flat = [side for shape in spatial_shapes for side in shape]
    out: Tensor = _forward(value, flat, locations, weights)
    return out


@contextmanager
def ms_deform_backend(name: Backend) -> Iterator[None]:
    """Select the implementation of `ms_deform_attn` within a `with` block.

    Args:
        name: "auto": Triton's kernels on a GPU, the fast path on a CPU, and the reference on other devices and while a
            model is exported, so that the exported program holds nothing but PyTorch's own operators; or "reference",
            "cpu" or "triton" for that one.

    Raises:
        ValueError: no such name.
    """
    if name not in ("auto", "reference", "cpu", "triton"):
        raise ValueError(f'backend "{name}": choose "auto", "reference", "cpu" or "triton"')
    before = _selected[0]
    _selected[0] = name
    try:
        yield
    finally:
        _selected[0] = before


def _backend(value: Tensor) -> Backend:
    """Return the backend that computes with this value tensor."""
    name = _selected[0]
    device = value.device.type
    if name == "auto":
        # The flag itself: while torch 2.11 compiles, `torch.compiler.is_exporting()` says True, too.
        supported = value.dtype in _DTYPES and not torch.compiler._is_exporting_flag
        if supported and device == "cuda" and _has_triton():
            return "triton"
        return "cpu" if supported and device == "cpu" else "reference"
    if name == "cpu" and device != "cpu":
        raise RuntimeError(f'backend "cpu" was chosen and the tensors are on {value.device}')
    if name == "triton" and not (device == "cuda" and _has_triton()):
        raise RuntimeError(f'backend "triton" was chosen; it needs triton and a CUDA device, not {value.device}')
    return name


def widths_and_heights(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Return the (L, 2) width and height of every level, of the dtype and on the device of `like`."""
    if not torch.compiler._is_exporting_flag:
        return like.new_tensor([(w, h) for h, w in spatial_shapes])
    # sides may be symbols, of which a tensor of Python numbers would keep the value of the moment
    sides = [torch.scalar_tensor(side, dtype=like.dtype) for h, w in spatial_shapes for side in (w, h)]
    return torch.stack(sides).view(-1, 2)


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def reference(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Compute `ms_deform_attn` by one `grid_sample` per level; the same arguments and result."""
    b, _, h, d = value.shape
    q, levels, points = locations.shape[1], len(spatial_shapes), locations.shape[4]
    dtype = torch.promote_types(value.dtype, torch.float32)
    grids = 2 * locations.to(dtype) - 1  # grid_sample counts from -1 to 1
    maps = value.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)  # (B * H, D, S)
    samples = []
    start = 0
    for level, (height, width) in enumerate(spatial_shapes):
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * H, Q, P, 2)
        # a slice: `split` becomes a sequence in ONNX, which few runtimes have
        map_ = maps[..., start : start + height * width].unflatten(-1, (height, width))  # (B * H, D, height, width)
        start += height * width
        samples.append(F.grid_sample(map_, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    sampled = torch.cat(samples, -1)  # (B * H, D, Q, L * P)
    by_head = weights.to(dtype).transpose(1, 2).reshape(b * h, 1, q, levels * points)
    out = (sampled * by_head).sum(-1)  # (B * H, D, Q)
    return out.view(b, h * d, q).transpose(1, 2).to(value.dtype)


# The fast implementations are one custom operator: torch.compile keeps it as one node and never traces into it.


@torch.library.custom_op("detrkit::ms_deform_attn", mutates_args=(), device_types="cpu")
def _forward(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_cpu.forward(value, _pairs(shapes), locations, weights)


@_forward.register_kernel("cuda")
def _forward_cuda(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    from detrkit.ops import ms_deform_triton  # not on every platform

    return ms_deform_triton.forward(value, _pairs(shapes), locations, weights)


@_forward.register_fake
def _forward_fake(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    b, _, h, d = value.shape
    return value.new_empty(b, locations.shape[1], h * d)


@torch.library.custom_op("detrkit::ms_deform_attn_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return ms_deform_cpu.backward(grad, value, _pairs(shapes), locations, weights)


@_backward.register_kernel("cuda")
def _backward_cuda(
    grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from detrkit.ops import ms_deform_triton

    return ms_deform_triton.backward(grad, value, _pairs(shapes), locations, weights)


@_backward.register_fake
def _backward_fake(
    grad: Tensor, value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (value, locations, weights))  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Tensor, Sequence[int], Tensor, Tensor], output: Tensor) -> None:
    # corners and weights are computed again: 30 ms per encoder layer on two cores, instead of 90 MB stored
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = _backward(grad, value, ctx.shapes, locations, weights)
    return grad_value, None, grad_locations, grad_weights


_forward.register_autograd(_gradients, setup_context=_save)


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
