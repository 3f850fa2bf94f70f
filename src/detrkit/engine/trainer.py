"""The training loop, in the order things happen."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import nn

from detrkit.checkpoint import ModelSpec, load_model, save_model
from detrkit.config import TrainConfig
from detrkit.console import console, meter, track
from detrkit.data import make_loader, train_transform
from detrkit.data.loader import derived_seed
from detrkit.engine.evaluating import eval_loader
from detrkit.engine.figures import deciding, known, learned, row_of, shown
from detrkit.engine.gathering import Evaluation, Truth, collect
from detrkit.engine.logs import CsvLog, TensorBoardLog
from detrkit.engine.memory import peak_mib, reset_peak
from detrkit.engine.optim import build_optimizer, lr_factor, moving_average, set_lr
from detrkit.engine.processes import StopSignals
from detrkit.engine.setup import Splits
from detrkit.engine.state import rng_state, save_state, set_rng_state
from detrkit.engine.update import Update
from detrkit.errors import DetrkitError, Interrupted
from detrkit.evaluation import Metrics
from detrkit.layers import set_checkpointing
from detrkit.models.batch import Batch
from detrkit.models.criterion import build_criterion
from detrkit.models.matcher import NonFiniteError
from detrkit.models.outputs import Target

OVERFITTED = 0.95  # AP50 or PQ on the few images at which there is nothing more to show


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        epoch: the epoch under way, from 0.
        batch: steps done in it.
        step: steps done in all.
        best: the deciding figure (PQ, the masks' AP or AP) of the best evaluation, -1 before the first.
        best_epoch: its epoch.
        figure: the deciding figure's name.
        stale: evaluations since then.
        sums: sums of the logged terms over the steps of this epoch.
        seconds: time spent on the steps of this epoch.
        memory: the most memory they took so far, MiB.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = -1
    figure: str = "AP"
    stale: int = 0
    sums: dict[str, float] | None = None
    seconds: float = 0.0
    memory: float = 0.0


class Trainer:
    """One run, in this process.

    Args:
        config: of the run.
        fabric: launched.
        splits: datasets.
        model: with its first weights.
        spec: of its checkpoints.
        folder: of the run.
    """

    def __init__(
        self, config: TrainConfig, fabric: Fabric, splits: Splits, model: nn.Module, spec: ModelSpec, folder: Path
    ) -> None:
        self.config, self.fabric, self.splits, self.spec, self.folder = config, fabric, splits, spec, folder
        self.rank, self.world = fabric.global_rank, fabric.world_size
        self.main = self.rank == 0
        self.criterion = build_criterion(spec.name, num_classes=spec.num_classes, **config.loss.overrides())
        self.criterion.to(fabric.device)
        self.model = model  # plain: for evaluation and checkpoints
        self.queries = model.num_queries
        set_checkpointing(model, config.run.gradient_checkpointing)
        optimizer = build_optimizer(model, config.optim)
        self.wrapped, self.optimizer = fabric.setup(model, optimizer)
        self.average = moving_average(model, config.optim.ema) if config.optim.ema else None
        augment = "none" if config.run.overfit else config.data.augment
        self.loader = make_loader(
            splits.train,
            transform=train_transform(spec.size, spec.max_size, augment=augment),
            batch_size=config.data.batch_size,
            training=True,
            seed=config.run.seed,
            workers=config.data.workers,
            cache=config.data.cache,
            draft=config.data.draft,
            group_by_size=config.data.group_by_size,
            accumulate=config.optim.accumulate,
            rank=self.rank,
            world_size=self.world,
            mean=spec.mean,
            std=spec.std,
            device=fabric.device,
        )
        self.steps_per_epoch = max(1, len(self.loader) // config.optim.accumulate)
        self.progress = Progress()
        self.truths: dict[str, Truth] = {}
        self.steps_log = CsvLog(folder / "steps.csv", key="step")
        self.epochs_log = CsvLog(folder / "epochs.csv", key="epoch")
        self.stop = StopSignals(self.world)
        self.update = Update(
            fabric,
            self.wrapped,
            self.optimizer,
            self.criterion,
            queries=self.queries,
            clip_max_norm=config.optim.clip_max_norm,
            spread=self.stop.spread,
            average=self.average,
            averaged=model,
        )
        # dropout differs between processes, initial weights do not
        torch.manual_seed(derived_seed(config.run.seed, self.rank) % 2**63)

    # the run

    def fit(self) -> Metrics | None:
        """Trains to the end; returns the metrics of the last evaluation.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            DetrkitError: a loss is not finite.
        """
        on = self.main and self.config.run.tensorboard
        board = TensorBoardLog(self.folder / "tensorboard", on=on, purge_step=self.progress.step + 1)
        metrics = None
        try:
            with self.stop:
                while self.progress.epoch < self.config.optim.epochs and not self._enough(metrics):
                    self._train_epoch(board)
                    metrics = self._end_epoch(board)
        finally:
            board.close()
        return metrics

    def _enough(self, metrics: Metrics | None) -> bool:
        """Whether to end before the last epoch."""
        run = self.config.run
        if run.overfit and metrics is not None:
            name, value = learned(metrics)
            if value >= OVERFITTED:
                self._say(f"{name} {value * 100:.1f} on the {run.overfit} images: enough")
                return True
        if run.patience and self.progress.stale >= run.patience:
            self._say(f"{self.progress.figure} has not risen for {run.patience} evaluations: stopping early")
            return True
        return False

    def _train_epoch(self, board: TensorBoardLog) -> None:
        """The steps of an epoch, from where the run is."""
        progress, accumulate = self.progress, self.config.optim.accumulate
        self.wrapped.train()
        reset_peak(self.fabric.device)
        self.loader.set_epoch(progress.epoch, progress.batch * accumulate)
        batches = iter(self.loader)
        if progress.sums is None:
            progress.sums = {}
        title = f"epoch {progress.epoch + 1}/{self.config.optim.epochs}"
        with meter(title, self.steps_per_epoch, start=progress.batch, quiet=not self.main) as bar:
            while progress.batch < self.steps_per_epoch:
                began = time.perf_counter()
                values = self._step(batches)
                progress.seconds += time.perf_counter() - began
                for name, value in values.items():
                    progress.sums[name] = progress.sums.get(name, 0.0) + value
                progress.batch += 1
                progress.step += 1
                self._log_step(values, board)
                bar.advance(f"loss {values['loss']:.3f}")
                every = self.config.run.save_every
                if self.stop.number or (every and progress.step % every == 0):
                    progress.memory = max(progress.memory, peak_mib(self.fabric.device))
                    self.save()
                if self.stop.number:
                    raise Interrupted(self.stop.number, str(self.folder))

    def _step(self, batches: Iterator[tuple[Batch, list[Target]]]) -> dict[str, float]:
        """One optimiser step over `accumulate` batches; returns loss terms averaged over the processes."""
        config = self.config.optim
        factor = lr_factor(config, self.progress.step, self.steps_per_epoch)
        set_lr(self.optimizer, factor)
        parts = [next(batches) for _ in range(min(config.accumulate, len(self.loader)))]
        try:
            values = self.update(parts)
        except NonFiniteError as error:
            raise self._diverged(error.what, error.images) from error
        values["lr"] = config.lr * factor
        return values

    def _end_epoch(self, board: TensorBoardLog) -> Metrics | None:
        """Log, evaluate, keep the best, save."""
        progress, config = self.progress, self.config
        sums = progress.sums or {}
        row: dict[str, Any] = {"epoch": progress.epoch + 1, "step": progress.step}
        row |= {f"train/{k}": v / max(1, progress.batch) for k, v in sums.items() if k != "lr"}
        row["lr"] = sums.get("lr", 0.0) / max(1, progress.batch)
        images = progress.batch * config.data.batch_size * self.world * config.optim.accumulate
        row["seconds"] = progress.seconds
        row["images_per_second"] = images / max(progress.seconds, 1e-9)
        row["peak_memory_mib"] = max(progress.memory, peak_mib(self.fabric.device))
        last = progress.epoch + 1 == config.optim.epochs
        metrics = None
        if self.splits.val is not None and (last or (progress.epoch + 1) % config.run.eval_every == 0):
            began = time.perf_counter()
            metrics = self.evaluation("val").compute()
            row |= row_of(metrics)
            row["val/seconds"] = time.perf_counter() - began
        improved = False
        if metrics is not None:
            progress.figure, value = deciding(metrics)
            improved = progress.best < value
            progress.stale += 1
        if improved:
            progress.best, progress.best_epoch, progress.stale = value, progress.epoch + 1, 0
        if self.main:
            if improved or self.splits.val is None:
                self._save_best(metrics)
            self.epochs_log.add(row)
            board.add(row, progress.epoch + 1)
        self._say(_epoch_line(row, config.optim.epochs, improved))
        progress.epoch += 1
        progress.batch, progress.sums, progress.seconds, progress.memory = 0, None, 0.0, 0.0
        self.save()
        return metrics

    def best_evaluations(self) -> dict[str, Evaluation]:
        """What the best checkpoint finds on the splits "val" and "test", those that there are.

        Only the main process needs to see the run's folder: it sends the weights to the others.
        """
        splits = [name for name in ("val", "test") if getattr(self.splits, name) is not None]
        if not splits:
            return {}
        if self.main and not (self.folder / "best.safetensors").exists():
            self._save_best(None)  # stopped and resumed at its end, before any evaluation
        weights = [load_model(self.folder / "best.safetensors")[0].state_dict() if self.main else None]
        if self.world > 1:
            dist.broadcast_object_list(weights)
        if weights[0] is not None:
            self.current.load_state_dict(weights[0])
        return {name: self.evaluation(name) for name in splits}

    def evaluation(self, split: str) -> Evaluation:
        """What the current weights (their moving average, if there is one) find in a split, in every process.

        Args:
            split: "val" or "test".
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
        if split not in self.truths:  # of masks it takes a while
            self.truths[split] = Truth.of(dataset, self.spec, self.current)
        run = self.config.run
        evaluation = Evaluation(self.truths[split], self.spec, max_dets=run.max_dets, threshold=run.threshold)
        collect(
            self.current,
            track(loader, "evaluate", len(loader), quiet=not self.main),
            evaluation,
            device=self.fabric.device,
            autocast=self.fabric.autocast,
        )
        return evaluation

    @property
    def current(self) -> nn.Module:
        """The weights that are evaluated and kept."""
        return self.model if self.average is None else self.average.module

    # saving and resuming

    def save(self) -> None:
        """Writes last.pt: every process's generators, and once what they share."""
        generators: list[Any] = [rng_state()]
        if self.world > 1:
            generators = [None] * self.world
            dist.all_gather_object(generators, rng_state())
        if not self.main:
            return
        state = {
            "spec": self.spec.to_json(),
            "config": self.config.to_yaml(),
            "model": self.model.state_dict(),
            "ema": None if self.average is None else self.average.module.state_dict(),
            "ema_updates": 0 if self.average is None else int(self.average.n_averaged),
            "optimizer": self.optimizer.state_dict(),
            "generators": generators,
            "world_size": self.world,
            "progress": vars(self.progress).copy(),
        }
        save_state(self.folder / "last.pt", state)

    def resume(self, state: dict[str, Any]) -> None:
        """Continues from the state in last.pt: same weights, optimiser, average, generators and place in the data.

        Raises:
            DetrkitError: a state of another number of processes or of other settings.
        """
        path = self.folder / "last.pt"
        if state["world_size"] != self.world:
            raise DetrkitError(
                f"{path}: the run had {state['world_size']} process(es), now there are {self.world}: "
                "to go on exactly, start as many"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.module.load_state_dict(state["ema"])
                self.average.n_averaged.fill_(state["ema_updates"])
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise DetrkitError(
                f"{path}: the state does not fit the model or the optimiser of this config "
                f"({str(error).splitlines()[0]}): resume with the run's own settings, or start anew with --init-from"
            ) from error
        set_rng_state(state["generators"][self.rank])
        self.progress = Progress(**state["progress"])
        if self.main:
            self.steps_log.keep_before(self.progress.step + 1)
            self.epochs_log.keep_before(self.progress.epoch + 1)
        self._say(f"resumed {path} at epoch {self.progress.epoch + 1}, step {self.progress.step}")

    def _save_best(self, metrics: Metrics | None) -> None:
        figures = {} if metrics is None else known(metrics)
        training = {**self.spec.training, "epoch": self.progress.epoch + 1, "metrics": figures}
        save_model(self.folder / "best.safetensors", self.current, replace(self.spec, training=training))

    # saying

    def _diverged(self, what: str, images: Sequence[Any]) -> DetrkitError:
        kept = self.folder / "last.pt"
        state = f"the last good state is {kept}" if kept.exists() else "no state had been saved yet"
        return DetrkitError(
            f"{what} is not finite at step {self.progress.step + 1} (epoch {self.progress.epoch + 1}), "
            f"images {', '.join(map(str, images))}: {state}; lower the learning rate, or look at these images with "
            "`detrkit data check`"
        )

    def _log_step(self, values: dict[str, float], board: TensorBoardLog) -> None:
        step = self.progress.step
        if self.main and (step % self.config.run.log_every == 0 or step == 1):
            self.steps_log.add({"step": step, "epoch": self.progress.epoch + 1, **values})
            board.add({f"step/{k}": v for k, v in values.items() if not k[-1].isdigit()}, step)

    def _say(self, text: str) -> None:
        if self.main:
            console.print(text)


def _epoch_line(row: dict[str, Any], epochs: int, improved: bool) -> str:
    line = f"epoch {row['epoch']}/{epochs}  loss {row.get('train/loss', math.nan):.3f}{shown(row)}"
    return line + f"{'  best' if improved else ''}  {row['images_per_second']:.1f} images/s  {row['seconds']:.0f} s"
