"""Convolutions and linear maps, fused by oneDNN on CPUs where no gradient is needed.

PyTorch hands float32 matrix products to MKL, which on AMD CPUs uses half the width of the vector units; and it adds
bias, residual and ReLU in passes of their own. oneDNN is part of every build of PyTorch for x86, and its operators with
a "pointwise" end, made for torch.compile, can be called without compiling anything. Measured on two cores of an AMD
EPYC with 950 tokens: 256 -> 2048 channels take 5.2 ms with MKL, 2.3 ms with oneDNN.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from detrkit.ops import winograd

# Rows from which a linear map is computed as a 1 x 1 convolution of an image one pixel high: the linear operator does
# not reorder the weights for its best kernel. 22,223 rows of 256 -> 1024 channels take 31 to 41 ms as linear, 28 ms as
# convolution; 100 rows: 0.34 and 0.38 ms.
CONV_LINEAR_MIN_ROWS = 1000
ONEDNN_MIN_ROWS = 16  # rows or outputs below which MKL is faster
# of a convolution's input: PyTorch gives smaller ones in training to no kernel of oneDNN's
_DIRECT_CONV_ELEMENTS = 20480

_ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
_PLAIN_TENSORS = (Tensor, nn.Parameter)  # tensor subclasses expect to see every operator


def can_fuse(x: Tensor, *weights: Tensor | None) -> bool:
    """Return whether oneDNN's fused "pointwise" operators can compute with these tensors; they have no gradient.

    Args:
        x: the input.
        weights: the other operands; None is skipped.
    """
    return not requires_grad(x, *weights) and onednn_supports(x, *weights)


def requires_grad(*tensors: Tensor | None) -> bool:
    """Return whether autograd records an operation of these tensors; None is skipped."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


@cache
def has_bf16_kernels() -> bool:
    """Return whether oneDNN has bfloat16 kernels for this CPU, which needs AVX-512 or avx_ne_convert.

    Without them its operators fail. PyTorch's own operators check the same, and then use other bfloat16 kernels. One is
    tried, for oneDNN may be told to use less than the CPU has (ONEDNN_MAX_CPU_ISA).
    """
    x = torch.zeros(1, 16, 1, 16, dtype=torch.bfloat16, device="cpu")
    try:
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            torch.ops.mkldnn._convolution_pointwise(
                x, x[:, :, :, :1].expand(16, 16, 1, 1), None, [0, 0], [1, 1], [1, 1], 1, "none", [], ""
            )
            return True
    except (AttributeError, RuntimeError):  # not in this build of PyTorch
        pass
    return False


@cache
def _mkl_leaves_avx512() -> bool:
    """Return whether PyTorch's matrix products use half of the vector units: MKL leaves AVX-512 to Intel's processors.

    There, oneDNN computes a linear map and its gradients in half the time (AMD EPYC, 512 rows, 256 -> 2048 channels:
    4 ms and 8), else MKL is faster: 1,440 rows, 128 -> 128 take 1.1 ms and 1.6 on a Xeon, 1.7 and 2.6 with AVX2.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "GenuineIntel" not in _vendor()


def _vendor() -> str:
    """Return what names the processor's maker: of Linux the flags' file, elsewhere what Python knows."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((line for line in file if line.startswith("vendor_id")), "")
    except OSError:
        return platform.processor()


def onednn_supports(x: Tensor, *weights: Tensor | None) -> bool:
    """Return whether oneDNN can compute with these tensors: on an x86 CPU, outside of graphs that are recorded."""
    # exporting, compiling, tracing and FLOP counting need PyTorch's own operators
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or _get_current_dispatch_mode() is not None:
        return False
    tensors = [x, *(w for w in weights if w is not None)]
    return bool(
        _ON_X86
        and x.device.type == "cpu"
        and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and has_bf16_kernels()))
        and all(type(t) in _PLAIN_TENSORS and t.dtype == x.dtype for t in tensors)
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """Compute `F.linear`, and a ReLU after it if asked.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,) or None.
        relu: apply ReLU.

    Returns:
        (..., O).
    """
    # sizes are checked last: while a graph is recorded they may be symbols
    if not onednn_supports(x, weight, bias) or min(rows := x.shape[:-1].numel(), len(weight)) < ONEDNN_MIN_ROWS:
        y = F.linear(x, weight, bias)
        return F.relu(y) if relu else y
    after = "relu" if relu else "none"
    if requires_grad(x, weight, bias):
        if x.numel() <= _DIRECT_CONV_ELEMENTS or not _mkl_leaves_avx512():
            y = F.linear(x, weight, bias)
            return y.relu_() if relu else y
        # oneDNN also computes a convolution's gradients
        y = F.conv2d(_as_image(x), weight[:, :, None, None], bias)
        return _as_rows(y.relu_() if relu else y, x)
    if rows < CONV_LINEAR_MIN_ROWS:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, after, [], "")
    geometry = ([0, 0], [1, 1], [1, 1], 1)
    y = torch.ops.mkldnn._convolution_pointwise(_as_image(x), weight[:, :, None, None], bias, *geometry, after, [], "")
    return _as_rows(y, x)


def _as_image(x: Tensor) -> Tensor:
    """Reshape (..., I) to (1, I, 1, N), channels last."""
    return x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)


def _as_rows(y: Tensor, x: Tensor) -> Tensor:
    """Reshape (1, O, 1, N), channels last, to (..., O) with the leading axes of `x`."""
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], y.shape[1])


def pack(weight: Tensor, geometry: nn.Conv2d, shape: Sequence[int]) -> Tensor:
    """Reorder a convolution's weight for oneDNN; the result serves `convolve` alone.

    Args:
        weight: (O, I, h, w).
        geometry: has stride, padding and dilation.
        shape: (B, I, H, W) of the expected inputs; others give the same results, slower.
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
    silu: bool = False,
) -> Tensor:
    """Compute `F.conv2d`, add the residual and apply a ReLU or SiLU if asked.

    Args:
        x: (B, I, H, W).
        weight: (O, I, h, w), or the result of `pack` or `winograd.transformed` for it, where `can_fuse` is true.
        bias: (O,) or None.
        stride: vertical and horizontal.
        padding: pixels of zeros above and below, and left and right.
        dilation: vertical and horizontal.
        residual: of the output's shape, added to it; its memory may be used for the result.
        relu: apply ReLU last.
        silu: apply SiLU last; not together with a residual.

    Returns:
        (B, O, H', W').
    """
    if weight.ndim == 3:  # by `winograd.transformed`
        y = winograd.convolve(x, weight, bias, residual=residual, relu=relu)
        return F.silu(y, inplace=True) if silu else y
    if not can_fuse(x, weight, bias, residual):
        y = F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation))
        y = y if residual is None else y.add_(residual)  # in place: a convolution's gradient does not need its output
        return F.silu(y) if silu else y.relu_() if relu else y
    geometry = (list(padding), list(stride), list(dilation), 1)
    if residual is None:
        after = "swish" if silu else "relu" if relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, after, [], "")
    return torch.ops.mkldnn._convolution_pointwise_(
        residual, x, weight, bias, *geometry, "add", 1.0, "relu" if relu else None, [], ""
    )


def convolve_as(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute a layer without groups for (B, I, H, W): `convolve` with its weights and geometry."""
    padding = layer.padding
    assert not isinstance(padding, str)
    return convolve(x, layer.weight, layer.bias, stride=layer.stride, padding=padding, dilation=layer.dilation)
