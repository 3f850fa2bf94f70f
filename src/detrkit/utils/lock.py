"""A lock on a folder that one process writes: a second process is refused, and the message names the first.

The lock is a POSIX record lock on `run.lock` in the folder. The system releases it when its process ends, however
that ends; processes forked from it (workers that load images) do not have it; it works over NFS. It is lost when its
process closes any handle of the file: nothing but this module opens it.
"""

from __future__ import annotations

import os
import shlex
import socket
import stat
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

from detrkit.utils.atomic import make_folder
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import real_path

try:
    import fcntl
except ImportError:  # Windows has no record locks
    fcntl = None  # type: ignore[assignment]

NAME = "run.lock"
_FIRST_LINE = "written by detrkit, "  # the owner follows; a file with another beginning is not detrkit's
_ATTEMPTS = 50  # each fails only if another process has just released the folder
_LINE_BYTES = 4096
_held: dict[Path, int] = {}  # lock file -> process; a record lock does not exclude the process that has it
_guard = threading.Lock()


class FolderLock:
    """A lock on a folder for this process, as long as the context lasts; it makes the folder if needed.

    A folder that was made for the lock and stayed empty is removed at the end. Where the system has no locks, only a
    warning is given.

    Args:
        folder: to be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: Path | None = None
        self._handle: int | None = None
        self._made: list[Path] = []

    def __enter__(self) -> FolderLock:
        """Lock the folder.

        Raises:
            DetrkitError: another process, which is named, writes the folder; or the folder cannot be written.
        """
        folder = real_path(self.folder)
        self._made = [place for place in (folder, *folder.parents) if not place.exists()]
        file = folder / NAME
        with _guard:
            if _held.get(file) == os.getpid():
                raise DetrkitError(f"{self.folder} is being written by this process already: wait for it")
            try:
                self._handle = self._locked(file)
            except BaseException:
                self._remove_made()
                raise
            if self._handle is not None:
                self._file = file
                _held[file] = os.getpid()
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is None or self._file is None:
            return
        with _guard:
            with suppress(OSError):
                if os.path.samestat(os.stat(self._file), os.fstat(self._handle)):
                    self._file.unlink()  # before the lock is released: a later lock is on another file
            os.close(self._handle)
            _held.pop(self._file, None)
            self._handle = self._file = None
        self._remove_made()

    def _remove_made(self) -> None:
        with suppress(OSError):  # stops at the first that is not empty
            for place in self._made:
                place.rmdir()

    def _locked(self, file: Path) -> int | None:
        """Open and lock the file and return its handle; None where there are no locks.

        Raises:
            DetrkitError: as `__enter__`.
        """
        if fcntl is None:
            return None
        for _ in range(_ATTEMPTS):
            make_folder(file.parent)
            try:
                handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            except FileNotFoundError:
                continue  # the other process made the folder and removed it again
            except OSError as error:
                raise DetrkitError(f"cannot write {self.folder / NAME}: {error.strerror}") from error
            try:
                line = self._line(handle)
                if line and not line.startswith(_FIRST_LINE):
                    raise DetrkitError(f"{self.folder / NAME} is not detrkit's: rename it, or choose another folder")
                if not _lock(handle, self.folder):
                    os.close(handle)
                    if not line:
                        file.unlink(missing_ok=True)
                    return None
                with suppress(OSError):
                    if os.path.samestat(os.stat(file), os.fstat(handle)):
                        _sign(handle)
                        return handle
            except BlockingIOError as error:
                who = line.removeprefix(_FIRST_LINE) or "another process"
                os.close(handle)
                raise DetrkitError(
                    f"{self.folder} is being written by {who}: wait for it, or stop it; or choose another folder"
                ) from error
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # lock on a file that its process has removed meanwhile
        raise DetrkitError(f"{self.folder} is being written by processes that come and go: choose another folder")

    def _line(self, handle: int) -> str:
        """Return the file's first line."""
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return "no file"
        return os.pread(handle, _LINE_BYTES, 0).decode("utf-8", "replace").split("\n")[0]


def _lock(handle: int, folder: Path) -> bool:
    """Lock a file; return False, with a warning, where the file system has no locks.

    Raises:
        BlockingIOError: another process has the lock.
    """
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # POSIX allows EAGAIN and EACCES
        raise BlockingIOError(error.errno, error.strerror) from error
    except OSError as error:
        warnings.warn(
            f"{folder}: no locks on this file system ({error.strerror}): nothing keeps a second run out of this folder",
            stacklevel=5,
        )
        return False
    return True


def _sign(handle: int) -> None:
    """Write the owner into the locked file; on a full disk nothing is written, and the lock still holds."""
    since = time.strftime("%Y-%m-%d %H:%M")
    text = f"{_FIRST_LINE}process {os.getpid()} on {socket.gethostname()} since {since}\n{shlex.join(sys.argv)}\n"
    line = text.encode("utf-8", "replace")
    os.ftruncate(handle, 0)
    try:
        whole = os.pwrite(handle, line, 0) == len(line)
    except OSError:
        whole = False
    if not whole:
        os.ftruncate(handle, 0)
