"""`train`: a run from config to report."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from detrkit.config import TrainConfig, load_config
from detrkit.data.memory import is_path, path_or_name
from detrkit.engine import run_folder
from detrkit.engine.agreement import check_agreement
from detrkit.engine.callbacks import Callback, check_callbacks
from detrkit.engine.class_weights import weight_lines
from detrkit.engine.evaluation_loop import EvaluationAccumulator
from detrkit.engine.examples import display_threshold, example_sheet
from detrkit.engine.fingerprint import fingerprint
from detrkit.engine.freezing import freeze_lines
from detrkit.engine.loggers import RunLogs
from detrkit.engine.logs import CsvLog
from detrkit.engine.metrics import format_metrics, overfit_metric, selection_metric
from detrkit.engine.objects import count_objects
from detrkit.engine.overfit import OVERFIT_OK, verdict
from detrkit.engine.pace import Pace, Work
from detrkit.engine.phases import detector_phase, mask_phase
from detrkit.engine.pictures import RunPictures
from detrkit.engine.planning import Materials, Session, make_materials, planned
from detrkit.engine.processes import BEFORE_FIRST_STEP, StopSignals
from detrkit.engine.relations import check_config
from detrkit.engine.resuming import adapted_fields, as_adapted, begin, check_same_data
from detrkit.engine.run_files import naming_last_state, saved_in
from detrkit.engine.setup import Splits
from detrkit.engine.timekeeping import TimeKeeper
from detrkit.engine.trainer import Trainer
from detrkit.evaluation import Metrics, write_report
from detrkit.utils.atomic import write_atomic
from detrkit.utils.console import console
from detrkit.utils.documents import read_text
from detrkit.utils.errors import IN_PYTHON, Interrupted, how_to_go_on
from detrkit.utils.messages import counted
from detrkit.utils.signals import Stopped
from detrkit.weights.checkpoint import ModelSpec, load_model

FEW_STEPS = {True: 2000, False: 500}  # for models of more than ten million parameters, and for others


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes:
        folder: the run's folder.
        metrics: of the best checkpoint on the validation split (with overfit: on the few images), or None. Boxes; with
            `masks` and `panoptic` of models that have them.
        test_metrics: of the same checkpoint on the test split, or None.
        best: best.safetensors.
        report: report.md, or None without a validation split.
        can_learn: with overfit: whether AP50 (on panoptic data, PQ) reached 0.9; otherwise None.
        overfitted: with overfit: number of images, fewer than asked for if there are no more.
        verdict: with overfit: in words, whether it can learn, or is learning, and how to go on; else None.
    """

    folder: Path
    metrics: Metrics | None
    test_metrics: Metrics | None
    best: Path
    report: Path | None
    can_learn: bool | None = None
    overfitted: int | None = None
    verdict: str | None = None


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    data: Any = None,
    shorten_warmup: bool = False,
    reasons: Sequence[str] = (),
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
            split -> open Dataset. A run is resumed with the same data: its fingerprint is checked. Every process of a
            run hands it over, as the same program does when torchrun starts it several times.
        shorten_warmup: shorten a warm-up that takes more than a fifth of all steps, as `detrkit train --epochs` does.
        reasons: lines that say why the settings are as they are, for choice.txt and the report.

    Raises:
        DetrkitError: bad input; a folder that holds another run, or that another process writes; a loss that is not
            finite.
        Interrupted: the run was asked to stop.
        Exception: of a callback, unchanged.
    """
    check_callbacks(callbacks)
    if data is not None:
        config = config.changed(data={"path": path_or_name(data)})
        data = None if is_path(data) else data
    config = _normal(config)
    folder, stop, pace = Path(config.run.out), StopSignals(), Pace()
    # no command finds data in memory: the program itself goes on
    command = None if data is None else f"{IN_PYTHON}, in Python"
    stop.advice = lambda: how_to_go_on(str(folder), command, saved=saved_in(folder) is not None)
    stop.last_words = lambda: str(_interrupted(signal.SIGINT, folder, "at once", command))
    try:
        with stop, ExitStack() as held, naming_last_state(folder):
            adapted = adapted_fields(config, shorten_warmup=shorten_warmup)
            fabric, place, state = begin(config, resume=resume, held=held, adapted=adapted)
            stop.join(fabric.world_size)
            config = _of_first(config, fabric, reasons)
            session, materials = Session(fabric, stop, callbacks, pace, folder, data, list(reasons)), None
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
    data = {name: getattr(config.data, name) for name in ("path", "val_data", "workers", "cache")}
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
        _announce(config, spec, splits, trainer, lines)
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
    result = _finish(trainer.config, trainer.splits, evaluations, folder, seconds, trainer.world)
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


def _announce(config: TrainConfig, spec: ModelSpec, splits: Splits, trainer: Trainer, lines: list[str]) -> None:
    """Print a summary of the run that begins, with a warning where it cannot work."""
    train, val = splits.train, splits.val
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    steps = trainer.steps_per_epoch * config.optim.epochs
    images_per_step = config.data.batch_size * trainer.world * config.optim.accumulate
    console.print(f"{spec.name}: {parameters / 1e6:.1f} M trainable parameters, {counted(spec.num_classes, 'class')}")
    counts = count_objects(splits.learned)
    console.print(
        f"{counted(counts.images, 'image')} to train on"
        + (f", {len(val)} to evaluate on" if val is not None else "")
        + f"; {_length(config, trainer)} of {counted(images_per_step, 'image')}"
        + f" on {trainer.fabric.device}"
        + (f" x {trainer.world}" if trainer.world > 1 else "")
    )
    for line in [*counts.lines(), *lines]:
        console.print(line)
    if config.run.pictures:
        after = "" if val is None else " and examples.png"
        console.print(
            f"pictures in {trainer.folder}: labels.png and first_batch.png now, training.png{after} while it trains"
        )
    if config.run.patience and (val is None or not count_objects(val).objects):
        why = "there is no split to evaluate on" if val is None else f"no image of {val.split} has an object"
        console.print(f"warning: {why}, so that --patience has nothing to count and stops nothing")
    trained = config.run.init_from or config.run.freeze_detector
    if steps < FEW_STEPS[parameters > 10e6] and trained is None and not config.run.overfit:
        console.print(
            f"warning: {counted(steps, 'step')} {'is' if steps == 1 else 'are'} few for a detection transformer that "
            "starts from random weights: expect a low AP; train longer, or start from trained weights (--init-from)"
        )
    if config.optim.warmup_steps > steps / 2 and not config.run.overfit:
        console.print(
            f"warning: the warm-up takes {config.optim.warmup_steps} steps, and the run {steps}: the learning rate "
            "hardly gets to optim.lr; lower optim.warmup_steps, or call detrkit.train with shorten_warmup=True"
        )
    most = max(int((~r.crowd).sum()) for r in train.records)
    if most > trainer.queries:
        console.print(
            f"warning: an image has {most} objects, the model only {trainer.queries} queries: raise --num-queries"
        )


def _length(config: TrainConfig, trainer: Trainer) -> str:
    """Describe how long a run is."""
    if config.run.overfit and config.run.minutes is not None:
        return f"until they are learned, for {config.run.minutes:g} minutes at most; steps"
    return f"{counted(config.optim.epochs, 'epoch')} of {counted(trainer.steps_per_epoch, 'step')}"


def _finish(
    config: TrainConfig,
    splits: Splits,
    evaluations: dict[str, EvaluationAccumulator],
    folder: Path,
    seconds: float,
    world: int,
) -> RunResult:
    """Write the report of the best checkpoint, which `world` processes trained in so many seconds."""
    best = folder / "best.safetensors"
    if splits.val is None:
        return RunResult(folder, None, None, best, None)
    model, spec = load_model(best)
    metrics = {split: evaluation.compute() for split, evaluation in evaluations.items()}
    rows: list[dict[str, Any]] = CsvLog(folder / "epochs.csv", key="epoch").rows()
    settings: dict[str, Any] = {
        "model": " ".join([spec.name, *(f"{k}={v}" for k, v in spec.options.items())]),
        "dataset": f"{Path(config.data.path).name}, split {splits.val.split}, {len(splits.val)} images",
        "input": f"short side {spec.size}, longest side {spec.max_size} pixels",
        "best epoch": f"{spec.training.get('epoch')} of {len(rows)}, {_reason(metrics['val'])}",
        "images per step": config.data.batch_size * config.optim.accumulate * world,
        **count_objects(splits.learned).rows(),
        "seed": config.run.seed,
    }
    chosen = folder / run_folder.CHOICE
    if chosen.is_file():
        settings["settings chosen"] = "; ".join(line.strip() for line in read_text(chosen).splitlines() if line.strip())
    if config.run.freeze_detector is not None:
        settings["frozen detector"] = Path(config.run.freeze_detector).name
    if "test" in metrics and splits.test is not None:
        settings[f"test: split {splits.test.split}, {len(splits.test)} images"] = format_metrics(metrics["test"])
    reason = evaluations["val"].objects.reason_for_zero(metrics["val"])
    if reason:
        console.print(f"warning: {reason}")
    report = write_report(
        folder,
        notes=[reason] if reason else [],
        metrics=metrics["val"],
        masks=metrics["val"].masks,
        panoptic=metrics["val"].panoptic,
        title=f"{spec.name} on {Path(config.data.path).name}",
        settings=settings,
        confusion=evaluations["val"].objects.confusion(score=display_threshold(spec)),
        sheet=example_sheet(model, spec, splits.val),
        curves=rows,
        timing={"training, minutes": round(seconds / 60, 1)},
    )
    return RunResult(folder, metrics["val"], metrics.get("test"), best, report)


def _reason(metrics: Metrics) -> str:
    """Say by which metric the best epoch was selected."""
    name, value = selection_metric(metrics)
    return f"by its {name}" if value >= 0 else f"the last evaluated: {name} is n/a"
