"""Random weights under which every layer has a say: published initializations start some at zero."""

from __future__ import annotations

import torch
from torch import nn


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fills parameters and statistics so that values neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        if name.endswith("running_var"):
            value = 1 + 0.2 * noise.clamp(-3, 3)
        elif tensor.ndim > 1:
            value = noise * tensor[0].numel() ** -0.5
        elif name.endswith("weight"):
            value = 1 + 0.1 * noise
        else:
            value = 0.3 * noise
        tensor.detach().copy_(value)
    return model
