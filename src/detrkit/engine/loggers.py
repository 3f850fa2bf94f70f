"""Loggers of other packages: what a run logs goes to them, too (`run.loggers`)."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from detrkit.config import TrainConfig
from detrkit.engine.callbacks import Callback, RunView
from detrkit.engine.fabric import Logger
from detrkit.engine.logs import TensorBoardLog
from detrkit.utils.console import console
from detrkit.utils.registry import Registry
from detrkit.utils.signals import Stopped
from detrkit.utils.visible import first_line

if TYPE_CHECKING:
    from detrkit.engine.result import RunResult

LoggerFactory = Callable[[TrainConfig, Path], Logger]
LOGGERS: Registry[LoggerFactory] = Registry("logger")


def register_logger(name: str, *, replace: bool = False) -> Callable[[LoggerFactory], LoggerFactory]:
    """Register a logger, as a decorator: `detrkit train --loggers NAME` then uses it.

    The decorated class or function takes the run's `TrainConfig` and its folder (a `pathlib.Path`) and returns a
    Lightning Fabric logger (https://lightning.ai/docs/fabric/stable/guide/loggers.html), such as Lightning's for
    Weights & Biases, MLflow or Comet. It is called in the main process alone.

    Args:
        name: for `run.loggers`.
        replace: replace a logger of that name.

    Raises:
        ValueError: the name is taken.
    """

    def register(factory: LoggerFactory) -> LoggerFactory:
        LOGGERS.add(name, factory, replace=replace)
        return factory

    return register


class RunLogs(Callback):
    """Logs of a run beside its CSV files: TensorBoard, and the loggers that the config names.

    A logger that fails never ends a run: its error is printed once, and the run goes on without it.

    """

    def __init__(self) -> None:
        self.board: TensorBoardLog | None = None
        self.loggers: dict[str, Logger] = {}

    def on_run_start(self, run: RunView) -> None:
        """Start the loggers, and log the settings of the run."""
        config, folder = run.config, run.folder
        # TensorBoard forgets what a resumed run had logged after its state
        self.board = TensorBoardLog(folder / "tensorboard", on=config.run.tensorboard, purge_step=run.step + 1)
        for name in config.run.loggers:
            try:
                self.loggers[name] = LOGGERS.find(name)(config, folder)
                self.loggers[name].log_hyperparams(_flat(config))
            except Exception as error:  # whatever other people's code raises
                self._give_up(name, error)

    def on_step_end(self, run: RunView, values: Mapping[str, float]) -> None:
        """Log loss terms, learning rate and gradient norm of every `log_every`th step, as "step/loss"."""
        if run.step % run.config.run.log_every and run.step != 1:
            return
        row = {f"step/{name}": value for name, value in values.items() if not name[-1].isdigit()}
        self._log(row, run.step, board_step=run.step)

    def on_epoch_end(self, run: RunView, row: Mapping[str, Any]) -> None:
        """Log a row of epochs.csv: TensorBoard by the number of the epoch, the others by that of its last step."""
        self._log(row, run.step, board_step=run.epoch)

    def add_image(self, name: str, content: bytes, step: int) -> None:
        """Log a picture: to TensorBoard, and to the loggers that have Lightning's `log_image(key, images, step)`.

        Args:
            name: of the picture.
            content: of a PNG file.
            step: of the run.
        """
        if self.board is not None:
            self.board.add_image(name, content, step)
        for logger_name, logger in list(self.loggers.items()):
            log_image = getattr(logger, "log_image", None)
            if log_image is None:
                continue
            try:
                log_image(name, [Image.open(io.BytesIO(content)).convert("RGB")], step)
            except Exception as error:  # whatever other people's code raises
                self._give_up(logger_name, error)

    def on_run_end(self, run: RunView, result: RunResult) -> None:
        """End the loggers with the status "success"."""
        self._each(lambda logger: logger.finalize("success"))

    def on_error(self, run: RunView, error: BaseException) -> None:
        """End the loggers with the status "interrupted" for a stop signal, else "failed"."""
        status = "interrupted" if isinstance(error, Stopped) else "failed"
        self._each(lambda logger: logger.finalize(status))

    def _log(self, row: Mapping[str, Any], step: int, *, board_step: int) -> None:
        if self.board is not None:
            self.board.add(dict(row), board_step)
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        self._each(lambda logger: logger.log_metrics(numbers, step))

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                call(logger)
            except Exception as error:  # whatever other people's code raises
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        self.loggers.pop(name, None)
        reason = f"{type(error).__name__}: {first_line(error)}"
        console.print(f"warning: logger {name} failed ({reason}); the run goes on without it", markup=False)


def check_loggers(names: Sequence[str]) -> None:
    """Check that there are loggers of these names.

    Raises:
        SettingError: an unknown name, or a package that is not installed; the message lists the names, or the command.
    """
    from detrkit.engine.named_loggers import check_installed  # it registers detrkit's own here

    for name in names:
        LOGGERS.find(name)
        check_installed(name)


def _flat(config: TrainConfig) -> dict[str, Any]:
    """Return the settings by dotted names, as loggers compare runs: {"optim.lr": 0.0001, ...}."""
    return {
        f"{section}.{name}": value
        for section, values in dataclasses.asdict(config).items()
        for name, value in values.items()
    }
