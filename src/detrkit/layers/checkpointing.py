"""Gradient checkpointing: recompute activations in backward instead of storing them (Chen et al. 2016, 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def set_checkpointing(model: nn.Module, on: bool = True) -> None:
    """Switch gradient checkpointing of a model on or off.

    Only the inputs of the backbone's stages and of the transformer's layers are stored. The rest is computed again in
    backward, with the same dropout: losses and gradients are the same to the bit, where the operators themselves are.
    On a CPU, freed memory is returned to the system, too (see `detrkit.ops.malloc`), unless another model of the
    process retains it.

    Args:
        model: any model of detrkit.
        on: True to switch it on.
    """
    for module in model.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = on  # type: ignore[assignment]


def checkpointed(part: Callable[..., Any], *args: Any, on: bool, **kwargs: Any) -> Any:
    """Compute `part(*args, **kwargs)`; with `on` and gradients enabled, store only the arguments for backward."""
    if not (on and torch.is_grad_enabled()):
        return part(*args, **kwargs)
    return checkpoint(part, *args, use_reentrant=False, **kwargs)
