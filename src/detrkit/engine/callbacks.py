"""Callbacks: code of the user, and of detrkit itself, that a run calls while it trains."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from detrkit.config import TrainConfig
from detrkit.data import Dataset
from detrkit.evaluation import Metrics
from detrkit.models.base import DetectionModel
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.utils.console import console
from detrkit.utils.errors import SettingError
from detrkit.utils.visible import first_line
from detrkit.weights.checkpoint import ModelSpec

if TYPE_CHECKING:
    from detrkit.engine.result import RunResult
    from detrkit.engine.trainer import Trainer

Checkpoint = Literal["best", "last"]
_SIMILARITY = 0.79  # ratio of difflib: Lightning's on_train_epoch_end and on_epoch_end have 0.8
HOOKS = (
    *("on_run_start", "on_step_start", "on_step_end", "on_evaluation_end", "on_epoch_end", "on_checkpoint"),
    *("on_run_end", "on_error"),
)


class RunView:
    """What a callback sees of a run: its settings, its progress, its model for reading, and a way to end it.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._began = time.perf_counter()
        self._metrics: Metrics | None = None
        self._stop: Literal["", "epoch", "step"] = ""
        self.reason = ""
        self.ended_by = "a callback ends the run"  # the beginning of the line with the reason

    @property
    def config(self) -> TrainConfig:
        """Settings of the run; of a run in two phases, those of the phase."""
        return self._trainer.config

    @property
    def folder(self) -> Path:
        """Folder of the run; of a run in two phases, that of the phase."""
        return self._trainer.folder

    @property
    def spec(self) -> ModelSpec:
        """Name, options, classes and input size of the model, as its checkpoints hold them."""
        return self._trainer.spec

    @property
    def model(self) -> DetectionModel:
        """Model whose weights are evaluated and saved: with `optim.ema` their moving average. For reading alone."""
        model: DetectionModel = self._trainer.current  # type: ignore[assignment]  # the average's module is one, too
        return model

    @property
    def train_data(self) -> Dataset:
        """Training split; with overfit, the few images to learn."""
        return self._trainer.splits.learned

    @property
    def val_data(self) -> Dataset | None:
        """Validation split."""
        return self._trainer.splits.val

    @property
    def epoch(self) -> int:
        """Number of the epoch under way, from 1."""
        return min(self._trainer.progress.epoch + 1, self.epochs)

    @property
    def epochs(self) -> int:
        """Number of epochs of the whole run."""
        return self._trainer.config.optim.epochs

    @property
    def step(self) -> int:
        """Number of optimizer steps done, over all epochs."""
        return self._trainer.progress.step

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return self._trainer.steps_per_epoch

    @property
    def seconds(self) -> float:
        """Seconds since this process began to train; a resumed run counts from its continuation."""
        return time.perf_counter() - self._began

    @property
    def metrics(self) -> Metrics | None:
        """Metrics of the last evaluation of this process, or None before the first."""
        return self._metrics

    @property
    def best(self) -> float | None:
        """Best value of the metric that selects the best epoch (AP, with masks theirs, or PQ) in [0, 1], or None."""
        best = self._trainer.progress.best
        return best if best >= 0 else None

    def stop(self, reason: str = "", *, now: bool = False) -> None:
        """End the run properly: with an evaluation, its checkpoints and its report, as if it were at its last epoch.

        `detrkit train --resume` continues it later.

        Args:
            reason: to print.
            now: end after the step under way instead of the epoch under way; the rest of that epoch is left out. With
                several processes one more step is made.
        """
        self._stop = "step" if now else (self._stop or "epoch")
        self.reason = reason


class Callback:
    """Base class of callbacks: methods that do nothing, each called at its place in a run.

    Subclasses override what they need and are passed to training: `detrkit.train(config, callbacks=[MyCallback()])`.
    Callbacks are called one after another in the order given, at the end of the run in reverse order, and in the main
    process alone (rank 0): do not call collective operations of torch.distributed in them. A run that is resumed calls
    them from where it goes on; an evaluation that was interrupted is made and reported again. A run in two phases
    (`optim.mask_epochs`) calls them for each phase.

    An exception of a callback ends the run and leaves `detrkit.train` as it is, with a printed line that names the
    callback; last.pt holds the last saved state. `on_error` is called then, too.
    """

    def on_run_start(self, run: RunView) -> None:
        """Handle the start: called before the first step; the folder of the run and its config.yaml exist."""

    def on_step_start(self, run: RunView, batches: Sequence[tuple[Batch, list[Target]]]) -> None:
        """Handle the start of an optimizer step: called before it.

        Args:
            run: the run.
            batches: what the step learns from, `optim.accumulate` batches of this process: the images (B, 3, H, W) as
                the model gets them, normalized and padded, on its device, and a target for each, boxes cxcywh in
                [0, 1].
        """

    def on_step_end(self, run: RunView, values: Mapping[str, float]) -> None:
        """Handle the end of an optimizer step.

        Args:
            run: the run.
            values: "loss", its terms by their official names, "lr" and "grad_norm", averaged over the processes.
        """

    def on_evaluation_end(self, run: RunView, metrics: Metrics) -> None:
        """Handle the metrics of an evaluation.

        Args:
            run: the run.
            metrics: on the validation split.
        """

    def on_epoch_end(self, run: RunView, row: Mapping[str, Any]) -> None:
        """Handle the end of an epoch: called after its evaluation, if it has one.

        Args:
            run: the run.
            row: the line of epochs.csv: "epoch", "train/loss", "val/AP", "lr", "seconds", ...
        """

    def on_checkpoint(self, run: RunView, path: Path, kind: Checkpoint) -> None:
        """Handle a checkpoint that has been written.

        Args:
            run: the run.
            path: of the file.
            kind: "best" for best.safetensors, "last" for last.pt.
        """

    def on_run_end(self, run: RunView, result: RunResult) -> None:
        """Handle the end of the run: its report is written.

        Args:
            run: the run.
            result: what `detrkit.train` returns; of a run in two phases, the result of the phase.
        """

    def on_error(self, run: RunView, error: BaseException) -> None:
        """Handle an error or a stop signal (a `KeyboardInterrupt`) that ends the run; `on_run_end` is not called.

        Exceptions of this method are printed and change nothing.

        Args:
            run: the run.
            error: what ends it.
        """


