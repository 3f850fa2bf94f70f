"""The quickstart: generated data, a small detector trained from random weights, a report with example images."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

from detrkit.config import load_config
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine.budget import TimeLimit
from detrkit.engine.pace import REPORT_SECONDS
from detrkit.engine.result import RunResult
from detrkit.engine.run_files import foreign_to_run, saved_in
from detrkit.engine.training import train
from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError, Interrupted
from detrkit.utils.folders import check_replaceable, remove_folder
from detrkit.utils.lock import FolderLock
from detrkit.utils.names import full_path

IMAGES = {"train": 2000, "val": 200}
# All of one size: a step without padding takes 11 % less time than with images of 96 to 128 pixels, since group norm of
# padded maps has no kernel of its own. Of 96 pixels and not 112: more epochs fit into the time, which gains more.
SIDES = (96, 96)
REPORT_SHARE = 0.15  # of the time, at most
MINUTES = 5.0  # for everything, if neither minutes nor epochs are given


def quickstart(
    out: str | Path,
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    seed: int = 0,
    force: bool = False,
    gone: float = 0.0,
) -> RunResult:
    """Generate shapes, train the `quickstart` recipe on them and write the report.

    The time is kept by training less: steps are measured before the first one. What is trained depends on the machine
    in the number of its steps alone, and config.yaml holds that.

    Args:
        out: folder for `shapes/` and `run/`.
        minutes: for everything: as many epochs as fit. By default the recipe's epochs, or fewer where these take more
            than five minutes.
        epochs: passes over the training images, however long they take.
        seed: of images, weights and order.
        force: replace an earlier quickstart there, unless the folder holds other files too.
        gone: seconds of the time that are gone already, for imports.

    Raises:
        Interrupted: asked to stop.
        DetrkitError: both minutes and epochs; the folder holds an earlier quickstart or, with `force`, other files; or
            another process writes it.
    """
    if minutes is not None and epochs is not None:
        raise DetrkitError("--minutes and --epochs: the minutes set the epochs, so give one of them")
    began, out = time.monotonic() - gone, Path(out)
    data, run = out / "shapes", out / "run"
    with FolderLock(out):
        if not force and any(os.path.lexists(place) for place in (data, run)):
            raise DetrkitError(
                f"{out} holds an earlier quickstart: look at {run}, go on with "
                f"`detrkit train --resume {shlex.quote(str(run))}`, use --force to replace it, or --out"
            )
        check_replaceable(full_path(data), force=True)
        _remove_run(run)
        console.print(f"generating {IMAGES['train']} images to train on and {IMAGES['val']} to test on in {data}")
        generated = time.monotonic()
        write_shapes(data, images=IMAGES, seed=seed, sides=SIDES, force=force)
        config = load_config("quickstart", data=str(data)).changed(run={"out": str(run), "seed": seed})
        # work of one core, like the report: where one took three times as long as here, so did the other
        report = 1.5 * (time.monotonic() - generated)
        limit = None
        if epochs is not None:
            config = config.changed(optim={"epochs": epochs})
        else:
            seconds, gone = 60 * (minutes or MINUTES), time.monotonic() - began
            report = max(REPORT_SECONDS, min(report, REPORT_SHARE * seconds))
            limit = TimeLimit(seconds, gone, whole=minutes is not None, report=report)
            config = config.changed(run={"minutes": seconds / 60})
        try:
            return train(config, limit=limit)
        except Interrupted as stop:
            if saved_in(run) is not None:
                raise
            command = "the same command with --force"
            raise Interrupted(stop.number, str(run), command, saved=False, agreed=stop.agreed) from stop


def _remove_run(run: Path) -> None:
    """Remove an earlier run, if there is one.

    Raises:
        DetrkitError: the run is still going on, or the folder holds something else; nothing was removed.
    """
    if not os.path.lexists(run):
        return
    if run.is_symlink() or not run.is_dir():
        raise DetrkitError(f"{run} is not a folder of an earlier quickstart: choose another --out")
    with FolderLock(run):
        foreign = foreign_to_run(run)
        if foreign is not None:
            raise DetrkitError(
                f"{run} holds {foreign}, which is not of a run of detrkit, so it is not replaced: choose another "
                "--out, or remove it yourself"
            )
        remove_folder(run)
