"""Norms folded into the convolutions before them, and parallel convolutions into one: exact, for inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from detrkit.layers.norms import FrozenBatchNorm2d
from detrkit.ops import winograd
from detrkit.ops.dense import can_fuse, pack, requires_grad


@dataclass
class _Folded:
    """Cached result of folding, with the state of the tensors it was computed from."""

    sources: list[object]  # the state of the tensors it was folded from
    weight: Tensor
    bias: Tensor
    shape: torch.Size | None = None  # of the last input
    packed: Tensor | None = None  # the weight in oneDNN's layout for that input
    transformed: Tensor | None = None  # the weight for `winograd.convolve`


_recorded: list[Sequence[Branch]] | None = None  # calls of `fold`, while `fold_for_good` runs a model
_KEPT: WeakKeyDictionary[nn.Module, _Folded] = WeakKeyDictionary()  # never saved in checkpoints


class _Steps:
    """Counts the steps of all optimizers: fused ones change weights without raising their version counters."""

    count = 0

    def __call__(self, *_: object) -> None:
        self.count += 1


_STEPS = _Steps()
register_optimizer_step_post_hook(_STEPS)

Norm = FrozenBatchNorm2d | nn.BatchNorm2d
Branch = tuple[nn.Conv2d, Norm]  # a convolution without bias, and the norm after it


def fold(branches: Sequence[Branch], x: Tensor) -> tuple[Tensor, Tensor]:
    """Fold norms with constant statistics into the convolutions before them: return weight and bias of one convolution.

    norm(conv(x)) = (w * x) s + t = (w s) * x + t: a pass over the weights instead of one over the map. Branches that
    read the same map and are added up are one convolution of the largest kernel (RepVGG, Ding et al. 2021, Sec. 3.2),
    as the sum of their weights, smaller kernels in the middle. While a weight is trained, folding is part of its graph.
    Otherwise the result is cached until one of the tensors changes, by PyTorch's version counters and the steps of
    optimizers: changes made in place through `.data` are not seen.

    oneDNN reorders the weight at every call; for consecutive inputs of one size the reordered weight is cached, too
    (R50 at 256 x 256: 45 ms without, 31 ms with it; at 800 x 1199: 433 and 409 ms). The layout for one size may be slow
    for another one (99 ms). The kernel of a convolution that `detrkit.ops.winograd` does faster is transformed, once.

    Args:
        branches: one, or several of the same stride that keep the map's size alike, the largest kernel first; norms
            are frozen, or in eval mode.
        x: (B, C, H, W) input of the convolutions.

    Returns:
        Weight (O, I, h, w), for `detrkit.ops.dense.convolve` alone, and bias (O,), in the weight's dtype.
    """
    if (first := branches[0][0]).bias is not None:  # by `fold_for_good`
        return first.weight, first.bias
    if _recorded is not None:
        _recorded.append(branches)
    tensors = [t for convolution, norm in branches for t in _tensors(convolution, norm)]
    if requires_grad(*tensors):
        if not torch.compiler.is_compiling():
            _KEPT.pop(first, None)  # what follows may change the weights
        return _folded(branches)
    if torch.compiler.is_compiling() or any(type(t) not in (Tensor, nn.Parameter) or t.is_inference() for t in tensors):
        return _folded(branches)  # recorded in a graph, or without a version counter
    sources: list[object] = [
        (t.data_ptr(), t._version, t.dtype, t.device, _STEPS.count if t.requires_grad else None) for t in tensors
    ]
    sources += [(norm.eps, _batches(norm)) for _, norm in branches]
    cached = _KEPT.get(first)
    with torch.inference_mode(False), torch.no_grad():  # a training step may use it as well
        if cached is None or cached.sources != sources:
            cached = _KEPT[first] = _Folded(sources, *_folded(branches))
        if not can_fuse(x, cached.weight):
            return cached.weight, cached.bias
        if winograd.pays(cached.weight, first, *x.shape[2:]):
            if cached.transformed is None:
                cached.transformed = winograd.transformed(cached.weight)
            return cached.transformed, cached.bias
        if x.shape != cached.shape:
            cached.shape, cached.packed = x.shape, None
        elif cached.packed is None:
            cached.packed = pack(cached.weight, first, x.shape)
    return (cached.weight if cached.packed is None else cached.packed), cached.bias


def fold_for_good(model: nn.Module, run: Callable[[], object]) -> None:
    """Replace the weights of a model's convolutions by those that `fold` computes, in place: for exported graphs.

    Args:
        model: in eval mode, without gradients; a copy of one that is still trained.
        run: runs the model once, so that every convolution that has a norm to fold is seen.
    """
    global _recorded
    _recorded = []
    try:
        run()
        calls = _recorded
    finally:
        _recorded = None
    inside = {id(module) for module in model.modules()}
    for branches in calls:
        first = branches[0][0]
        if first.bias is None and id(first) in inside:
            weight, bias = _folded(branches)
            first.weight, first.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)


def _tensors(convolution: nn.Conv2d, norm: Norm) -> list[Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    return [convolution.weight, norm.weight, norm.bias, mean, variance]


def _batches(norm: Norm) -> int | None:
    """Return a count that rises with every batch of training: running statistics change unnoticed, their number not."""
    counted = getattr(norm, "num_batches_tracked", None)
    return None if counted is None else counted._version


def _folded(branches: Sequence[Branch]) -> tuple[Tensor, Tensor]:
    side = max(convolution.kernel_size[0] for convolution, _ in branches)
    weights, biases = [], []
    for convolution, norm in branches:
        weight, scale, shift, mean, variance = _tensors(convolution, norm)
        scale = scale * (variance + norm.eps).rsqrt()
        border = (side - convolution.kernel_size[0]) // 2
        folded = weight * scale[:, None, None, None].to(weight.dtype)
        weights.append(F.pad(folded, [border] * 4) if border else folded)
        biases.append((shift - mean * scale).to(weight.dtype))
    if len(branches) == 1:
        return weights[0], biases[0]
    # added one by one: the gradients of a stack's sum are views of one memory, in which a second backward pass, of
    # accumulated batches, would add to all of them
    return sum(weights[1:], weights[0]), sum(biases[1:], biases[0])
