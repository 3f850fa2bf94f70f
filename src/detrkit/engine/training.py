"""`train`: a run from config to report."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrkit.checkpoint import ModelSpec, load_model
from detrkit.config import TrainConfig, load_config
from detrkit.console import console
from detrkit.data import Dataset
from detrkit.engine import run_folder
from detrkit.engine.examples import example_sheet, shown_above
from detrkit.engine.logs import CsvLog
from detrkit.engine.setup import Splits, make_fabric, make_model, open_splits
from detrkit.engine.state import load_state
from detrkit.engine.trainer import Trainer
from detrkit.errors import DetrkitError
from detrkit.evaluation import DetectionEvaluator, Metrics, write_report

# what may differ between a run and its continuation without changing a number of it
_FREE = {
    "data": {"path", "val_data", "workers", "cache", "eval_batch_size"},
    "optim": {"epochs"},
    "run": {"out", "device", "devices", "nodes", "eval_every", "patience", "log_every", "save_every", "tensorboard"},
}
OVERFIT_AP50 = 0.9
FEW_STEPS = 2000


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        folder: the run's folder.
        metrics: of the best checkpoint on the validation split (with overfit: on the few images), or None.
        test_metrics: of the same on the test split, or None.
        best: best.safetensors.
        report: report.md, or None without a validation split.
        can_learn: with overfit: whether AP50 reached 0.9; otherwise None.
    """

    folder: Path
    metrics: Metrics | None
    test_metrics: Metrics | None
    best: Path
    report: Path | None
    can_learn: bool | None = None


def train(config: TrainConfig, *, resume: bool = False) -> RunResult:
    """Trains a model and writes everything there is to know about it into the run's folder.

    Starts unchanged under `torchrun` and Slurm: each process trains on its share of every global batch. The loss and
    the gradient are those of one process with the same global batch.

    Args:
        config: of the run.
        resume: continue the run in `config.run.out` exactly where it stopped.

    Raises:
        DetrkitError: bad input; a loss that is not finite.
        Interrupted: the run was asked to stop; its state is saved.
    """
    config = _normal(config)
    folder = Path(config.run.out)
    state = None
    if resume:
        _check_same(config, folder)
        state = load_state(folder / "last.pt")
    fabric = make_fabric(config)
    main = fabric.global_rank == 0
    splits = open_splits(config)
    with fabric.rank_zero_first(local=True):  # one process downloads, the others find the file
        # the same first weights in every process
        fabric.seed_everything(config.run.seed, verbose=False)
        if state is None:
            model, spec, kept = make_model(config, splits.train)
        else:  # what the run started from need not be there any more
            spec = ModelSpec.from_json(state["spec"])
            model, kept = spec.build(), None
    if main:
        run_folder.prepare(config, resume=resume)
        if not resume:
            run_folder.describe(folder, config, spec, splits.train)
            if kept is not None:
                (folder / "init.txt").write_text("\n".join(kept.lines()) + "\n", encoding="utf-8")
    fabric.barrier()
    trainer = Trainer(config, fabric, splits, model, spec, folder)
    if state is not None:
        trainer.resume(state)
    if main:
        _announce(config, spec, splits.train, splits.val, trainer, kept.lines() if kept is not None else [])
    began = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - began
    detections = trainer.best_detections()
    if not main:
        return RunResult(folder, None, None, folder / "best.safetensors", None)
    return _finish(config, splits, detections, folder, seconds)


def _normal(config: TrainConfig) -> TrainConfig:
    """Fills in what follows from other settings, and refuses what cannot be.

    Raises:
        DetrkitError: a number out of range; names the field.
    """
    checks = {
        "data.batch_size": config.data.batch_size >= 1,
        "data.size": config.data.size is None or config.data.size >= 32,
        "optim.epochs": config.optim.epochs >= 1,
        "optim.lr": config.optim.lr > 0,
        "optim.accumulate": config.optim.accumulate >= 1,
        "optim.ema": 0 <= config.optim.ema < 1,
        "optim.warmup_steps": config.optim.warmup_steps >= 0,
        "run.eval_every": config.run.eval_every >= 1,
        "run.log_every": config.run.log_every >= 1,
        "run.overfit": config.run.overfit >= 0,
    }
    for name, fine in checks.items():
        if not fine:
            section, key = name.split(".")
            raise DetrkitError(f"{name} is {getattr(getattr(config, section), key)}: out of range")
    if config.run.overfit:
        # as many images as there are, all of them in every step if they fit
        size = min(config.data.batch_size, config.run.overfit)
        return config.changed(data={"batch_size": size}, run={"eval_every": 1})
    return config


