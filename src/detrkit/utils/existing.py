"""Paths that must exist: one message for a missing one, with the name that was probably meant."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import expanded_path
from detrkit.utils.similar import nearest_names

_MOST_SIBLINGS = 10_000  # entries of a folder that are compared


def missing(path: str | Path, what: str = "file or folder") -> DetrkitError:
    """Return the error for a path where nothing is.

    Args:
        path: as it was given.
        what: it should be.
    """
    return DetrkitError(f"{path}: no such {what}{_meant(Path(path))}")


def check_exists(path: str | Path, what: str = "file or folder") -> Path:
    """Check that something is at a path; return it with ~ expanded.

    Args:
        path: as it was given.
        what: it should be, for the message.

    Raises:
        DetrkitError: nothing is there, or its folder may not be entered.
    """
    full = expanded_path(path)
    try:
        full.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing(path, what) from error
    except OSError as error:
        raise DetrkitError(f"{path}: cannot be read ({error.strerror})") from error
    return full


def _meant(path: Path) -> str:
    """Return the hint that names the nearest name beside a missing path; "" where there is none."""
    try:
        path = expanded_path(path)
        parent = path.parent
        while not parent.is_dir() and parent != parent.parent:
            path, parent = parent, parent.parent
        with os.scandir(parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_SIBLINGS) if not entry.name.startswith(".")]
    except (OSError, DetrkitError):
        return ""
    near = nearest_names([path.name], sorted(names)).get(path.name)
    return "" if near is None else f" (there is {parent / near})"
