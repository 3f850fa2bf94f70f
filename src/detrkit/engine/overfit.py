"""`--overfit`: a schedule of its own, and the verdict on what was seen in its time."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

import torch

from detrkit.config import TrainConfig
from detrkit.models.registry import architecture

OVERFIT_OK = 0.9  # AP50 or PQ on the few images
MINUTES = 2.0  # until the verdict, unless --minutes says otherwise
STEPS = 10  # between two looks at the clock, at which an evaluation may be due
EARLIER_STEPS = 50  # per epoch in earlier versions, which the number of epochs still counts
CPU_SIZE = 384  # short side in pixels on a CPU: four times as many steps in two minutes as at 800
_WARMUP = 10
_FALLEN = 0.85  # a loss below this part of what it was is learning
_RISEN = 0.05  # likewise a metric that has risen by this
_EVALUATION_SHARE = 0.25  # of the time, for evaluations on the way


def overfit_config(config: TrainConfig, *, world: int) -> TrainConfig:
    """Return the settings with which a run overfits: the few images in every step, a constant rate, and a time.

    There is no long warm-up and no average of the weights, both of which would still show the first random weights
    after two minutes.

    Args:
        config: of the run that begins.
        world: number of processes.
    """
    size = min(config.data.batch_size, config.run.overfit)
    epochs = config.optim.epochs * EARLIER_STEPS // STEPS
    return config.changed(
        data={"batch_size": size, "epoch_images": STEPS * size * world},
        optim={
            "epochs": epochs,
            "mask_epochs": config.optim.mask_epochs * EARLIER_STEPS // STEPS,
            "schedule": "step",
            "lr_drop": epochs,
            "mask_lr_drop": None,
            "warmup_steps": min(config.optim.warmup_steps, _WARMUP),
            "accumulate": 1,
            "ema": 0.0,
        },
        run={"eval_every": 1, "minutes": config.run.minutes or MINUTES},
    )


def smaller_input(config: TrainConfig) -> tuple[TrainConfig, str]:
    """Return the settings with smaller images where a CPU would see few steps, and a line that says so, or ""."""
    starts_from_weights = bool(config.run.init_from or config.run.freeze_detector)
    published = None if starts_from_weights else architecture(config.model.name or "detr-r50").size
    size = config.data.size or published
    on_cpu = config.run.device == "cpu" or not torch.cuda.is_available()
    if not on_cpu or size is None or size <= CPU_SIZE:
        return config, ""
    smaller = config.changed(data={"size": CPU_SIZE, "max_size": None})
    return smaller, f"--overfit on a CPU: images of {CPU_SIZE} pixels instead of {size}; --size {size} keeps them"


def evaluation_due(seconds: float, last: float | None) -> bool:
    """Return whether enough was trained for another evaluation.

    Args:
        seconds: of training since the last evaluation.
        last: seconds that it took; None before the first.
    """
    return last is None or last <= _EVALUATION_SHARE / (1 - _EVALUATION_SHARE) * seconds


class Seen(NamedTuple):
    """What an overfitted run has seen.

    Attributes:
        losses: of the steps of this process, in order.
        figures: name and value in [0, 1] of each evaluation of this process.
        step: steps of the run.
        seconds: of the run.
    """

    losses: Sequence[float]
    figures: Sequence[tuple[str, float]]
    step: int
    seconds: float


def learning(seen: Seen) -> bool:
    """Return whether the loss has fallen, or the metric risen, clearly."""
    values = [value for _, value in seen.figures]
    if values and max(values) - max(0.0, values[0]) > _RISEN:
        return True
    if len(seen.losses) < 2:
        return False
    first, last = loss_ends(seen.losses)
    return last < _FALLEN * first


def loss_ends(losses: Sequence[float]) -> tuple[float, float]:
    """Return the mean loss at the beginning and at the end: of a tenth of the steps, at least one, at most ten."""
    count = max(1, min(10, len(losses) // 10))
    return sum(losses[:count]) / count, sum(losses[-count:]) / count


def verdict(name: str, value: float, images: int, seen: Seen, *, folder: str, minutes: float | None) -> str:
    """Return the line that ends an overfitted run.

    Args:
        name: of the metric.
        value: in [0, 1], of the best checkpoint.
        images: number of images.
        seen: of the run.
        folder: of the run.
        minutes: its budget.
    """
    line = f"overfit: {name} {max(0.0, value) * 100:.1f} on {images} image{'s' if images != 1 else ''}"
    if value >= OVERFIT_OK:
        return f"{line}: the pipeline can learn"
    moved = ""
    if len(seen.losses) > 1:
        first, last = loss_ends(seen.losses)
        moved = f": the loss went from {first:.2f} to {last:.2f}"
    after = f"{moved}, after {seen.step} steps and {seen.seconds:.0f} s"
    longer = f"go on with `detrkit train --resume {shlex.quote(folder)} --minutes {5 * (minutes or MINUTES):g}`"
    if learning(seen):
        return f"{line}{after}: it is learning, and not done; {longer}"
    advice = f"look at the boxes with `detrkit data preview`, or {longer}"
    return f"{line}{after}: the pipeline did NOT learn them yet: {advice}"