def _check_same(config: TrainConfig, folder: Path) -> None:
    """Refuses to resume with settings that would make the continuation another run."""
    saved = folder / "config.yaml"
    if not saved.exists():
        raise DetrkitError(f"{folder}: no config.yaml, so no run of detrkit to resume")
    difference = first_difference(load_config(saved), config)
    if difference is not None:
        raise DetrkitError(
            f"{saved}: {difference}: a resumed run keeps its settings; to change them start a new one with --init-from"
        )


def first_difference(before: TrainConfig, now: TrainConfig, *, epochs: bool = False) -> str | None:
    """What differs between two configs of which one is to continue the other: "optim.lr was 0.1, now it is 0.2".

    Args:
        before: of the run as it was started.
        now: of its continuation.
        epochs: whether another number of epochs is a difference too; a run by itself may go on for longer.
    """
    first, second = dataclasses.asdict(before), dataclasses.asdict(now)
    for section, values in second.items():
        for key, value in values.items():
            old = first[section][key]
            old, value = (list(v) if isinstance(v, tuple | list) else v for v in (old, value))
            free = key in _FREE.get(section, set()) and not (epochs and key == "epochs")
            if old != value and not free:
                return f"{section}.{key} was {old!r}, now it is {value!r}"
    return None


def _announce(
    config: TrainConfig, spec: ModelSpec, train: Dataset, val: Dataset | None, trainer: Trainer, kept: list[str]
) -> None:
    """What is about to happen, in a few lines, with a warning where it cannot work."""
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    steps = trainer.steps_per_epoch * config.optim.epochs
    whole = config.data.batch_size * trainer.world * config.optim.accumulate
    console.print(f"{spec.name}: {parameters / 1e6:.1f} M trainable parameters, {spec.num_classes} classes")
    # a dataset to overfit is repeated to fill an epoch; the images are those it is evaluated on
    images = len(val) if config.run.overfit and val is not None else len(train)
    console.print(
        f"{images} images to train on"
        + (f", {len(val)} to evaluate on" if val is not None else "")
        + f"; {config.optim.epochs} epochs of {trainer.steps_per_epoch} steps of {whole} images"
        + f" on {trainer.fabric.device}"
        + (f" x {trainer.world}" if trainer.world > 1 else "")
    )
    for line in kept:
        console.print(line)
    if steps < FEW_STEPS and config.run.init_from is None and not config.run.overfit:
        console.print(
            f"warning: {steps} steps are few for a detection transformer from such a start: expect a low AP, "
            "train longer or start from trained weights (--init-from)"
        )
    most = max(int((~r.crowd).sum()) for r in train.records)
    if most > trainer.queries:
        console.print(
            f"warning: an image has {most} objects, the model only {trainer.queries} queries: raise --num-queries"
        )


def _finish(
    config: TrainConfig, splits: Splits, detections: dict[str, DetectionEvaluator], folder: Path, seconds: float
) -> RunResult:
    """Writes the report of the best checkpoint."""
    best = folder / "best.safetensors"
    if splits.val is None:
        return RunResult(folder, None, None, best, None)
    model, spec = load_model(best)
    metrics = {split: evaluator.compute() for split, evaluator in detections.items()}
    rows: list[dict[str, Any]] = CsvLog(folder / "epochs.csv", key="epoch").rows()
    settings: dict[str, Any] = {
        "model": " ".join([spec.name, *(f"{k}={v}" for k, v in spec.options.items())]),
        "dataset": f"{Path(config.data.path).name}, split {splits.val.split}, {len(splits.val)} images",
        "input": f"short side {spec.size}, longest side {spec.max_size} pixels",
        "best epoch": f"{spec.training.get('epoch')} of {len(rows)}",
        "images per step": config.data.batch_size * config.optim.accumulate,
        "seed": config.run.seed,
    }
    if "test" in metrics and splits.test is not None:
        test = metrics["test"]
        settings[f"test: split {splits.test.split}, {len(splits.test)} images"] = (
            f"AP {test.AP * 100:.1f}, AP50 {test.AP50 * 100:.1f}, AP75 {test.AP75 * 100:.1f}"
        )
    report = write_report(
        folder,
        metrics=metrics["val"],
        title=f"{spec.name} on {Path(config.data.path).name}",
        settings=settings,
        confusion=detections["val"].confusion(score=shown_above(spec)),
        sheet=example_sheet(model, spec, splits.val),
        curves=rows,
        timing={"training, minutes": round(seconds / 60, 1)},
    )
    can_learn = metrics["val"].AP50 >= OVERFIT_AP50 if config.run.overfit else None
    return RunResult(folder, metrics["val"], metrics.get("test"), best, report, can_learn)
