"""The quickstart: generated data, a small detector trained from random weights, a report with example images."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from detrkit.config import load_config
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine.result import RunResult
from detrkit.engine.run_files import foreign_to_run, saved_in
from detrkit.engine.training import train
from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError, Interrupted
from detrkit.utils.folders import check_replaceable, remove_folder
from detrkit.utils.lock import FolderLock
from detrkit.utils.names import full_path

IMAGES = {"train": 2000, "val": 200}


def quickstart(out: str | Path, *, epochs: int | None = None, seed: int = 0, force: bool = False) -> RunResult:
    """Generate shapes, train the `quickstart` recipe on them and write the report.

    Args:
        out: folder for `shapes/` and `run/`.
        epochs: passes over the training images; by default the recipe's.
        seed: of images, weights and order.
        force: replace an earlier quickstart there, unless the folder holds other files too.

    Raises:
        Interrupted: asked to stop.
        DetrkitError: the folder holds an earlier quickstart or, with `force`, other files; or another process writes
            it.
    """
    out = Path(out)
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
        write_shapes(data, images=IMAGES, seed=seed, force=force)
        config = load_config("quickstart", data=str(data)).changed(run={"out": str(run), "seed": seed})
        if epochs is not None:
            config = config.changed(optim={"epochs": epochs})
        try:
            return train(config)
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
