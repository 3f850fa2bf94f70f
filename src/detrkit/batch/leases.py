"""Leases on a shared folder: at most one worker computes a shard, and a dead worker's shard is taken over.

A lease is a file that is created exclusively, which NFS does atomically too. Its owner renews the time of change while
it works; a lease that was not renewed for some time is stale. Times are compared with that of a file which the reader
has just touched in the same folder, so that the clocks of the machines do not matter. On one machine the end of a
process is seen at once: the owner holds a lock on the file, which the system releases.

Leases only save work: two workers that compute one shard all the same publish the same file, each in one step.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from detrkit.utils.atomic import make_folder, write_errors

try:
    import fcntl
except ImportError:  # Windows: a dead process is seen by time alone
    fcntl = None  # type: ignore[assignment]

_ATTEMPTS = 3
_BEATS = 6  # renewals in the time after which a lease is stale
_MAX_BYTES = 4096  # of a lease


def this_machine() -> str:
    """Return a name for this machine since it was started: its host name and, on Linux, the id of the boot."""
    boot = ""
    with suppress(OSError, ValueError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{socket.gethostname()}/{boot}"


class _Owner(NamedTuple):
    """What a lease says.

    Attributes:
        token: of the lease.
        machine: of its owner.
        locked: whether the owner holds a lock on the file.
        age: seconds since it was renewed.
    """

    token: str
    machine: str
    locked: bool
    age: float


class Leases:
    """The leases of a folder, for one worker.

    Args:
        folder: of the leases; it is made.
        stale_seconds: after which a lease that was not renewed is taken over.
        machine: name of this machine, by default `this_machine()`.

    Attributes:
        taken_over: leases of others that were stale.
    """

    def __init__(self, folder: Path, *, stale_seconds: float = 60.0, machine: str | None = None) -> None:
        self._folder = folder
        self._stale = stale_seconds
        self._machine = this_machine() if machine is None else machine
        self._clock = folder / f".clock-{secrets.token_hex(8)}"
        self.taken_over = 0

    def acquire(self, name: str) -> Lease | None:
        """Return the lease of this name, to be entered as a context, or None if another worker has it.

        Raises:
            WriteError: the folder cannot be written.
        """
        path = self._folder / name
        with write_errors(path):
            make_folder(self._folder)
            for _ in range(_ATTEMPTS):
                lease = self._create(path)
                if lease is not None:
                    return lease
                owner = self._owner(path)
                if owner is not None and not self._is_dead(path, owner):
                    return None
                if owner is not None:
                    self._take_away(path, owner)
        return None

    def in_use(self) -> bool:
        """Return whether a worker that gives signs of life has a lease.

        Raises:
            OSError: the folder cannot be read.
        """
        try:
            paths = [path for path in self._folder.iterdir() if not path.name.startswith(".")]
            owners = [(path, self._owner(path)) for path in paths]
            return any(owner is not None and not self._is_dead(path, owner) for path, owner in owners)
        finally:
            self.close()

    def close(self) -> None:
        """Remove what this worker has in the folder beside its leases."""
        with suppress(OSError):
            self._clock.unlink()

    def _create(self, path: Path) -> Lease | None:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return None
        token = secrets.token_hex(8)
        try:
            locked = _lock(handle)  # before the content, by which others know that there is a lock
            text = json.dumps({"token": token, "machine": self._machine, "pid": os.getpid(), "locked": locked})
            os.pwrite(handle, text.encode(), 0)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            os.close(handle)
            raise
        return Lease(path, handle, token, self._stale / _BEATS)

    def _owner(self, path: Path) -> _Owner | None:
        """Read a lease; None if it has just been released."""
        try:
            handle = os.open(path, os.O_RDONLY)  # NFS asks the server for the attributes of a file that is opened
        except FileNotFoundError:
            return None
        try:
            content = _content(handle)
            changed = os.fstat(handle).st_mtime
        finally:
            os.close(handle)
        return _Owner(
            str(content.get("token", "")),
            str(content.get("machine", "")),
            content.get("locked") is True,
            self._now() - changed,
        )

    def _now(self) -> float:
        """Return the time by the clock that the folder's files have."""
        handle = os.open(self._clock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            os.utime(self._clock)
            return os.fstat(handle).st_mtime
        finally:
            os.close(handle)

    def _is_dead(self, path: Path, owner: _Owner) -> bool:
        if owner.age > self._stale:
            return True
        if not owner.locked or owner.machine != self._machine:
            return False
        try:
            handle = os.open(path, os.O_RDWR)
        except OSError:
            return False
        try:
            # the same lease still, and its lock is free: its process has ended
            return _lock(handle) and _content(handle).get("token") == owner.token
        finally:
            os.close(handle)

    def _take_away(self, path: Path, owner: _Owner) -> None:
        """Remove a dead lease; only one of several workers removes it."""
        aside = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return
        handle = os.open(aside, os.O_RDONLY)
        try:
            same = str(_content(handle).get("token", "")) == owner.token
        finally:
            os.close(handle)
        if same:
            self.taken_over += 1
        else:  # another worker took it over meanwhile: this is its lease
            with suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)


class Lease:
    """A lease that this worker has, renewed by a thread as long as the context lasts, and then released.

    Args:
        path: of the file.
        handle: of the file, with its lock.
        token: in the file.
        interval: seconds between two renewals.
    """

    def __init__(self, path: Path, handle: int, token: str, interval: float) -> None:
        self._path, self._handle, self._token, self._interval = path, handle, token, interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="detrkit lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        try:
            with suppress(OSError):
                if os.path.samestat(os.stat(self._path), os.fstat(self._handle)):
                    self._path.unlink()
        finally:
            os.close(self._handle)

    def _renew(self) -> None:
        while not self._ended.wait(self._interval):
            with suppress(OSError):  # of a full disk or a server that is away: the next time
                os.utime(self._handle if os.utime in os.supports_fd else self._path)


def _lock(handle: int) -> bool:
    """Lock a file if it is not locked; return whether it is this handle's now."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another has it, or a file system without locks
        return False
    return True


def _content(handle: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(handle, _MAX_BYTES, 0))
    except (ValueError, RecursionError):  # nothing yet
        return {}
    return content if isinstance(content, dict) else {}
