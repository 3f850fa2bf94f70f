"""The clock of a run: what it says of its time, its end when a budget is used up, and what an overfitted run sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from detrkit.engine.callbacks import Callback, RunView
from detrkit.engine.metrics import overfit_metric
from detrkit.engine.overfit import Seen
from detrkit.engine.pace import Pace, Work, evaluations_after
from detrkit.evaluation import Metrics
from detrkit.utils.console import console
from detrkit.utils.durations import duration

if TYPE_CHECKING:
    from detrkit.engine.trainer import Trainer

_FORECAST_STEPS = 10  # after which the time of the run is said, or earlier
_FORECAST_SECONDS = 20.0  # after so many seconds


class TimeKeeper(Callback):
    """Keeper of a run's `Pace`: says the whole time up front and ends the run when its budget is used up.

    Args:
        pace: of the run, over all its phases.
        phase: index of the phase.
        later: epochs of the phase that follows, or None.
    """

    def __init__(self, pace: Pace, phase: int = 0, *, later: int | None = None) -> None:
        self.pace, self.phase, self.later = pace, phase, later
        self.losses: list[float] = []
        self.figures: list[tuple[str, float]] = []
        self._said = False
        self._steps, self._seconds = 0, 0.0
        self._counted = 0.0

    def on_run_start(self, run: RunView) -> None:
        """Tell the pace what is to be done; end the run at once if its time is over."""
        trainer = run._trainer
        config, splits, progress = trainer.config, trainer.splits, trainer.progress
        world = trainer.world
        evaluated = 0 if splits.val is None else -(-len(splits.val) // world)
        final = evaluated + (0 if splits.test is None else -(-len(splits.test) // world))
        every, epochs = config.run.eval_every, config.optim.epochs
        work = Work(
            steps=epochs * trainer.steps_per_epoch,
            evaluations=evaluations_after(epochs, every) if evaluated else 0,
            step_images=config.data.batch_size * config.optim.accumulate,
            evaluated_images=evaluated,
            final_images=final,
        )
        if self.later:
            self.pace.phases[self.phase + 1 :] = [
                replace(work, steps=self.later * trainer.steps_per_epoch, evaluations=_count(self.later, every, work))
            ]
        left = evaluations_after(epochs, every, done=progress.epoch) if evaluated else 0
        done = progress.epoch * trainer.steps_per_epoch + progress.batch
        self.pace.begin(self.phase, work, steps_done=done, evaluations_left=left)
        self._counted = progress.seconds
        if progress.step and self.pace.used_up():
            run.ended_by = f"--minutes {config.run.minutes:g}"
            run.stop("the time is over; to go on, give --resume more of them")

    def on_step_end(self, run: RunView, values: Mapping[str, float]) -> None:
        """Count the step, say the time of the run once it is known, and end the run when its time is over."""
        progress = run._trainer.progress
        if progress.seconds < self._counted:  # of an earlier epoch
            self._counted = 0.0
        self.pace.step(progress.seconds - self._counted)
        self._counted = progress.seconds
        self._steps += 1
        self._seconds += self.pace.step_seconds or 0.0
        overfit = run.config.run.overfit
        if overfit:
            self.losses.append(values["loss"])
        elif not self._said and (self._steps >= _FORECAST_STEPS or self._seconds >= _FORECAST_SECONDS):
            forecast = self.pace.forecast()
            if forecast is not None:
                console.print(forecast)
                self._said = True
        if self.pace.over():
            minutes = run.config.run.minutes
            run.ended_by = f"--minutes {minutes:g}" if minutes is not None else "time"
            run.stop(f"the time is over after {duration(self.pace.gone)}, in epoch {run.epoch}", now=True)

    def on_evaluation_end(self, run: RunView, metrics: Metrics) -> None:
        """Say what an overfitted run sees."""
        if not run.config.run.overfit:
            return
        name, value = overfit_metric(metrics)
        self.figures.append((name, value))
        loss = f", loss {self.losses[-1]:.2f}" if self.losses else ""
        console.print(f"{name} {max(0.0, value) * 100:.1f} after {run.step} steps, {self.pace.gone:.0f} s{loss}")

    def on_epoch_end(self, run: RunView, row: Mapping[str, Any]) -> None:
        """Count the evaluation."""
        self._counted = 0.0
        if "val/seconds" in row:
            self.pace.evaluation(row["val/seconds"])

    def seen(self, trainer: Trainer) -> Seen:
        """Return what an overfitted run has seen in this process."""
        return Seen(self.losses, self.figures, trainer.progress.step, self.pace.gone)


def _count(epochs: int, every: int, work: Work) -> int:
    return evaluations_after(epochs, every) if work.evaluated_images else 0
