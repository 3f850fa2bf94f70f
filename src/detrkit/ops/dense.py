"""Convolutions and linear maps, by oneDNN in one pass where a processor computes and nothing needs a gradient.

PyTorch hands float32 matrix products to MKL, which on AMD's processors uses half the width of the vector units; and it
adds bias, residual and ReLU in passes of their own. oneDNN is part of every build of PyTorch for x86, and its operators
with a "pointwise" end, made for torch.compile, can be called without compiling anything. Measured on two cores of an
AMD EPYC with 950 tokens: 256 -> 2048 channels 5.2 ms by MKL, 2.3 ms by oneDNN.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

# Rows of a linear map from which on it is computed as a 1 x 1 convolution of a picture one pixel high: the linear
# operator does not bring the weights into the order of its best kernel. 22,223 rows of 256 -> 1024 channels: 31 to 41
# ms by the one, 28 ms by the other; 100 rows: 0.34, 0.38 ms; below 16 rows or outputs MKL is through before either.
MANY_ROWS, FEW = 1000, 16

_ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
_PLAIN = (Tensor, nn.Parameter)  # what pretends to be a tensor wants to see every operator


def in_one_pass(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether oneDNN's operators with a "pointwise" end, which have no gradient, compute with these tensors.

    Args:
        x: the input.
        weights: what it meets; None is skipped.
    """
    return not learns(x, *weights) and onednn_takes(x, *weights)


def learns(*tensors: Tensor | None) -> bool:
    """Whether a gradient will be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


@cache
def bf16_kernels() -> bool:
    """Whether oneDNN has bfloat16 kernels for this processor, which needs AVX-512 or avx_ne_convert.

    Without them its operators fail. PyTorch's own ask the same question, and then compute bfloat16 by other kernels.
    """
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # not in this build of PyTorch
        return False


def onednn_takes(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether oneDNN can compute with these tensors: on an x86 processor, outside of graphs that are recorded."""
    # exporting, compiling, tracing and counting want PyTorch's own operators
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or _get_current_dispatch_mode() is not None:
        return False
    tensors = [x, *(w for w in weights if w is not None)]
    return bool(
        _ON_X86
        and x.device.type == "cpu"
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and bf16_kernels()))
        and all(type(t) in _PLAIN and t.dtype == x.dtype for t in tensors)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """`F.linear`, and a ReLU after it if asked.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,) or None.
        relu: apply ReLU.

    Returns:
        (..., O).
    """
    # sizes are asked for last: in a graph that is recorded, they may be symbols
    if not onednn_takes(x, weight, bias) or min(rows := x.shape[:-1].numel(), len(weight)) < FEW:
        y = F.linear(x, weight, bias)
        return F.relu(y) if relu else y
    after = "relu" if relu else "none"
    if learns(x, weight, bias):
        # a convolution's gradients are oneDNN's, too: 512 rows of 256 -> 2048 channels, there and back, 4 ms; by MKL 8
        y = F.conv2d(_as_picture(x), weight[:, :, None, None], bias)
        return _as_rows(y.relu_() if relu else y, x)
    if rows < MANY_ROWS:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, after, [], "")
    geometry = ([0, 0], [1, 1], [1, 1], 1)
    y = torch.ops.mkldnn._convolution_pointwise(
        _as_picture(x), weight[:, :, None, None], bias, *geometry, after, [], ""
    )
    return _as_rows(y, x)


def _as_picture(x: Tensor) -> Tensor:
    """(..., I) to (1, I, 1, N), channels last."""
    return x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def _as_rows(y: Tensor, x: Tensor) -> Tensor:
    """(1, O, 1, N), channels last, to (..., O) with the leading axes of `x`."""
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], y.shape[1])


def pack(weight: Tensor, geometry: nn.Conv2d, shape: Sequence[int]) -> Tensor:
    """A convolution's weight in the order in which oneDNN wants it, for `convolve` alone.

    Args:
        weight: (O, I, h, w).
        geometry: has stride, padding and dilation.
        shape: (B, I, H, W) of the inputs it will meet; others give the same results, slower.
    """
    sides = (list(map(int, side)) for side in (geometry.padding, geometry.stride, geometry.dilation))
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, *sides, 1, list(shape))
    return packed


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`F.conv2d`, the residual added and a ReLU after it if asked.

    Args:
        x: (B, I, H, W).
        weight: (O, I, h, w), or what `pack` made of it.
        bias: (O,) or None.
        stride: down and across.
        padding: pixels of zeros above and below, left and right.
        dilation: down and across.
        residual: of the output's shape, added to it; its memory may be used for the result.
        relu: apply ReLU last.

    Returns:
        (B, O, H', W').
    """
    if not in_one_pass(x, weight, bias, residual):
        y = F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation))
        y = y if residual is None else y.add_(residual)  # no gradient asks for a convolution's result
        return y.relu_() if relu else y
    geometry = (list(padding), list(stride), list(dilation), 1)
    if residual is None:
        after = "relu" if relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, after, [], "")
    return torch.ops.mkldnn._convolution_pointwise_(
        residual, x, weight, bias, *geometry, "add", 1.0, "relu" if relu else None, [], ""
    )


def convolve_as(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What a layer without groups gives for (B, I, H, W): `convolve` with its weights and geometry."""
    padding = layer.padding
    assert not isinstance(padding, str)
    return convolve(x, layer.weight, layer.bias, stride=layer.stride, padding=padding, dilation=layer.dilation)