class Callbacks:
    """The callbacks of a run, called by the trainer; none in other processes than the main one.

    Args:
        run: what they see.
        callbacks: in their order.
    """

    def __init__(self, run: RunView, callbacks: Sequence[Callback]) -> None:
        self.run = run
        self._agreed = False  # to stop; with several processes
        self._hooks: dict[str, list[Callable[..., None]]] = {
            hook: [getattr(c, hook) for c in callbacks if getattr(type(c), hook) is not getattr(Callback, hook)]
            for hook in HOOKS
        }
        self._hooks["on_run_end"].reverse()
        self._hooks["on_error"].reverse()

    def run_start(self) -> None:
        """Call `on_run_start`; the seconds of the run count from here."""
        self.run._began = time.perf_counter()
        self._call("on_run_start")

    def step_start(self, batches: Sequence[tuple[Batch, list[Target]]]) -> None:
        """Call `on_step_start`."""
        self._call("on_step_start", batches)

    def step_end(self, values: Mapping[str, float]) -> None:
        """Call `on_step_end`."""
        self._call("on_step_end", values)

    def evaluation_end(self, metrics: Metrics) -> None:
        """Call `on_evaluation_end`."""
        self.run._metrics = metrics
        self._call("on_evaluation_end", metrics)

    def epoch_end(self, row: Mapping[str, Any]) -> None:
        """Call `on_epoch_end`."""
        self._call("on_epoch_end", row)

    def checkpoint(self, path: Path, kind: Checkpoint) -> None:
        """Call `on_checkpoint`."""
        self._call("on_checkpoint", path, kind)

    def run_end(self, result: RunResult) -> None:
        """Call `on_run_end`."""
        self._call("on_run_end", result)

    def error(self, error: BaseException) -> None:
        """Call `on_error`; an error of a callback is printed and not raised: the first one matters."""
        for method in self._hooks["on_error"]:
            try:
                method(self.run, error)
            except Exception as second:  # whatever the user's code raises
                console.print(f"warning: callback {_name(method)} failed ({_in_words(second)})")

    def stop_asked(self, place: Literal["epoch", "step"]) -> bool:
        """Return whether a callback asked to end the run at the end of this epoch or step; all processes agree.

        Each process must call it at the same place.
        """
        asked = self.run._stop == "step" or (place == "epoch" and self.run._stop == "epoch")
        trainer = self.run._trainer
        if trainer.world == 1:
            return asked
        if place == "epoch":
            self._agreed = bool(trainer.fabric.broadcast(asked))
        return self._agreed

    def all_reduce_mean(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Average the terms of a step over the processes, and pass on whether a callback asked to stop at a step."""
        trainer = self.run._trainer
        if trainer.world == 1:
            return trainer.stop.all_reduce_mean(terms)
        asked = terms["loss"].new_tensor(float(self.run._stop == "step"))
        values = trainer.stop.all_reduce_mean({**terms, "stop": asked})
        self._agreed = values.pop("stop") > 0
        return values

    def _call(self, hook: str, *arguments: Any) -> None:
        for method in self._hooks[hook]:
            try:
                method(self.run, *arguments)
            except Exception as error:  # whatever the user's code raises: an optuna.TrialPruned must get through
                text = f"callback {_name(method)} ended the run ({_in_words(error)})"
                console.print(text)
                error.add_note(text)
                raise


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Check the callbacks that a user passes.

    Raises:
        SettingError: one is not an instance of a subclass of `Callback`, or has a method whose name is nearly that of
            one of `Callback`: it would never be called.
    """
    if not isinstance(callbacks, Iterable):
        raise SettingError(f"callbacks is a single {type(callbacks).__name__}: pass a list, callbacks=[...]")
    for callback in callbacks:
        if isinstance(callback, type) and issubclass(callback, Callback):
            raise SettingError(f"callbacks: {callback.__name__} is a class: pass an instance, {callback.__name__}()")
        if not isinstance(callback, Callback):
            raise SettingError(f"callbacks: {type(callback).__name__} is no subclass of detrkit.Callback")
        for name in dir(type(callback)):
            if not name.startswith("on_") or name in HOOKS:
                continue
            near = difflib.get_close_matches(name, HOOKS, n=1, cutoff=_SIMILARITY)
            if near:
                raise SettingError(
                    f"callbacks: {type(callback).__name__}.{name} is never called: did you mean {near[0]}?"
                )


def _name(method: Callable[..., None]) -> str:
    return method.__qualname__


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
