"""Schedules that are made for one number of epochs, or images a step, and run for another: what follows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from detrkit.config import OptimConfig, TrainConfig
from detrkit.utils.messages import counted

# A warm-up protects Adam's first steps, and their number does not depend on how long training goes on: a schedule that
# is only half as long keeps its warm-up. It may not eat the run: at a fifth of all steps a cosine still reaches 0.9 of
# the rate (without a limit, 104 steps with a warm-up of 100 peaked at a quarter).
WARMUP_SHARE = 0.2


class Fitted(NamedTuple):
    """Settings that were adapted, and a line that says so; "" where nothing changed."""

    optim: OptimConfig
    words: str


def with_epochs(optim: OptimConfig, epochs: int, *, mask_epochs: int | None = None, keep_drop: bool = False) -> Fitted:
    """Return a schedule with another number of epochs, whose drop keeps its proportion.

    Args:
        optim: with the number of epochs that its schedule was made for.
        epochs: the new number.
        mask_epochs: of the second phase; by default as it is.
        keep_drop: leave lr_drop as it is.
    """
    masks = optim.mask_epochs if mask_epochs is None else mask_epochs
    changed = replace(optim, epochs=epochs, mask_epochs=masks)
    if keep_drop or optim.schedule != "step" or epochs == optim.epochs:
        return Fitted(changed, "")
    drop = _in_proportion(optim.lr_drop, optim.epochs, epochs)
    if optim.mask_lr_drop is not None and optim.mask_epochs and masks != optim.mask_epochs:
        changed = replace(changed, mask_lr_drop=_in_proportion(optim.mask_lr_drop, optim.mask_epochs, masks))
    if drop == optim.lr_drop or optim.lr_drop >= optim.epochs:  # one after the last epoch: the rate is constant
        return Fitted(replace(changed, lr_drop=max(optim.lr_drop, epochs) if drop != optim.lr_drop else drop), "")
    words = (
        f"the learning rate drops after {drop} of {epochs} epochs, in proportion ({optim.lr_drop} of {optim.epochs})"
    )
    return Fitted(replace(changed, lr_drop=drop), words)


def fit_warmup(optim: OptimConfig, steps: int) -> Fitted:
    """Return a schedule whose warm-up takes at most a fifth of all its steps.

    Args:
        optim: of the run.
        steps: of the whole run; of the shorter phase, if it has two.
    """
    most = int(steps * WARMUP_SHARE)
    if optim.warmup_steps <= most:
        return Fitted(optim, "")
    words = f"warm-up: {counted(most, 'step')} instead of {optim.warmup_steps}, at most a fifth of the {steps} steps"
    return Fitted(replace(optim, warmup_steps=most), words)


def fit_lr(config: TrainConfig, world: int) -> Fitted:
    """Return the learning rates for the images of a step, if they are given for another number (`optim.lr_for_batch`).

    Both rates are multiplied by the square root of the ratio: Adam divides a gradient by its own size, which is mostly
    noise, and noise falls with the root of the batch (Malladi et al. 2022, Sec. 4; for SGD the ratio itself). In the
    result `lr_for_batch` is the number at hand, so that the rule changes nothing when it is applied again.

    Args:
        config: of the run.
        world: number of processes.
    """
    optim = config.optim
    images = config.data.batch_size * optim.accumulate * world
    if optim.lr_for_batch in (None, images):
        return Fitted(optim, "")
    assert optim.lr_for_batch is not None
    factor = math.sqrt(images / optim.lr_for_batch)
    lr, lr_backbone = (float(f"{rate * factor:.6g}") for rate in (optim.lr, optim.lr_backbone))
    words = (
        f"learning rate: {lr:.3g} for {counted(images, 'image')} a step, by the square root of the ratio "
        f"({optim.lr:.3g} for {optim.lr_for_batch})"
    )
    return Fitted(replace(optim, lr=lr, lr_backbone=lr_backbone, lr_for_batch=images), words)


def _in_proportion(drop: int, before: int, now: int) -> int:
    return max(1, round(drop * now / before))


def steps_per_epoch(config: TrainConfig, images: int, world: int) -> int:
    """Return the optimizer steps of an epoch.

    Args:
        config: of the run.
        images: in the training split.
        world: number of processes.
    """
    images = config.data.epoch_images or images
    return max(1, images // (config.data.batch_size * world) // config.optim.accumulate)
