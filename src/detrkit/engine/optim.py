"""Optimizer groups, learning-rate schedule, and the moving average of the weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from detrkit.config import OptimConfig
from detrkit.engine.freezing import freeze
from detrkit.utils.errors import DetrkitError

# official `--lr_linear_proj_names`: layers that place sampling points learn more slowly (Deformable DETR, Sec. A.3)
_SAMPLING = ("reference_points", "sampling_offsets")


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """Build AdamW with one group per learning rate: fused kernels work on groups, and many small ones cost time.

    Each group's `base_lr` is its rate before the schedule. A backbone with lr_backbone 0 is frozen, as
    is what `config.freeze` names.

    Raises:
        DetrkitError: nothing is left to train, or a pattern of `freeze` matches nothing.
    """
    if config.lr_backbone <= 0 and hasattr(model, "backbone"):
        model.backbone.requires_grad_(False)
    freeze(model, config.freeze)
    groups: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("backbone."):
            rate = config.lr_backbone
        elif any(part in name for part in _SAMPLING):
            rate = config.lr * config.lr_sampling_factor
        else:
            rate = config.lr
        groups[rate].append(parameter)
    if not groups:
        raise DetrkitError("every parameter is frozen: nothing to train (check optim.freeze and optim.lr_backbone)")
    return AdamW(
        [{"params": parameters, "lr": rate, "base_lr": rate} for rate, parameters in groups.items()],
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=True,
    )


def lr_factor(config: OptimConfig, step: int, steps_per_epoch: int, length: int | None = None) -> float:
    """Compute the learning-rate multiplier at a step: a function of what last.pt holds alone, so resume is exact.

    Args:
        config: of the run.
        step: from 0.
        steps_per_epoch: of the run.
        length: steps that the schedule takes, where the time lets fewer be made than all epochs have.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    planned = max(1, config.epochs * steps_per_epoch)
    if config.schedule == "step":
        drop = config.lr_drop * steps_per_epoch
        return warmup * (0.1 if step >= (drop if length is None else drop * length / planned) else 1.0)
    steps = max(1, planned if length is None else length)
    flat = config.lr_flat * steps if config.schedule == "flat-cosine" else 0.0
    progress = min(1.0, max(0.0, step - flat) / (steps - flat))
    return warmup * (config.lr_end + (1 - config.lr_end) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_lr(optimizer: AdamW, factor: float) -> None:
    """Set every group's rate to `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def moving_average(model: nn.Module, decay: float) -> AveragedModel:
    """Make an exponential moving average of a model's parameters and of the statistics of its batch norms.

    Other buffers are copied. Statistics of the current weights do not fit averaged ones, so those of batch norms are
    averaged too, as RT-DETR's authors do. Early on the decay is (1 + n) / (10 + n) after n updates, if that is less, so
    that the first random weights fade quickly.
    """

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        n = float(count)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    return _Average(model, update)


class _Average(AveragedModel):
    """Moving average whose batch norms have averaged statistics.

    Args:
        model: whose weights are averaged.
        update: moves averaged tensors towards the current ones, after a number of earlier updates.
    """

    def __init__(
        self, model: nn.Module, update: Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]
    ) -> None:
        super().__init__(model, multi_avg_fn=update)
        self._update = update

    def update_parameters(self, model: nn.Module) -> None:
        """Take the current weights into the average."""
        count = int(self.n_averaged)
        statistics = batch_statistics(self.module)
        before = [tensor.clone() for tensor in statistics] if count else []
        super().update_parameters(model)  # which copies buffers
        if before:
            torch._foreach_copy_(statistics, before)
            self._update(statistics, batch_statistics(model), count)


def batch_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of a model's batch norms."""
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [t for norm in norms for t in (norm.running_mean, norm.running_var) if t is not None]
