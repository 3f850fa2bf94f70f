"""Epochs, images per epoch and evaluations of a run that has so much time: `--minutes`, and what is chosen."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from detrkit.data import Dataset
from detrkit.engine.fabric import Fabric
from detrkit.engine.pace import REPORT_SECONDS, evaluations_after
from detrkit.engine.state import rng_state, set_rng_state
from detrkit.models.base import DetectionModel
from detrkit.utils.durations import duration, seconds_text
from detrkit.utils.messages import counted

if TYPE_CHECKING:
    from detrkit.engine.trainer import Trainer

EVALUATION_SHARE = 0.25  # of the time, at most, for evaluations on the way
_SAFE_SHARE = 0.93  # of the time that is planned: steps and evaluations vary
_PARTS = 5  # of a run in which fewer epochs than these fit: whole ones alone would leave up to half of the time unused
_PARTS_SHARE = 0.1  # of such a run's time, for evaluations on the way
_TRIAL_SECONDS, _TRIAL_SHARE = 15.0, 0.025  # of measuring: the smaller one of this and this share of the budget


class TimeLimit(NamedTuple):
    """Time that a run may take, for which it does less: `optim.epochs` if they fit, else as many as fit.

    Attributes:
        seconds: of the run; steps are measured before the first one.
        gone: of them, before `train` was called.
        whole: whether all the time is used: as many epochs as fit, whatever `optim.epochs` is.
        report: seconds that the report takes on this machine, the end of the process included.
    """

    seconds: float
    gone: float = 0.0
    whole: bool = False
    report: float = REPORT_SECONDS


class Rates(NamedTuple):
    """Measured seconds: of a step with its loading, and of an evaluation of the validation split (0 without one)."""

    step: float
    evaluation: float


class Plan(NamedTuple):
    """Length of a run.

    Attributes:
        epochs: how many.
        epoch_steps: optimizer steps of each; None: as many as the training split has.
        eval_every: epochs between evaluations.
    """

    epochs: int
    epoch_steps: int | None
    eval_every: int


def plan(
    rates: Rates,
    seconds: float,
    *,
    steps_per_epoch: int,
    eval_every: int = 1,
    final: float = 1.0,
    most_epochs: int | None = None,
    report: float = REPORT_SECONDS,
) -> Plan:
    """Plan the epochs that fit into a time.

    Args:
        rates: of the run.
        seconds: for training, evaluations and report.
        steps_per_epoch: of the whole training split.
        eval_every: epochs between evaluations as set; raised where evaluations would take more than a quarter of the
            time.
        final: images that are evaluated at the end, as a multiple of the validation split: 1, with a test split more.
        most_epochs: train no more than these, though more would fit.
        report: seconds of the report.
    """
    available = _SAFE_SHARE * seconds - rates.evaluation * final - report
    epoch = steps_per_epoch * rates.step
    most = EVALUATION_SHARE / (1 - EVALUATION_SHARE) * epoch  # seconds of evaluations for each epoch
    every = max(eval_every, math.ceil(rates.evaluation / most)) if most > 0 else eval_every
    epochs = int(available / (epoch + rates.evaluation / every))
    if most_epochs is not None and epochs >= most_epochs:
        return Plan(most_epochs, None, min(every, most_epochs))
    if 1 <= epochs < every:  # one evaluation at the end, of its whole time
        epochs, every = max(1, int((available - rates.evaluation) / epoch)), max(1, epochs)
    whole = Plan(epochs, None, every)
    if epochs >= _PARTS:
        return whole
    parts = _PARTS
    if rates.evaluation > 0:
        parts = min(_PARTS, max(1, int(_PARTS_SHARE * available / rates.evaluation)))
    steps = min(steps_per_epoch, max(1, int((available - parts * rates.evaluation) / rates.step / parts)))
    return whole if epochs * steps_per_epoch >= parts * steps else Plan(parts, steps, 1)


def measure(trainer: Trainer, budget: float) -> Rates:
    """Measure steps and evaluation of a run on a copy of its model; in every process.

    Args:
        trainer: of a copy of the model, to be thrown away.
        budget: of the run, in seconds.
    """
    seconds: list[float] = []
    began = time.monotonic()
    trainer.wrapped.train()
    trainer.loader.set_epoch(0, 0)
    batches = iter(trainer.loader)
    most = min(_TRIAL_SECONDS, _TRIAL_SHARE * budget)
    steps = max(1, min(trainer.steps_per_epoch, 50))
    while len(seconds) < steps:
        start = time.monotonic()
        trainer._step(batches)
        seconds.append(time.monotonic() - start)
        if trainer.fabric.broadcast(len(seconds) >= 2 and time.monotonic() - began > most):
            break
    del batches
    evaluation = 0.0
    if trainer.splits.val is not None:
        val = trainer.splits.val
        count = min(len(val), 4 * trainer.world * (trainer.config.data.eval_batch_size or 2))
        chosen = sorted({round(i * (len(val) - 1) / max(1, count - 1)) for i in range(count)})
        trainer.splits = replace(trainer.splits, val=val.subset(chosen))
        start = time.monotonic()
        trainer.evaluation("val", quiet=True).compute()
        evaluation = (time.monotonic() - start) * len(val) / len(chosen)
    later = seconds[1:] or seconds
    return Rates(sum(later) / len(later), evaluation)


def measured_rates(
    model: DetectionModel, trial: Callable[[DetectionModel], Trainer], fabric: Fabric, budget: float
) -> Rates:
    """Measure a run before its first step; its model and generators are afterwards as if nothing had been measured.

    Args:
        model: of the run, with its first weights.
        trial: makes a trainer for a copy of it.
        fabric: launched.
        budget: of the run, in seconds.

    Returns:
        The rates, the same ones in every process.
    """
    before = rng_state()
    trainer = trial(copy.deepcopy(model))
    try:
        rates: Rates = fabric.broadcast(measure(trainer, budget))
        return rates
    finally:
        del trainer
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        set_rng_state(before)


def planned_seconds(
    rates: Rates, made: Plan, *, steps_per_epoch: int, final: float = 1.0, report: float = REPORT_SECONDS
) -> float:
    """Return the seconds of a planned run from its first step to its end.

    Args:
        rates: as measured.
        made: the plan.
        steps_per_epoch: of the whole training split.
        final: as in `plan`.
        report: likewise.
    """
    steps = made.epochs * (made.epoch_steps or steps_per_epoch)
    evaluations = evaluations_after(made.epochs, made.eval_every) + final
    return steps * rates.step + evaluations * rates.evaluation + report


def plan_words(reason: str, rates: Rates, made: Plan, *, images: int, train: Dataset, seconds: float) -> str:
    """Say how long a run becomes, from measured steps.

    Args:
        reason: of the plan, the line's beginning.
        rates: as measured.
        made: the plan.
        images: of all processes in a step.
        train: the training split.
        seconds: of the whole run.
    """
    epochs = counted(made.epochs, "epoch")
    if made.epoch_steps is not None:
        seen = made.epoch_steps * images
        whole = seen * made.epochs
        if whole > len(train):
            epochs += f" of {seen} images each (each of {len(train)} is seen {whole / len(train):.1f} times on average)"
        else:
            epochs += f" of {seen} images each ({whole} of {len(train)} images are seen)"
    line = f"{reason}: {epochs} fit, with steps of {seconds_text(rates.step)}"
    if rates.evaluation:
        often = "after each epoch" if made.eval_every == 1 else f"every {made.eval_every} epochs"
        line += f" and evaluations of about {duration(rates.evaluation)}, {often}"
    return f"{line}: about {duration(seconds)} in all"
