"""Protection of single files under names that users choose: only a file of the same kind is replaced."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detrkit.utils.errors import DetrkitError

IMAGE_MARK = "Written by detrkit"  # the mark in PNGs and JPEGs, before the pixels
_HEAD_BYTES = 4096


def check_marked(path: Path) -> None:
    """Check that an existing file has the mark of `image_bytes(..., marked=True)` and may be replaced.

    Raises:
        DetrkitError: names the file and the fix.
    """
    _check(path, lambda: IMAGE_MARK.encode() in _head(path))


def check_json(path: Path, keys: Iterable[str]) -> None:
    """Check that an existing file is a JSON object with these keys and may be replaced.

    Raises:
        DetrkitError: names the file and the fix.
    """
    _check(path, lambda: has_keys(path, keys))


def has_keys(path: Path, keys: Iterable[str]) -> bool:
    """Return whether a file is a JSON object with these keys.

    Raises:
        OSError: it cannot be read.
    """
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and set(keys) <= set(content)


def _check(path: Path, is_of_this_kind: Callable[[], bool]) -> None:
    try:
        if not path.exists() or (path.is_file() and is_of_this_kind()):
            return
    except OSError:
        pass  # the kind of an unreadable file is unknown
    raise DetrkitError(f"{path} is there and was not written by this command: choose another name, or remove it")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
