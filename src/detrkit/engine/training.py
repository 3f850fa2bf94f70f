"""`train`: a run from config to report."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from detrkit.config import TrainConfig, load_config
from detrkit.data.memory import named_data
from detrkit.engine import run_folder
from detrkit.engine.agreement import check_agreement
from detrkit.engine.announcement import announce
from detrkit.engine.budget import TimeLimit
from detrkit.engine.callbacks import Callback, check_callbacks
from detrkit.engine.class_weights import weight_lines
from detrkit.engine.fabric import Fabric
from detrkit.engine.fingerprint import fingerprint
from detrkit.engine.freezing import freeze_lines
from detrkit.engine.loggers import RunLogs
from detrkit.engine.metrics import overfit_metric
from detrkit.engine.overfit import OVERFIT_OK, verdict
from detrkit.engine.pace import Pace, Work
from detrkit.engine.phases import detector_phase, mask_phase
from detrkit.engine.pictures import RunPictures
from detrkit.engine.planning import Materials, Session, make_materials, planned
from detrkit.engine.processes import BEFORE_FIRST_STEP, StopSignals
from detrkit.engine.relations import check_config
from detrkit.engine.result import RunResult, finish
from detrkit.engine.resuming import adapted_fields, as_adapted, begin, check_same_data
from detrkit.engine.run_files import naming_last_state, saved_in
from detrkit.engine.timekeeping import TimeKeeper
from detrkit.engine.trainer import Trainer
from detrkit.utils.atomic import write_atomic
from detrkit.utils.console import console
from detrkit.utils.errors import IN_PYTHON, Interrupted, how_to_go_on
from detrkit.utils.signals import Stopped


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    data: Any = None,
    shorten_warmup: bool = False,
    reasons: Sequence[str] = (),
    limit: TimeLimit | None = None,
) -> RunResult:
    """Train a model and write checkpoints, settings, logs and report into the run's folder.

    Starts unchanged under `torchrun` and Slurm: each process trains on its share of every global batch. The loss and
    the gradient are those of one process with the same global batch.

    Args:
        config: of the run. Settings that are adapted before the first step (`run.minutes`, `run.overfit`) are printed,
            and config.yaml in the folder holds them.
        resume: continue the run in `config.run.out` exactly where it stopped. One that has no saved state yet is
            started from its beginning.
        callbacks: called at each step, evaluation, checkpoint, ...: see `Callback`.
        data: a dataset in memory, in place of `config.data.path`: whatever `detrkit.open_dataset` takes, or a dict of
            split -> open Dataset. A list of these, paths among them, is trained on together. A run is resumed with the
            same data: its fingerprint is checked. Every process of a run hands it over, as the same program does when
            torchrun starts it several times.
        shorten_warmup: shorten a warm-up that takes more than a fifth of all steps, as `detrkit train --epochs` does.
        reasons: lines that say why the settings are as they are, for choice.txt and the report.
        limit: do less where the epochs would take longer than this.

    Raises:
        DetrkitError: bad input; a folder that holds another run, or that another process writes; a loss that is not
            finite.
        Interrupted: the run was asked to stop.
        Exception: of a callback, unchanged.
    """
    check_callbacks(callbacks)
    if data is not None:
        names, data = named_data(data)
        config = config.changed(data=names)
    config = _normal(config)
    folder, stop = Path(config.run.out), StopSignals()
    pace = Pace() if limit is None else Pace(gone=limit.gone, report=limit.report)
    # no command finds data in memory: the program itself goes on
    command = None if data is None else f"{IN_PYTHON}, in Python"
    stop.advice = lambda: how_to_go_on(str(folder), command, saved=saved_in(folder) is not None)
    stop.last_words = lambda: str(_interrupted(signal.SIGINT, folder, "at once", command))
    try:
        with stop, ExitStack() as held, naming_last_state(folder):
            adapted = adapted_fields(config, shorten_warmup=shorten_warmup, limited=limit is not None)
            fabric, place, state = begin(config, resume=resume, held=held, adapted=adapted)
            stop.join(fabric.world_size)
            config = _of_first(config, fabric, reasons)
            session, materials = Session(fabric, stop, callbacks, pace, folder, data, list(reasons)), None
            session.limit = fabric.broadcast(limit)
            if place is None and not resume:
                config, materials = planned(config, session, shorten_warmup=shorten_warmup)
            elif fabric.global_rank == 0:
                config = as_adapted(config, load_config(folder / "config.yaml"), adapted)
            if place is not None or resume:  # the other processes need not see the folder
                values = {
                    part: {name: getattr(getattr(config, part), name) for name in adapted[part]} for part in adapted
                }
                config = config.changed(**fabric.broadcast(values))
            pace.budget = None if config.run.minutes is None else 60 * config.run.minutes
            if config.optim.mask_epochs:
                return _run_in_two_phases(config, session, place, state, materials)
            return _run(config, session, state, materials)
    except Stopped as stopped:
        raise _interrupted(stopped.number, folder, stop.during, command, agreed=stopped.agreed) from stopped


def _interrupted(
    number: int, folder: Path, during: str, command: str | None = None, *, agreed: bool = True
) -> Interrupted:
    saved = saved_in(folder) is not None
    return Interrupted(number, str(folder), command, during=during, saved=saved, agreed=agreed)


def _of_first(config: TrainConfig, fabric: Fabric, reasons: Sequence[str]) -> TrainConfig:
    """Return the settings that the first process has chosen, in all processes of a run whose settings were chosen.

    Each process that torchrun or Slurm starts has chosen for itself. The answers differ where one sees another number
    of cores, another cache of weights, or a slow server. What a user gives stays each process's own: `check_agreement`
    compares it.
    """
    chosen: TrainConfig | None = fabric.broadcast(config if reasons else None)
    if chosen is None or fabric.global_rank == 0:
        return config
    own = {name: getattr(config.run, name) for name in ("out", "device", "devices", "nodes", "timeout")}
    data = {name: getattr(config.data, name) for name in ("path", "more_paths", "val_data", "workers", "cache")}
    return chosen.changed(data=data, run=own)


def _run_in_two_phases(
    config: TrainConfig, session: Session, place: str | None, state: dict[str, Any] | None, materials: Materials | None
) -> RunResult:
    """Train first the detector, then its masks; resume in the phase in which the run was interrupted.

    Args:
        config: of both phases.
        session: of the run.
        place: as in `Beginning`.
        state: of one of the two phases, or None.
        materials: of the first phase, if they are there.
    """
    first, second = detector_phase(config), mask_phase(config)
    pace = session.pace
    # until the second phase begins, its steps are taken for as long as those of the first
    pace.phases = [Work(0, 0, 1, 0)] * 2
    if place != ".":
        console.print("phase 1 of 2: the detector")
        pace.share = first.optim.epochs / (first.optim.epochs + second.optim.epochs)
        detector = _run(first, session, state, materials, whole=config)
        if detector.can_learn is False:
            return detector
        console.print("phase 2 of 2: the masks")
        session.stop.during, state = BEFORE_FIRST_STEP, None
    pace.share = 1.0
    return _run(second, session, state, whole=config, phase=1)


def _run(
    config: TrainConfig,
    session: Session,
    state: dict[str, Any] | None,
    materials: Materials | None = None,
    *,
    whole: TrainConfig | None = None,
    phase: int = 0,
) -> RunResult:
    """Run a training, or one phase of a longer one.

    Args:
        config: of this phase.
        session: of the run.
        state: to resume from; None to start.
        materials: datasets, model and spec, if they were made already.
        whole: the longer run's config.
        phase: index of the phase.
    """
    folder, fabric, stop = Path(config.run.out), session.fabric, session.stop
    main = fabric.global_rank == 0
    splits, model, spec, init_report = materials or make_materials(config, session, state)
    data = fingerprint(splits)
    check_agreement(data, config.data.path, config)
    if state is not None:
        check_same_data(state, splits.train, data)
    if main:
        run_folder.prepare(config)
        if state is None:
            run_folder.describe(folder, spec, splits.train, in_memory=session.in_memory is not None)
            if whole is None or whole.run.out != config.run.out:
                run_folder.write_config(config)
            if whole is not None:
                run_folder.write_config(whole)
            if init_report is not None:
                write_atomic(folder / "init.txt", "\n".join(init_report.lines(most=None)) + "\n")
            if session.notes:
                write_atomic(folder / run_folder.CHOICE, "\n".join(session.notes) + "\n")
    fabric.barrier()
    keeper = TimeKeeper(session.pace, phase, later=None if whole is None or phase else whole.optim.mask_epochs)
    logs = RunLogs()
    called = [keeper, logs, RunPictures(logs), *session.callbacks]
    trainer = Trainer(
        config, fabric, splits, model, spec, folder, stop=stop, data=data, callbacks=called, pace=session.pace
    )
    if state is not None:
        trainer.resume(state)
        state.clear()  # the trainer has a copy: free this one's memory
    if main:
        lines = init_report.lines() if init_report is not None else []
        lines += [*freeze_lines(trainer.model, config.optim.freeze), *weight_lines(config, splits.learned)]
        announce(config, spec, splits, trainer, lines)
    try:
        result = _fit(trainer, stop, keeper)
    except BaseException as error:
        trainer.callbacks.error(error)
        raise
    trainer.callbacks.run_end(result)
    return result


def _fit(trainer: Trainer, stop: StopSignals, keeper: TimeKeeper) -> RunResult:
    """Train to the end and write the report.

    Args:
        trainer: at the start of the run, or where it goes on.
        stop: the signals that stop it.
        keeper: of its time.
    """
    trainer.callbacks.run_start()
    began = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - began
    stop.during = "in the report"
    evaluations = trainer.best_evaluations()
    folder = trainer.folder
    if not trainer.main:
        return RunResult(folder, None, None, folder / "best.safetensors", None)
    result = finish(trainer.config, trainer.splits, evaluations, folder, seconds, trainer.world)
    config = trainer.config
    if not config.run.overfit or result.metrics is None:
        return result
    name, value = overfit_metric(result.metrics)
    images = len(trainer.splits.learned)
    words = verdict(name, value, images, keeper.seen(trainer), folder=str(folder), minutes=config.run.minutes)
    return replace(result, can_learn=value >= OVERFIT_OK, overfitted=images, verdict=words)


def _normal(config: TrainConfig) -> TrainConfig:
    """Check the settings and fill in those that follow from others.

    Raises:
        DetrkitError: a number out of range, or settings that do not go together; names the fields.
    """
    check_config(config)
    if config.run.overfit:
        # as many images as there are, all of them in every step if they fit
        size = min(config.data.batch_size, config.run.overfit)
        return config.changed(data={"batch_size": size}, run={"eval_every": 1})
    return config
