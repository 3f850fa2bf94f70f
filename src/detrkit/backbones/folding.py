"""A frozen norm folded into the convolution before it."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from detrkit.layers.norms import FrozenBatchNorm2d
from detrkit.ops.dense import in_one_pass, pack


@dataclass
class _Folded:
    """What came out, and of what."""

    sources: list[object]  # state of what it was folded from
    weight: Tensor
    bias: Tensor
    shape: torch.Size | None = None  # of the input it was last used on
    packed: Tensor | None = None  # the weight in the order that suits this input


_KEPT: WeakKeyDictionary[nn.Module, _Folded] = WeakKeyDictionary()  # nothing of it is ever saved


def fold(convolution: nn.Conv2d, norm: FrozenBatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that does what a convolution without bias and its frozen norm do.

    norm(conv(x)) = (w * x) s + t = (w s) * x + t: a pass over the weights instead of one over the map. While the weight
    learns, that is part of its graph. Otherwise the result is kept until one of the tensors changes, as far as PyTorch
    counts changes: those made in place through `.data` are not seen.

    Where oneDNN computes, it brings the weight into an order of its own at every call; for inputs of one size after the
    other that is kept, too (R50 at 256 x 256: 45 ms without, 31 ms with it; at 800 x 1199: 433 and 409 ms). The order
    that suits one size may be bad for another one (99 ms).

    Args:
        convolution: without bias.
        norm: what follows it.
        x: (B, C, H, W) the input that it will meet.

    Returns:
        Weight (O, I, h, w), for `detrkit.ops.dense.convolve` alone, and bias (O,), in the weight's dtype.
    """
    weight = convolution.weight
    if torch.is_grad_enabled() and weight.requires_grad:
        return _folded(weight, norm)
    tensors = (weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    if torch.compiler.is_compiling() or any(type(t) not in (Tensor, nn.Parameter) or t.is_inference() for t in tensors):
        return _folded(weight, norm)  # recorded, or no count of changes
    sources: list[object] = [norm.eps, *((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors)]
    kept = _KEPT.get(convolution)
    with torch.inference_mode(False), torch.no_grad():  # a training step may use it as well
        if kept is None or kept.sources != sources:
            kept = _KEPT[convolution] = _Folded(sources, *_folded(weight, norm))
        if x.shape != kept.shape:
            kept.shape, kept.packed = x.shape, None
        elif kept.packed is None and in_one_pass(x, kept.weight):
            kept.packed = pack(kept.weight, convolution, x.shape)
    if kept.packed is not None and in_one_pass(x, kept.weight):
        return kept.packed, kept.bias
    return kept.weight, kept.bias


def _folded(weight: Tensor, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    scale, shift = norm.factors()
    return weight * scale[:, None, None, None].to(weight.dtype), shift.to(weight.dtype)
