"""The training loop: epochs, evaluations, checkpoints and logs of a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from detrkit.config import TrainConfig
from detrkit.data.loader import Loader
from detrkit.data.samplers import derived_seed
from detrkit.engine.callbacks import Callback, Callbacks, RunView
from detrkit.engine.class_weights import make_criterion
from detrkit.engine.evaluating import eval_loader
from detrkit.engine.evaluation_loop import EvaluationAccumulator, run_evaluation
from detrkit.engine.evaluation_targets import EvaluationTargets
from detrkit.engine.fabric import Fabric
from detrkit.engine.fingerprint import Fingerprint
from detrkit.engine.freezing import frozen_norms
from detrkit.engine.loading import train_loader
from detrkit.engine.logs import CsvLog
from detrkit.engine.memory import peak_mib, reset_peak
from detrkit.engine.metrics import (
    checkpoint_metrics,
    epoch_line,
    overfit_metric,
    selection_metric,
    stored_thresholds,
    to_row,
)
from detrkit.engine.optim import build_optimizer, lr_factor, moving_average, set_lr
from detrkit.engine.overfit import evaluation_due
from detrkit.engine.pace import Pace
from detrkit.engine.processes import StopSignals
from detrkit.engine.saving import divergence, restore, training_state
from detrkit.engine.splits import Splits
from detrkit.engine.state import Progress, save_state
from detrkit.engine.train_step import TrainStep
from detrkit.evaluation import Metrics
from detrkit.layers import set_checkpointing
from detrkit.models.base import DetectionModel
from detrkit.models.compiled import compile_training
from detrkit.models.matcher import NonFiniteError
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.utils.console import console, progress_bar, track
from detrkit.utils.signals import Stopped
from detrkit.weights.checkpoint import ModelSpec, load_model, save_model

LOADING_GRACE_SECONDS = 5  # to wait for a batch after a signal
SCHEDULE_PARTS = 20  # of a schedule, after each of which it is fitted to the time that is left of a budget
OVERFIT_DONE = 0.95  # AP50 or PQ on the few images at which training ends early


class Trainer:
    """Trainer of one run, in this process.

    Args:
        config: of the run.
        fabric: launched.
        splits: datasets.
        model: with its first weights.
        spec: of its checkpoints.
        folder: of the run.
        stop: the signals that stop it, watched.
        data: fingerprint of its datasets.
        callbacks: called in the main process alone.
        pace: time of the run so far; by default it begins now.
    """

    def __init__(
        self,
        config: TrainConfig,
        fabric: Fabric,
        splits: Splits,
        model: DetectionModel,
        spec: ModelSpec,
        folder: Path,
        *,
        stop: StopSignals,
        data: Fingerprint,
        callbacks: Sequence[Callback] = (),
        pace: Pace | None = None,
    ) -> None:
        self.config, self.fabric, self.splits, self.spec, self.folder = config, fabric, splits, spec, folder
        self.stop, self.data, self.pace = stop, data, pace or Pace()
        self.rank, self.world = fabric.global_rank, fabric.world_size
        self.main = self.rank == 0
        self.callbacks = Callbacks(RunView(self), callbacks if self.main else ())
        self.criterion = make_criterion(config, spec, splits.train)
        self.criterion.to(fabric.device)
        self.model = model  # plain: for evaluation and checkpoints
        self.queries = model.num_queries
        set_checkpointing(model, config.run.gradient_checkpointing)
        optimizer = build_optimizer(model, config.optim)
        self.frozen_norms = frozen_norms(model)
        self.wrapped, self.optimizer = fabric.setup(model, optimizer)
        self.average = moving_average(model, config.optim.ema) if config.optim.ema else None
        self.compiled = compile_training(model) if config.run.compile else None  # the average's copy is plain
        process = {"rank": self.rank, "world_size": self.world, "device": fabric.device, "rates": splits.rates}
        self.loader = train_loader(splits.train, config, spec, **process)
        self._watch_loading(self.loader)
        self.steps_per_epoch = len(self.loader) // config.optim.accumulate  # at least 1: the loader fills a step
        self.progress = Progress()
        self._since = 0.0  # seconds of training since the last evaluation
        self._evaluated: float | None = None  # seconds that it took
        self._saved = (0, 0)  # the last state's epoch and step in it: nothing needs to be saved twice
        self.ground_truths: dict[str, EvaluationTargets] = {}
        self.steps_log = CsvLog(folder / "steps.csv", key="step")
        self.epochs_log = CsvLog(folder / "epochs.csv", key="epoch")
        self.train_step = TrainStep(
            fabric,
            self.wrapped,
            self.optimizer,
            self.criterion,
            queries=self.queries,
            clip_max_norm=config.optim.clip_max_norm,
            all_reduce_mean=self.callbacks.all_reduce_mean,
            average=self.average,
            averaged=model,
            compiled=self.compiled,
        )
        # dropout differs between processes, initial weights do not
        torch.manual_seed(derived_seed(config.run.seed, self.rank) % 2**63)

    # the run

    def fit(self) -> None:
        """Train to the end.

        Raises:
            Stopped: a signal asked to stop; the state is saved.
            DetrkitError: a loss is not finite.
        """
        with self.stop.waiting():
            while self.progress.epoch < self.config.optim.epochs and not self._enough():
                self._train_epoch()
                self._end_epoch()
                self.stop.check()
        for line in self.compiled.report() if self.compiled else ():
            self._say(line)

    def _enough(self) -> bool:
        """Return whether to end before the last epoch."""
        run, progress = self.config.run, self.progress
        if self.callbacks.stop_asked("epoch"):
            self._say(f"{self.callbacks.run.ended_by}: {self.callbacks.run.reason or 'it gave no reason'}")
            return True
        if run.overfit and progress.learned >= OVERFIT_DONE:
            name = progress.figure if progress.figure == "PQ" else f"{progress.figure}50"
            self._say(f"{name} {progress.learned * 100:.1f} on {len(self.splits.learned)} images: enough")
            return True
        if run.patience and progress.stale >= run.patience:
            self._say(f"{progress.figure} has not risen for {run.patience} evaluations: stopping early")
            return True
        return False

    def _train_epoch(self) -> None:
        """Run the remaining steps of an epoch."""
        progress, accumulate = self.progress, self.config.optim.accumulate
        if progress.batch >= self.steps_per_epoch:
            return  # all done: the run was stopped in the evaluation
        self.wrapped.train()
        for norm in self.frozen_norms:
            norm.eval()
        reset_peak(self.fabric.device)
        self.loader.set_epoch(progress.epoch, progress.batch * accumulate)
        batches = iter(self.loader)
        if progress.sums is None:
            progress.sums = {}
        title = f"epoch {progress.epoch + 1}/{self.config.optim.epochs}"
        words = self.pace.words
        with progress_bar(title, self.steps_per_epoch, start=progress.batch, quiet=not self.main, words=words) as bar:
            while progress.batch < self.steps_per_epoch:
                began = time.perf_counter()
                values = self._step(batches)
                progress.seconds += time.perf_counter() - began
                for name, value in values.items():
                    progress.sums[name] = progress.sums.get(name, 0.0) + value
                progress.batch += 1
                progress.step += 1
                self.stop.during = ""
                self._log_step(values)
                self._follow_time()
                bar.advance(f"loss {values['loss']:.3f}")
                every = self.config.run.save_every
                if self.stop.number or (every and progress.step % every == 0):
                    progress.memory = max(progress.memory, peak_mib(self.fabric.device))
                    self.save()
                if self.stop.number:
                    raise Stopped(self.stop.number, agreed=True)
                if self.callbacks.stop_asked("step"):
                    break
        progress.memory = max(progress.memory, peak_mib(self.fabric.device))

    def _follow_time(self) -> None:
        """Let the learning rate come down by the end of the time, where the machine is slower than it was measured."""
        step, planned = self.progress.step, self.config.optim.epochs * self.steps_per_epoch
        if self.pace.budget is None or self.config.run.overfit:
            return
        part = max(1, (self.progress.length or planned) // SCHEDULE_PARTS)
        if step % part and step & (step - 1):  # powers of two as well: the first steps say most about a plan
            return
        fitting: int | None = self.fabric.broadcast(self.pace.fitting_steps())  # known to the first process alone
        if fitting is not None:
            self.progress.length = step + fitting if step + fitting < planned else None

    def _step(self, batches: Iterator[tuple[Batch, list[Target]]]) -> dict[str, float]:
        """Run one optimizer step over `accumulate` batches; return loss terms averaged over the processes."""
        config = self.config.optim
        factor = lr_factor(config, self.progress.step, self.steps_per_epoch, self.progress.length)
        set_lr(self.optimizer, factor)
        parts = [next(batches) for _ in range(config.accumulate)]
        self.callbacks.step_start(parts)
        try:
            values = self.train_step(parts)
        except NonFiniteError as error:
            raise divergence(error, self.progress, self.folder) from error
        values["lr"] = config.lr * factor
        return values

    def _end_epoch(self) -> None:
        """Save, evaluate, save the best checkpoint, log, save."""
        progress, config = self.progress, self.config
        sums = progress.sums or {}
        last = progress.epoch + 1 == config.optim.epochs or self.callbacks.stop_asked("epoch")
        due = self.splits.val is not None and (last or self._evaluation_due())
        # Saved before the evaluation, which may take longer than the time between a signal and a kill; and in the first
        # epoch the state is saved before the weights.
        if due or progress.epoch == 0:
            self.save()
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step}
        row |= {f"train/{k}": v / max(1, progress.batch) for k, v in sums.items() if k != "lr"}
        row["lr"] = sums.get("lr", 0.0) / max(1, progress.batch)
        images = progress.batch * config.data.batch_size * self.world * config.optim.accumulate
        row["seconds"] = progress.seconds
        row["images_per_second"] = images / max(progress.seconds, 1e-9)
        row["peak_memory_mib"] = progress.memory
        metrics = None
        if due:
            self.stop.during = "in an evaluation"
            began = time.perf_counter()
            metrics = self.evaluation("val").compute()
            row |= to_row(metrics)
            row["val/seconds"] = time.perf_counter() - began
            self._since, self._evaluated = 0.0, row["val/seconds"]
            self.stop.during = ""
            self.callbacks.evaluation_end(metrics)
        improved = undefined = False
        if metrics is not None:
            progress.figure, value = selection_metric(metrics)
            undefined = not value >= 0  # the split has no objects: not counted for patience
            improved = progress.best < value
            progress.stale += not undefined
            progress.learned = overfit_metric(metrics)[1] if config.run.overfit else -1.0
        if improved:
            progress.best, progress.best_epoch, progress.stale = value, progress.epoch + 1, 0
        if self.main:
            if improved or self.splits.val is None or (undefined and progress.best_epoch < 0):
                self._save_best(metrics, progress.epoch + 1)
            self.epochs_log.add(row)
        if not config.run.overfit:  # which says what it sees by the number of steps
            self._say(epoch_line(row, config.optim.epochs, improved))
        self.callbacks.epoch_end(row)
        progress.epoch += 1
        progress.batch, progress.sums, progress.seconds, progress.memory = 0, None, 0.0, 0.0
        self.save()

    def _evaluation_due(self) -> bool:
        """Return whether to evaluate after an epoch that is not the last; all processes agree."""
        run, progress = self.config.run, self.progress
        if run.overfit and self.config.data.epoch_images is not None:  # runs of earlier versions have longer epochs
            self._since += progress.seconds
            return bool(self.fabric.broadcast(evaluation_due(self._since, self._evaluated)))
        return (progress.epoch + 1) % run.eval_every == 0

    def best_evaluations(self) -> dict[str, EvaluationAccumulator]:
        """Evaluate the best checkpoint on the splits "val" and "test", if they exist.

        Only the main process needs to see the run's folder: it sends the weights to the others.
        """
        splits = [name for name in ("val", "test") if getattr(self.splits, name) is not None]
        if not splits:
            return {}
        if self.main and not (self.folder / "best.safetensors").exists():
            self._save_best(None, self.progress.epoch)  # stopped and resumed at its end, before any evaluation
        weights = [load_model(self.folder / "best.safetensors")[0].state_dict() if self.main else None]
        if self.world > 1:
            dist.broadcast_object_list(weights)
        if weights[0] is not None:
            self.current.load_state_dict(weights[0])
        with self.stop.waiting():
            return {name: self.evaluation(name) for name in splits}

    def evaluation(self, split: str, *, quiet: bool = False) -> EvaluationAccumulator:
        """Evaluate the current weights (their moving average, if there is one) on a split, in every process.

        Args:
            split: "val" or "test".
            quiet: show no progress.
        """
        dataset, data = getattr(self.splits, split), self.config.data
        loader = eval_loader(
            dataset,
            self.spec,
            batch_size=data.eval_batch_size or data.batch_size,
            workers=data.workers,
            rank=self.rank,
            world_size=self.world,
            device=self.fabric.device,
        )
        self._watch_loading(loader)
        if split not in self.ground_truths:  # masks take a while
            self.ground_truths[split] = EvaluationTargets.of(dataset, self.spec, self.current)
        run, ground_truth = self.config.run, self.ground_truths[split]
        evaluation = EvaluationAccumulator(ground_truth, self.spec, max_dets=run.max_dets, threshold=run.threshold)
        run_evaluation(
            self.current,
            track(loader, "evaluate", len(loader), quiet=quiet or not self.main),
            evaluation,
            autocast=self.fabric.autocast,
            stop=self.stop,
        )
        return evaluation

    def _watch_loading(self, loader: Loader) -> None:
        """Limit the wait for images after a signal; no step has begun, so the state is safe."""
        loader.timeout = self.config.run.timeout or loader.timeout
        loader.while_waiting = self._while_waiting

    def _while_waiting(self, seconds: float) -> None:
        if not self.stop.asked or seconds < LOADING_GRACE_SECONDS:
            return
        if self.world == 1:
            self.save()
        raise Stopped(self.stop.asked, agreed=self.world == 1)

    @property
    def current(self) -> nn.Module:
        """Model whose weights are evaluated and saved."""
        return self.model if self.average is None else self.average.module

    # saving and resuming

    def save(self) -> None:
        """Write last.pt, unless it holds this state already."""
        place = self.progress.epoch, self.progress.batch
        if place == self._saved:
            return
        state = training_state(self)
        if state is not None:
            save_state(self.folder / "last.pt", state)
            self.callbacks.checkpoint(self.folder / "last.pt", "last")
        self._saved = place

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from the state in last.pt: same weights, optimizer, average, generators and position in the data.

        Raises:
            DetrkitError: a state of another number of processes or of other settings.
        """
        restore(self, state)
        self.pace.went(state.get("elapsed", 0.0))
        progress = self.progress
        self._saved = progress.epoch, progress.batch
        if self.main:
            self.steps_log.keep_before(progress.step + 1)
            self.epochs_log.keep_before(progress.epoch + 1)
        if progress.epoch >= self.config.optim.epochs:
            place = "after its last epoch: it is evaluated again (to train longer: a new run with --init-from)"
        elif progress.batch < self.steps_per_epoch:
            place = f"at epoch {progress.epoch + 1}, step {progress.step}"
        else:
            place = f"at the evaluation of epoch {progress.epoch + 1}"
        self._say(f"resumed {self.folder / 'last.pt'} {place}")

    def _save_best(self, metrics: Metrics | None, epoch: int) -> None:
        figures = {} if metrics is None else checkpoint_metrics(metrics)
        training = {**self.spec.training, "epoch": epoch, "metrics": figures, **stored_thresholds(metrics)}
        save_model(self.folder / "best.safetensors", self.current, replace(self.spec, training=training))
        self.callbacks.checkpoint(self.folder / "best.safetensors", "best")

    # messages

    def _log_step(self, values: dict[str, float]) -> None:
        step = self.progress.step
        if self.main and (step % self.config.run.log_every == 0 or step == 1):
            self.steps_log.add({"step": step, "epoch": self.progress.epoch + 1, **values})
        self.callbacks.step_end(values)

    def _say(self, text: str) -> None:
        if self.main:
            console.print(text)
