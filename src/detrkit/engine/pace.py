"""`Pace`: how long a run takes, from the seconds of its steps and evaluations so far, and whether its time is over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from detrkit.utils.durations import duration, seconds_text, time_words
from detrkit.utils.messages import counted

REPORT_SECONDS = 10.0  # for the report with its plots and pictures, besides the evaluations
_WINDOW = 200  # steps that the estimate is made of: a machine that becomes slower shows within these
_MEASURED = 3  # steps before the first estimate; the first step of a process is slower and not counted
# An image costs about a third of its training step in a forward pass alone; it is larger than the augmented ones.
_EVALUATION_SHARE = 0.5


@dataclass(frozen=True)
class Work:
    """The work of a run, or of one phase of it.

    Attributes:
        steps: optimizer steps.
        evaluations: of the validation split, without the last one of the best checkpoint.
        step_images: images of this process in a step.
        evaluated_images: images of this process in an evaluation; 0 without a validation split.
        final_images: likewise in the evaluation of the best checkpoint, on validation and test split.
    """

    steps: int
    evaluations: int
    step_images: int
    evaluated_images: int
    final_images: int = 0


def evaluations_after(epochs: int, every: int, *, done: int = 0) -> int:
    """Count the evaluations after the first `done` epochs: one every so many epochs, and one after the last."""
    if done >= epochs:
        return 0
    return epochs // every - done // every + (epochs % every > 0)


class Pace:
    """Estimate of the time that a run takes, in seconds since it began, over all its phases and interruptions.

    Args:
        phases: work of each phase, in order.
        gone: seconds that the run took before it was interrupted.
        budget: seconds for the whole run; None for no end.
        report: seconds of the report at the end.
        clock: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        phases: Sequence[Work] = (),
        *,
        gone: float = 0.0,
        budget: float | None = None,
        report: float = REPORT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.phases = list(phases)
        self.budget, self.report = budget, report
        self._clock = clock
        self._began = clock() - gone
        self._phase = 0
        self._steps_left = self.phases[0].steps if self.phases else 0
        self._evaluations_left = self.phases[0].evaluations if self.phases else 0
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._count = 0
        self._evaluation: float | None = None
        self.measured_evaluation: float | None = None  # seconds, before the first step
        self.share = 1.0  # of the budget at which the current phase ends

    @property
    def gone(self) -> float:
        """Seconds since the run began, without the time between an interruption and its continuation."""
        return self._clock() - self._began

    def went(self, gone: float) -> None:
        """Set the seconds that the run has taken before it was interrupted; those of this process come on top."""
        self._began -= gone

    def begin(self, phase: int, work: Work, *, steps_done: int = 0, evaluations_left: int | None = None) -> None:
        """Begin a phase, at its start or where it was interrupted.

        Args:
            phase: its index.
            work: of the whole phase, which replaces what was assumed.
            steps_done: steps of it that are done.
            evaluations_left: evaluations of it still to come; by default all.
        """
        self.phases[phase : phase + 1] = [work]
        self._phase = phase
        self._steps_left = work.steps - steps_done
        self._evaluations_left = work.evaluations if evaluations_left is None else evaluations_left
        self._recent.clear()
        self._count, self._evaluation = 0, None

    def step(self, seconds: float) -> None:
        """Count a step, loading included."""
        self._count += 1
        self._steps_left = max(0, self._steps_left - 1)
        if self._count == 2:
            self._recent.clear()  # the first one: memory is allocated, kernels are chosen, images decoded
        self._recent.append(seconds)

    def evaluation(self, seconds: float) -> None:
        """Count an evaluation of the validation split."""
        self._evaluations_left = max(0, self._evaluations_left - 1)
        self._evaluation = seconds

    @property
    def step_seconds(self) -> float | None:
        """Mean of the recent steps, in seconds; None before the first."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def evaluation_seconds(self, images: int | None = None, *, phase: int | None = None) -> float:
        """Return the seconds of an evaluation: as the last one, or before the first as measured, else from the steps.

        Args:
            images: evaluated ones; by default those of the phase's evaluations.
            phase: its index; by default the current one.
        """
        work = self.phases[self._phase if phase is None else phase]
        images = work.evaluated_images if images is None else images
        now = self.phases[self._phase]
        if self._evaluation is not None and now.evaluated_images:
            return self._evaluation * images / now.evaluated_images
        if self.measured_evaluation is not None and now.evaluated_images:
            return self.measured_evaluation * images / now.evaluated_images
        return (self.step_seconds or 0.0) / max(1, now.step_images) * _EVALUATION_SHARE * images

    def left(self) -> float | None:
        """Return the seconds that are left, evaluations and report included; None before there is an estimate."""
        step = self.step_seconds
        if step is None or (self._count < _MEASURED and self._steps_left):
            return None
        seconds = self._steps_left * step + self._evaluations_left * self.evaluation_seconds()
        for later in self.phases[self._phase + 1 :]:
            seconds += self._closing(self._phase) + later.steps * step
            seconds += later.evaluations * self.evaluation_seconds(later.evaluated_images)
        return seconds + self._closing(len(self.phases) - 1)

    def _closing(self, phase: int) -> float:
        """Return the seconds from a phase's last evaluation to its end."""
        return self.evaluation_seconds(self.phases[phase].final_images, phase=phase) + self.report

    def over(self) -> bool:
        """Return whether training has to end now, so that a last evaluation and the report end within the budget."""
        if self.budget is None:
            return False
        last = self.evaluation_seconds() if self.phases else 0.0
        closing = self._closing(self._phase) if self.phases else 0.0
        # at least a step is trained, however short the budget: without one there would be nothing to evaluate
        return self._count > 0 and self.gone + last + closing + (self.step_seconds or 0.0) / 2 >= (
            self.budget * self.share
        )

    def fitting_steps(self) -> int | None:
        """Return how many more steps of the phase fit into the budget; None without one, or before an estimate."""
        step = self.step_seconds
        if self.budget is None or step is None or self._count < _MEASURED:
            return None
        seconds = self.budget * self.share - self.gone - self._closing(self._phase)
        evaluation = self.evaluation_seconds()
        on_the_way = max(0, self._evaluations_left - 1) / max(1, self._steps_left)  # for each step
        return max(0, int((seconds - evaluation) / (step + on_the_way * evaluation)))

    def used_up(self) -> bool:
        """Return whether there is no time left for a step."""
        return self.budget is not None and self.gone + self.report >= self.budget * self.share

    def words(self) -> str:
        """Return the time of the whole run: "12 min gone, about 41 min left (of 53 min)"."""
        gone, left = self.gone, self.left()
        if left is not None and self.budget is not None:
            left = max(0.0, min(left, self.budget - gone))
        return time_words(gone, left)

    def forecast(self) -> str | None:
        """Return the line that says the time of the whole run up front; None before there is an estimate."""
        left, step = self.left(), self.step_seconds
        if left is None or step is None:
            return None
        total = self.gone + left
        if self.budget is not None:
            total = min(total, max(self.budget, self.gone))
        parts = [f"{counted(self._steps_left, 'step')} of {seconds_text(step)}"]
        if self._evaluations_left:
            about = "" if self._evaluation is not None else "about "
            parts.append(
                f"{counted(self._evaluations_left, 'evaluation')} of {about}{duration(self.evaluation_seconds())}"
            )
        if len(self.phases) > self._phase + 1:
            parts.append(f"then {sum(work.steps for work in self.phases[self._phase + 1 :])} steps for the masks")
        return f"time: about {duration(total)} in all, {duration(self.gone)} gone: still to do {', '.join(parts)}"
