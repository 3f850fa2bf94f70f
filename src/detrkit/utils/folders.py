"""Folders that detrkit writes, each with a manifest: only files in the manifest may be replaced."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from detrkit.utils.atomic import locked_temporary, make_folder, sweep, write_atomic, write_errors
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import full_path, real_path

MANIFEST = "detrkit-files.json"
_COMING = "coming"  # marks a file whose name was free, or detrkit's, when a command that writes it began


@contextmanager
def new_directory(path: str | Path, *, force: bool = False, manifest: bool = True) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path`, with a manifest, when the block ends without an error.

    Args:
        path: the folder to make.
        force: replace a folder that detrkit wrote, if it is unchanged since.
        manifest: write one. A folder without one is never replaced.

    Raises:
        DetrkitError: `path` exists and may not be replaced, or cannot be written; nothing has changed then.
    """
    path = full_path(path)
    if path.is_dir():
        path = real_path(path)  # for a link to a folder, the folder is replaced and not the link
    check_replaceable(path, force=force)
    make_folder(path.parent)
    sweep(path.parent)
    with write_errors(path), locked_temporary(path, folder=True) as temporary:
        yield temporary
        if manifest:
            write_manifest(temporary)
        check_replaceable(path, force=force)  # another process may have made it meanwhile
        if path.exists():
            with locked_temporary(path, folder=True) as old:
                path.rename(old / path.name)
                try:
                    temporary.rename(path)
                except OSError:
                    (old / path.name).rename(path)
                    raise
        else:
            temporary.rename(path)


def check_replaceable(path: Path, *, force: bool) -> None:
    """Check that a path may be written: a free name, an empty folder or, with `force`, detrkit's own files.

    Raises:
        DetrkitError: names the obstacle and the fix.
    """
    try:
        if not path.exists() and not path.is_symlink():
            return
        if not path.is_dir():
            raise DetrkitError(f"{path} is a file; choose another output folder")
        if next(path.iterdir(), None) is None:
            return
    except OSError as error:
        raise DetrkitError(f"{path}: cannot be looked into ({error.strerror}); choose another output folder") from error
    if not force:
        raise DetrkitError(f"{path} exists already; choose another output folder or pass force (--force)")
    foreign = foreign_file(path)
    if foreign is not None:
        raise DetrkitError(
            f"{path} holds {foreign}, so it is not replaced; choose another folder, or remove it yourself"
        )


def write_manifest(folder: Path) -> None:
    """Note every file below a folder, with its size and time, in the folder's manifest."""
    text = json.dumps({"written by": "detrkit", "files": _listing(folder)}, indent=0, ensure_ascii=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def noted_files(folder: Path) -> dict[str, list[Any]]:
    """Read the manifest of a shared folder: size and time of each file that detrkit wrote there.

    Raises:
        DetrkitError: the file is damaged or is no manifest, and must not be overwritten.
    """
    file = folder / MANIFEST
    try:
        noted = json.loads(file.read_bytes())["files"]
        return {name: list(value) for name, value in noted.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DetrkitError(
            f"{file}: damaged, or not written by detrkit: remove it, or choose another folder"
        ) from error


def is_as_noted(folder: Path, name: str, noted: dict[str, list[Any]]) -> bool:
    """Return whether a file of a folder is as detrkit wrote it, or was being written by a killed command."""
    status = os.lstat(folder / name)
    value = noted.get(name, [])
    return _COMING in value or value == [status.st_size, status.st_mtime_ns]


def note_files(folder: Path, names: Iterable[str], *, coming: Iterable[str] = ()) -> None:
    """Add files that detrkit has written into a folder to its manifest; missing files are left out.

    Args:
        folder: the folder.
        names: of the files.
        coming: names of files about to be written, so that a killed command can be started again.

    Raises:
        DetrkitError: the manifest is damaged, or cannot be written.
    """
    noted = {name: [part for part in value if part != _COMING] for name, value in noted_files(folder).items()}
    noted = {name: value for name, value in noted.items() if value}
    for name in coming:
        noted[name] = [*noted.get(name, []), _COMING]
    for name in names:
        with suppress(FileNotFoundError):
            status = os.lstat(folder / name)
            noted[name] = [status.st_size, status.st_mtime_ns]
    if not noted:
        with write_errors(folder / MANIFEST):
            (folder / MANIFEST).unlink(missing_ok=True)
        return
    text = json.dumps({"written by": "detrkit", "files": noted}, indent=0, ensure_ascii=True)
    write_atomic(folder / MANIFEST, text + "\n")


@contextmanager
def claimed_files(folder: Path, names: Sequence[str], *, written_before: bool = False) -> Iterator[None]:
    """Make a folder if needed and claim file names in it; files of others are never overwritten.

    Args:
        folder: the folder.
        names: of the files.
        written_before: existing files are detrkit's, from a version without manifests.

    Raises:
        DetrkitError: a file of one of these names exists and is not as detrkit wrote it; or the folder cannot be
            written.
    """
    noted = noted_files(folder)
    for name in names:
        if os.path.lexists(folder / name) and not written_before and not is_as_noted(folder, name, noted):
            raise DetrkitError(
                f"{folder / name} is there and was not written by detrkit, or was changed since: choose another folder"
            )
    make_folder(folder)
    note_files(folder, (), coming=names)
    try:
        yield
    finally:
        note_files(folder, names)


def foreign_file(folder: Path) -> str | None:
    """Describe the first thing in a folder that is not as detrkit wrote it; None if there is none."""
    try:
        noted = json.loads((folder / MANIFEST).read_bytes())["files"]
        noted = {name: list(value) for name, value in noted.items()}
    except FileNotFoundError:
        return "files that detrkit did not write"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"a damaged {MANIFEST}"
    for name, value in _listing(folder).items():
        if name not in noted:
            return f"{name}, which detrkit did not write"
        if noted[name] != value:
            return f"{name}, which has been changed since detrkit wrote it"
    return None


def _listing(folder: Path) -> dict[str, list[int]]:
    """List all files and links with size in bytes and modification time in ns, by relative path; not folders."""
    listing: dict[str, list[int]] = {}
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in [*files, *links]:
            file = os.path.join(place, name)
            relative = os.path.relpath(file, folder)
            if relative != MANIFEST:
                status = os.lstat(file)
                listing[relative] = [status.st_size, status.st_mtime_ns]
    return listing


def remove_folder(folder: Path) -> None:
    """Remove a folder in which `foreign_file` found nothing.

    Raises:
        DetrkitError: it cannot be removed.
    """
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise DetrkitError(f"cannot remove {folder}: {error.strerror or error}") from error
