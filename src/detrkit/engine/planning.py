"""The plan of a run that begins: its parts, and the settings that follow from measured steps or their number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from detrkit.config import TrainConfig
from detrkit.engine.budget import Plan, TimeLimit, measured_rates, plan, plan_words, planned_seconds
from detrkit.engine.callbacks import Callback
from detrkit.engine.fabric import Fabric
from detrkit.engine.fine_tune import InitReport
from detrkit.engine.fingerprint import fingerprint
from detrkit.engine.optim import build_optimizer
from detrkit.engine.overfit import overfit_config
from detrkit.engine.pace import Pace
from detrkit.engine.phases import detector_phase
from detrkit.engine.processes import StopSignals
from detrkit.engine.schedule import fit_lr, fit_warmup, steps_per_epoch, with_epochs
from detrkit.engine.setup import chosen_model, load_source, make_model, predicts_masks
from detrkit.engine.splits import Splits, open_splits
from detrkit.engine.trainer import Trainer
from detrkit.models.base import DetectionModel
from detrkit.utils.console import console
from detrkit.weights.checkpoint import ModelSpec


@dataclass
class Session:
    """What all phases of a run share in this process.

    Attributes:
        fabric: launched.
        stop: the signals that stop the run.
        callbacks: of the user.
        pace: time of the run.
        folder: of the run.
        in_memory: the data, unless they are files; a list of several datasets.
        notes: lines about settings that were chosen or adapted, for choice.txt and the report.
        limit: time for which the run does less if its epochs do not fit, or None.
    """

    fabric: Fabric
    stop: StopSignals
    callbacks: Sequence[Callback]
    pace: Pace
    folder: Path
    in_memory: Any = None
    notes: list[str] = field(default_factory=list)
    limit: TimeLimit | None = None

    def say(self, line: str) -> None:
        """Print a line about a setting that was adapted, and note it."""
        if line:
            self.notes.append(line)
            if self.fabric.global_rank == 0:
                console.print(line)


class Materials(NamedTuple):
    """Datasets, the model with its first weights, its spec, and the report on the weights it started from."""

    splits: Splits
    model: DetectionModel
    spec: ModelSpec
    init_report: InitReport | None


def make_materials(config: TrainConfig, session: Session, state: dict[str, Any] | None) -> Materials:
    """Make the materials of a run, or of one phase of it.

    Args:
        config: of the run.
        session: of the run.
        state: of a resumed run, for which the weights it started from need not exist any more; else None.
    """
    fabric, in_memory = session.fabric, session.in_memory
    if state is not None:
        spec = ModelSpec.from_json(state["spec"])
        splits = open_splits(config, masks=predicts_masks(spec.name, spec.options), in_memory=in_memory)
        model, init_report = spec.build(), None
    else:
        with fabric.rank_zero_first(local=True):  # one process downloads, the others find the file
            source = load_source(config)
        splits = open_splits(config, masks=predicts_masks(*chosen_model(config, source)), in_memory=in_memory)
        with fabric.rank_zero_first(local=True):
            # the same first weights in every process
            fabric.seed_everything(config.run.seed, verbose=False)
            model, spec, init_report = make_model(config, splits.train, source)
    if config.run.freeze_detector is not None:
        model.freeze_detector()
    build_optimizer(model, config.optim)  # before anything is written: a model may have nothing left to train
    return Materials(splits, model, spec, init_report)


def planned(
    config: TrainConfig, session: Session, *, shorten_warmup: bool = False
) -> tuple[TrainConfig, Materials | None]:
    """Return the settings of a run that begins, and the materials of its first phase where they were needed for that.

    Epochs follow from the time, warm-up and drop from the epochs, learning rates from the images of a step. These
    settings are written to config.yaml, so that a resumed run needs no plan.

    Args:
        config: as given.
        session: of the run.
        shorten_warmup: whether a warm-up that takes more than a fifth of all steps is shortened.
    """
    world = session.fabric.world_size
    if config.run.overfit:
        config = overfit_config(config, world=world)
    rates = fit_lr(config, world)
    session.say(rates.words)
    config = dataclasses.replace(config, optim=rates.optim)
    if config.run.overfit:
        return config, None
    timed = config.run.minutes is not None or session.limit is not None
    if not timed and not (shorten_warmup and config.optim.warmup_steps):
        return config, None
    first = detector_phase(config) if config.optim.mask_epochs else config
    materials = make_materials(first, session, None)
    images = materials.splits.epoch_images
    if timed:
        config = _within_budget(config, first, materials, session)
    phases = [config.optim.epochs, *([config.optim.mask_epochs] if config.optim.mask_epochs else [])]
    fitted = fit_warmup(config.optim, min(phases) * steps_per_epoch(config, images, world))
    session.say(fitted.words)
    config = config.changed(optim={"warmup_steps": fitted.optim.warmup_steps})
    return config, materials


def _within_budget(config: TrainConfig, first: TrainConfig, materials: Materials, session: Session) -> TrainConfig:
    """Return the settings with which a run fits into its budget.

    Args:
        config: of the whole run.
        first: of its first phase.
        materials: of its first phase.
        session: of the run.
    """
    fabric, minutes, limit = session.fabric, config.run.minutes, session.limit
    splits, model, spec, _ = materials
    data = fingerprint(splits)

    def trial(copied: DetectionModel) -> Trainer:
        return Trainer(first, fabric, splits, copied, spec, session.folder, stop=session.stop, data=data)

    seconds = 60 * minutes if minutes is not None else limit.seconds if limit is not None else math.inf
    rates = measured_rates(model, trial, fabric, seconds)
    if rates.evaluation:
        session.pace.measured_evaluation = rates.evaluation
    gone = fabric.broadcast(session.pace.gone)
    images = config.data.batch_size * config.optim.accumulate * fabric.world_size
    val, test = splits.val, splits.test
    final = (1.0 if val is None or test is None else 1 + len(test) / len(val)) * (2 if config.optim.mask_epochs else 1)
    at_most = limit is not None and not limit.whole
    # the epochs that are the most may be parts of the split
    whole = config if at_most else config.changed(data={"epoch_images": None})
    steps = steps_per_epoch(whole, splits.epoch_images, fabric.world_size)
    every = config.run.eval_every
    most = config.optim.epochs + config.optim.mask_epochs if at_most else None
    report, left = session.pace.report, seconds - gone
    made = plan(rates, left, steps_per_epoch=steps, eval_every=every, final=final, most_epochs=most, report=report)
    reason = "measured" if minutes is None else f"--minutes {minutes:g}"
    takes = gone + planned_seconds(rates, made, steps_per_epoch=steps, final=final, report=report)
    session.say(plan_words(reason, rates, made, images=images, train=splits.train, seconds=takes))
    return _as_planned(whole, made, images, session)


def _as_planned(config: TrainConfig, made: Plan, images: int, session: Session) -> TrainConfig:
    """Return settings with the epochs of a plan, shared between the phases as before."""
    optim = config.optim
    epochs, masks = made.epochs, 0
    if optim.mask_epochs:
        share = optim.epochs / (optim.epochs + optim.mask_epochs)
        epochs = max(1, round(made.epochs * share))
        masks = max(1, made.epochs - epochs)
    fitted = with_epochs(optim, epochs, mask_epochs=masks)
    session.say(fitted.words)
    part = config.data.epoch_images if made.epoch_steps is None else made.epoch_steps * images
    every = min(made.eval_every, epochs)
    return config.changed(
        data={"epoch_images": part},
        optim={name: getattr(fitted.optim, name) for name in ("epochs", "mask_epochs", "lr_drop", "mask_lr_drop")},
        run={"eval_every": every},
    )
