"""Pictures of a run while it trains: its labels and first batch at the start, curves and examples after evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrkit.engine.batch_sheet import batch_sheet
from detrkit.engine.callbacks import Callback, RunView
from detrkit.engine.examples import example_sheet
from detrkit.engine.loggers import RunLogs
from detrkit.engine.logs import CsvLog
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.utils.atomic import write_atomic
from detrkit.utils.console import console
from detrkit.utils.image_files import image_bytes
from detrkit.utils.visible import first_line

if TYPE_CHECKING:
    from detrkit.engine.result import RunResult

TIME_SHARE = 0.025  # of a run's time, for each of the two pictures after evaluations: a cheap one starves no other
FIRST_SECONDS = 1.0  # of the first curves, on a slow core
EXAMPLES = 8  # images of the sheet; each is predicted by itself


class RunPictures(Callback):
    """Pictures in a run's folder: labels.png, first_batch.png, training.png and examples.png.

    The first two are drawn when a run starts (a second or two). The curves and the sheet are drawn after an evaluation
    if all of these drawings take at most 5 percent of the run's time, half of it each: every time with epochs of some
    minutes, now and then with epochs of seconds. The report draws the last two again, those of the best checkpoint.

    A picture that cannot be drawn never ends a run: the error is printed once, and the run goes on without pictures.

    Args:
        logs: get every picture, too.
    """

    def __init__(self, logs: RunLogs) -> None:
        self._logs = logs
        self._on = True
        self._spent: dict[str, float] = {}  # seconds, on each of the pictures after evaluations
        self._seconds: dict[str, float] = {}  # of each of these, the last time

    def on_run_start(self, run: RunView) -> None:
        """Draw labels.png, unless the run is resumed."""
        self._on = run.config.run.pictures
        if run.step == 0:
            self._write(run, "labels.png", lambda: _label_plots(run))

    def on_step_start(self, run: RunView, batches: Sequence[tuple[Batch, list[Target]]]) -> None:
        """Draw first_batch.png before the first step of a run."""
        if run.step == 0:
            spec = run.spec
            classes = run.train_data.classes
            sheet = partial(batch_sheet, batches, classes=classes, mean=spec.mean, std=spec.std)
            self._write(run, "first_batch.png", lambda: image_bytes(sheet()))

    def on_epoch_end(self, run: RunView, row: Mapping[str, Any]) -> None:
        """Draw training.png, and after an evaluation examples.png, if there is time for each."""
        self._draw_in_time(run, "training.png", lambda: _curves(run.folder), FIRST_SECONDS)
        if "val/seconds" in row and run.val_data is not None and len(run.val_data) > 0:
            expected = EXAMPLES * row["val/seconds"] / len(run.val_data)
            self._draw_in_time(run, "examples.png", lambda: _examples(run), expected)

    def _draw_in_time(self, run: RunView, name: str, draw: Callable[[], bytes], expected: float) -> None:
        """Draw a picture if that takes no more than its share of the run's time.

        Args:
            run: the run.
            name: of the picture.
            draw: draws it.
            expected: seconds that it takes at the first time; later as many as at the last.
        """
        spent = self._spent.get(name, 0.0)
        if spent + self._seconds.get(name, expected) > TIME_SHARE * run.seconds:
            return
        began = time.perf_counter()
        self._write(run, name, draw)
        self._seconds[name] = time.perf_counter() - began
        self._spent[name] = spent + self._seconds[name]

    def on_run_end(self, run: RunView, result: RunResult) -> None:
        """Draw training.png of a run without a report; log the pictures of the report."""
        if result.report is None:
            self._write(run, "training.png", lambda: _curves(run.folder))
        else:
            for name in ("training.png", "examples.png"):
                self._write(run, name, (run.folder / name).read_bytes, log_only=True)

    def _write(self, run: RunView, name: str, draw: Callable[[], bytes], *, log_only: bool = False) -> None:
        """Draw a picture, write it into the run's folder and log it; print an error once."""
        if not self._on:
            return
        try:
            content = draw()
            if not log_only:
                write_atomic(run.folder / name, content)
        except Exception as error:  # whatever a font, an image or the disk is the reason for
            self._on = False
            reason = f"{type(error).__name__}: {first_line(error)}"
            console.print(f"warning: {name} could not be drawn ({reason}); the run goes on without pictures")
            return
        self._logs.add_image(Path(name).stem, content, run.step)


def _label_plots(run: RunView) -> bytes:
    from detrkit.visualize.curves import png_bytes  # imported late: matplotlib takes 0.8 s
    from detrkit.visualize.labels import label_plots

    return png_bytes(label_plots(run.train_data))


def _curves(folder: Path) -> bytes:
    from detrkit.visualize.curves import png_bytes, training_curves

    return png_bytes(training_curves(CsvLog(folder / "epochs.csv", key="epoch").rows()))


def _examples(run: RunView) -> bytes:
    assert run.val_data is not None
    return image_bytes(example_sheet(run.model, run.spec, run.val_data, count=EXAMPLES).convert("RGB"))
