"""Search for files below a folder, through symbolic links; links in a circle do not make it endless."""

from __future__ import annotations

import heapq
import os
from pathlib import Path
from typing import NamedTuple


class Search(NamedTuple):
    """Result of a search.

    Attributes:
        files: the paths, sorted by their parts.
        faults: links that lead nowhere and folders that cannot be read: path and reason.
    """

    files: list[Path]
    faults: list[tuple[Path, str]]


def find_files(folder: Path, suffixes: frozenset[str]) -> Search:
    """Find every file below a folder whose suffix, in lower case, is one of `suffixes`.

    Links are followed after all that is not a link; a folder is read once, whatever the number of links to it, and
    links to a folder that contains `folder` are skipped. Hidden files and folders are left out.
    """
    files: list[str] = []
    faults: list[tuple[Path, str]] = []
    above = {_identity(str(parent)) for parent in folder.resolve().parents}
    seen: set[tuple[int, int] | None] = {None}
    folders, links = [str(folder)], list[str]()
    while folders or links:
        place = folders.pop() if folders else heapq.heappop(links)
        identity = _identity(place)
        if identity in seen or identity in above:
            continue
        seen.add(identity)
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_symlink() and os.path.isdir(entry.path):
                        heapq.heappush(links, entry.path)
                    elif os.path.splitext(name)[1].lower() not in suffixes:
                        continue
                    elif entry.is_file():
                        files.append(entry.path)
                    elif entry.is_symlink():
                        faults.append((Path(entry.path), "a symbolic link that leads nowhere: left out"))
        except OSError as error:
            faults.append((Path(place), f"cannot be read ({error.strerror})"))
    return Search([Path(file) for file in sorted(files, key=lambda file: file.split(os.sep))], sorted(faults))


def _identity(folder: str) -> tuple[int, int] | None:
    """Return device and inode number of a folder; None if it is gone."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino
