"""Weights & Biases and MLflow, by Lightning's loggers: `detrkit train my_data --loggers wandb mlflow`."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit.config import TrainConfig
from detrkit.engine.fabric import Logger
from detrkit.engine.loggers import LOGGERS
from detrkit.utils.atomic import make_folder, write_atomic
from detrkit.utils.errors import SettingError

PROJECT = "detrkit"  # at Weights & Biases, and experiment of MLflow, unless their variables name another
_RUN_ID = "run-id.txt"  # of the logger, in its folder: a resumed run goes on in the same one
# name -> modules that it needs
_MODULES: Mapping[str, tuple[str, ...]] = {
    "wandb": ("wandb", "pytorch_lightning"),
    "mlflow": ("mlflow", "pytorch_lightning"),
}


def check_installed(name: str) -> None:
    """Check that the packages of a logger are installed; loggers of other packages need none.

    Raises:
        SettingError: one is missing; names the command that installs it.
    """
    entry = LOGGERS[name]
    if entry not in (wandb_logger, mlflow_logger):
        return
    missing = [module for module in _MODULES[name] if importlib.util.find_spec(module) is None]
    if missing:
        package = missing[0].replace("_", "-")
        raise SettingError(
            f"run.loggers: {name} needs {package}, which is not installed: pip install 'detrkit[{name}]'"
        )


def wandb_logger(config: TrainConfig, folder: Path) -> Logger:
    """Make the logger for Weights & Biases; its files are in wandb/ of the run's folder.

    The variables of W&B count: WANDB_API_KEY, WANDB_MODE=offline, WANDB_PROJECT (detrkit), WANDB_NAME (the folder's). A
    run of W&B that the program has begun itself, as in a sweep, is used and left open.

    Args:
        config: of the run.
        folder: of the run.
    """
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    begun = wandb.run is not None

    class Wandb(WandbLogger):
        """Lightning's logger, which ends its run: the next training of this process has another one."""

        def finalize(self, status: str) -> None:
            super().finalize(status)
            if not begun:
                self.experiment.finish(exit_code=0 if status == "success" else 1)

    if begun:
        return Wandb(experiment=wandb.run)
    make_folder(folder / "wandb")  # or W&B would take the system's temporary folder
    saved = _saved_id(folder, "wandb")
    experiment = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=os.environ.get("WANDB_NAME", folder.name),
        dir=str(folder),
        id=saved,
        resume=None if saved is None else "allow",
    )
    experiment.define_metric("trainer/global_step")  # the horizontal axis: the step of the optimizer
    experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    write_atomic(folder / "wandb" / _RUN_ID, f"{experiment.id}\n")
    return Wandb(experiment=experiment)


def mlflow_logger(config: TrainConfig, folder: Path) -> Logger:
    """Make the logger for MLflow: of the store that MLFLOW_TRACKING_URI names, else of mlflow/ in the run's folder.

    The experiment is MLFLOW_EXPERIMENT_NAME (detrkit), the run has the folder's name.

    Args:
        config: of the run.
        folder: of the run.
    """
    from pytorch_lightning.loggers import MLFlowLogger

    class MLflow(MLFlowLogger):
        """Lightning's logger, with images, with MLflow's word for an interrupted run, and with resumed runs."""

        def log_hyperparams(self, params: Any) -> None:
            if saved is None:  # MLflow refuses other values than those at the start, such as more epochs
                super().log_hyperparams(params)

        def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
            for number, image in enumerate(images):
                file = f"{key}/step-{step or 0:08d}{f'-{number}' if number else ''}.png"
                self.experiment.log_image(self.run_id, image, artifact_file=file)

        def finalize(self, status: str = "success") -> None:
            super().finalize("KILLED" if status == "interrupted" else status)

    saved = _saved_id(folder, "mlflow")
    place = make_folder(folder / "mlflow").resolve()
    uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
    if not uri:  # a database: MLflow 3 refuses the folders of files that it wrote before
        uri, artifacts = f"sqlite:///{place / 'mlflow.db'}", (place / "artifacts").as_uri()
    with _quiet("mlflow", "alembic", "pytorch_lightning.loggers.mlflow"):
        logger = MLflow(
            experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            run_name=folder.name,
            tracking_uri=uri,
            artifact_location=artifacts,
            run_id=saved,
        )
        logger.experiment.update_run(logger.run_id, status="RUNNING")  # a resumed one had ended
        write_atomic(place / _RUN_ID, f"{logger.run_id}\n")
    return logger


def _saved_id(folder: Path, name: str) -> str | None:
    """Return the logger's id of a run that is resumed; None for one that starts, whatever its folder holds."""
    if not (folder / "last.pt").exists():
        return None
    with contextlib.suppress(OSError):
        return (folder / name / _RUN_ID).read_text("utf-8").strip() or None
    return None


@contextlib.contextmanager
def _quiet(*names: str) -> Any:
    """Silence the notes of a logger's packages, such as the lines on each table of a new database; warnings stay."""
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


LOGGERS.add("wandb", wandb_logger)
LOGGERS.add("mlflow", mlflow_logger)
