"""The files of a run's folder: their names, which of them may be removed, and the last good state."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detrkit.utils.atomic import is_temporary
from detrkit.utils.errors import DetrkitError, WriteError
from detrkit.utils.lock import NAME as LOCK
from detrkit.utils.parent import is_running

DETECTOR = "detector"  # the first phase's folder in that of a run of two
MARK = "A training run of detrkit."  # in the README.md of each run
_NAMES = (
    *(
        "README.md",
        "config.yaml",
        "classes.txt",
        "environment.txt",
        "choice.txt",
        "init.txt",
        "steps.csv",
        "epochs.csv",
        LOCK,
    ),
    *("last.pt", "best.safetensors", "report.md", "metrics.json", "results.json", "panoptic.json"),
    *("examples.png", "training.png", "scores.png", "precision_recall.png", "confusion.png"),
    *("labels.png", "first_batch.png"),
)
_BELOW = {"tensorboard": re.compile(r"events\.out\.tfevents\..*"), "panoptic": re.compile(r".*\.png")}
_ANY = "|".join(map(re.escape, _NAMES))
# temporary files of earlier versions, with the number of the process that wrote them, and without
_OLD_WITH_PROCESS = re.compile(rf"\.({_ANY})\.(?P<process>\d+)\.(part|tmp)|\.(?P<first>\d+)-({_ANY})")
_OLD_WITHOUT = re.compile(rf"\.({_ANY})\.[a-z0-9_]{{8}}|\.(steps|epochs)\.csv\.tmp")
_OLD_WEIGHTS = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # safetensors'
_HEAD_BYTES = 65536


def saved_in(folder: Path) -> str | None:
    """Return the subfolder with a run's last state: ".", or "detector" of a run in two phases; None without one."""
    return next((place for place in (".", DETECTOR) if (folder / place / "last.pt").exists()), None)


def check_free(folder: Path) -> None:
    """Check that a new run may be written into a folder.

    Raises:
        DetrkitError: it is a file, or it holds a run or other files that a run would overwrite.
    """
    if folder.exists() and not folder.is_dir():
        raise DetrkitError(f"{folder} is a file: choose another --out")
    quoted = shlex.quote(str(folder))
    if saved_in(folder) is not None:
        raise DetrkitError(
            f"{folder} holds a run already: continue it with `detrkit train --resume {quoted}`, or choose another --out"
        )
    if (folder / "best.safetensors").exists():
        raise DetrkitError(f"{folder} holds a run already, without its last.pt: choose another --out")
    if (name := in_the_way(folder)) is not None:
        raise DetrkitError(f"{folder / name} is of no run and would be written over: choose another --out")


def in_the_way(folder: Path) -> str | None:
    """Return the name of a file that belongs to no run and that a run would overwrite; None without one.

    Raises:
        WriteError: the folder cannot be read.
    """
    try:
        if any(_is_marked(folder / place / "README.md") for place in (".", DETECTOR)):
            return None
        return next((name for name in _NAMES if name != LOCK and os.path.lexists(folder / name)), None)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be looked into ({error.strerror})") from error


def _is_marked(readme: Path) -> bool:
    """Return whether this is the README.md of a run.

    Raises:
        OSError: it cannot be read.
    """
    return readme.is_file() and MARK in readme.read_text("utf-8", "replace")


@contextmanager
def naming_last_state(folder: Path) -> Iterator[None]:
    """Add the path of the run's last good state to the error of a failed write.

    Raises:
        WriteError: the original one, with the last good state, if there is one.
    """
    try:
        yield
    except WriteError as error:
        place = saved_in(folder)
        if place is None or not (folder / place / "last.pt").is_file():
            raise
        raise WriteError(f"{error}; the last good state is {folder / place / 'last.pt'}") from error


def foreign_to_run(folder: Path) -> str | None:
    """Return the path of something in the folder that does not belong to a run; None without one.

    Raises:
        WriteError: the folder cannot be read.
    """

    def holds_files(place: Path) -> bool:
        """Return whether this is the run's folder, that of its first phase or that of an evaluation."""
        return place == folder or (
            place.parent == folder and (place.name == DETECTOR or place.name.startswith("eval-"))
        )

    names, marked = set(), False
    try:
        for place, folders, files in os.walk(folder, onerror=_raise):
            here = Path(place)
            folders[:] = [name for name in folders if not is_temporary(name)]
            pattern = _BELOW.get(here.name) if holds_files(here.parent) else None
            for name in [*folders, *files]:
                path = here / name
                if name in folders:
                    of_run = holds_files(path) or (holds_files(here) and name in _BELOW)
                    of_run = of_run and not path.is_symlink()
                elif holds_files(here):
                    of_run = name in _NAMES
                    marked = marked or (name == "README.md" and _is_marked(path))
                else:
                    of_run = pattern is not None and pattern.fullmatch(name) is not None
                if of_run:
                    names.add(name)
                elif not is_temporary(name) and not _is_old_temporary(path):
                    return str(path.relative_to(folder))
    except OSError as error:
        raise WriteError(f"{folder}: cannot be looked into ({error.strerror})") from error
    return None if marked or names <= {LOCK} else min(names - {LOCK})


def _raise(error: OSError) -> None:
    raise error


def sweep_old(folder: Path) -> None:
    """Remove temporary files that processes of earlier versions left in a run's folder when they ended."""
    with suppress(OSError):
        for file in list(folder.iterdir()):
            if _is_old_temporary(file):
                file.unlink(missing_ok=True)


def _is_old_temporary(file: Path) -> bool:
    """Return whether this is a temporary file of an earlier version that no process writes any more."""
    if file.is_symlink() or not file.is_file():
        return False
    numbered = _OLD_WITH_PROCESS.fullmatch(file.name)
    if numbered is not None:
        return not is_running(int(numbered["process"] or numbered["first"]))
    if _OLD_WEIGHTS.fullmatch(file.name):
        from detrkit.weights.files import METADATA_KEY  # imports torch, which the check of a folder does without

        with suppress(OSError), file.open("rb") as stream:
            return METADATA_KEY.encode() in stream.read(_HEAD_BYTES)
    return _OLD_WITHOUT.fullmatch(file.name) is not None
