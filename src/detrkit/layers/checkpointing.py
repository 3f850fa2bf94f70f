"""Memory for time: what a gradient needs is computed again instead of kept (Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def set_checkpointing(model: nn.Module, on: bool = True) -> None:
    """Makes a model keep less for the backward pass: inputs of its backbone's stages and its transformer's layers only.

    What lies between is computed a second time when its gradient is asked for, with the same dropout: losses and
    gradients are the same to the bit, where the operators themselves are. On a processor freed memory is not kept for
    the next tensors (`detrkit.ops.pages`) either, unless another model of the process has asked for that.

    Args:
        model: any model of detrkit.
        on: whether to.
    """
    for module in model.modules():
        if hasattr(module, "checkpointing"):
            module.checkpointing = on  # type: ignore[assignment]


def checkpointed(part: Callable[..., Any], *args: Any, on: bool, **kwargs: Any) -> Any:
    """`part(*args, **kwargs)`, of which the arguments alone are kept if `on` is set and a gradient may be asked for."""
    if not (on and torch.is_grad_enabled()):
        return part(*args, **kwargs)
    return checkpoint(part, *args, use_reentrant=False, **kwargs)
