"""Downloads: resumed after a cut, verified, and in the cache only when complete."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from detrkit.utils.console import Terminal
from detrkit.utils.documents import require_regular
from detrkit.utils.errors import DetrkitError, WriteError

CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # consecutive connections that may bring nothing new


class DownloadError(DetrkitError):
    """Error for a file that cannot be downloaded.

    Attributes:
        reason: why, in a few words.
    """

    def __init__(self, message: str, reason: object) -> None:
        super().__init__(message)
        self.reason = str(reason)


def home() -> Path:
    """Return the download folder: $DETRKIT_HOME, by default ~/.cache/detrkit.

    Raises:
        DetrkitError: there is no home folder.
    """
    home = os.environ.get("DETRKIT_HOME") or "~/.cache/detrkit"
    try:
        return Path(home).expanduser()
    except RuntimeError as error:
        raise DetrkitError(f"{home}: no such home folder: set DETRKIT_HOME to a folder for downloads") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    return _digest(path, "sha256")


def md5(path: Path) -> str:
    """Return the MD5 of a file in hex: no protection against forgery, but used by older datasets."""
    return _digest(path, "md5")


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def download(
    url: str,
    *,
    sha256_prefix: str | None = None,
    md5_digest: str | None = None,
    folder: Path | None = None,
    name: str | None = None,
    size: int | None = None,
    pause: float = 1.0,
) -> Path:
    """Return the file behind a URL, from the cache or the network.

    A partial download is kept beside its place as NAME.part and continued by the next call. Processes that want the
    same file at the same time wait for each other (POSIX).

    Args:
        url: http(s) address.
        sha256_prefix: the first hex digits of the expected SHA-256.
        md5_digest: the expected MD5 in hex, where no SHA-256 is published.
        folder: where to keep it; by default `home() / "weights"`.
        name: of the file; by default the last part of the URL.
        size: the expected size in bytes, where it is known: a server that states another one is refused at once.
        pause: seconds before another attempt after a lost connection, doubled each time.

    Returns:
        The path of the complete, verified file.

    Raises:
        DownloadError: no connection, an HTTP error, or another file than expected; the message says where a file
            obtained by other means must be put.
        DetrkitError: a folder, a pipe or a device is in its place.
        WriteError: the file cannot be written; what has arrived is kept.
        ValueError: not exactly one of sha256_prefix and md5_digest.
    """
    if (sha256_prefix is None) == (md5_digest is None):
        raise ValueError("download needs either sha256_prefix or md5_digest")
    algorithm, expected = ("sha256", sha256_prefix) if sha256_prefix is not None else ("md5", md5_digest)

    def fits(file: Path) -> bool:
        return _digest(file, algorithm).startswith(str(expected))

    folder = home() / "weights" if folder is None else folder
    path = folder / (name or url.rsplit("/", 1)[1])
    part = path.with_name(path.name + ".part")
    try:
        if _cached(path) and fits(path):
            return path
        _cached(part)
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file, locked(file):
            if _cached(path) and fits(path):  # another process has finished it meanwhile
                part.unlink(missing_ok=True)
                return path
            resumed = file.tell() > 0
            _fetch(url, file, path, pause, size)
            file.flush()
            if resumed and not fits(part):
                _restart(file)  # the partial file may be of another version: restart from the beginning
                _fetch(url, file, path, pause, size)
                file.flush()
            if not fits(part):
                digest = _digest(part, algorithm)[:8]
                part.unlink()
                kind = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
                reason = f"its {kind} starts with {digest}, not with {str(expected)[:8]}"
                raise DownloadError(f"{url} is not the expected file: {reason}", f"not the expected file: {reason}")
            os.replace(part, path)
    except OSError as error:
        raise WriteError(
            f"cannot write {path}: {error.strerror or error} (set DETRKIT_HOME to another folder)"
        ) from error
    return path


def _cached(path: Path) -> bool:
    """Return whether the cache has a file at this path; a dangling link counts as none and is replaced.

    Raises:
        DetrkitError: it is no file: reading would block, or it could not be replaced.
        OSError: it cannot be checked.
    """
    try:
        require_regular(path)
    except DetrkitError as error:
        raise DetrkitError(f"{error}, in the place of a download: remove it") from error
    except (FileNotFoundError, NotADirectoryError):  # a parent folder is a file; making the folder reports that
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return False
        raise
    return True


def _restart(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()


@contextlib.contextmanager
def locked(file: IO[bytes]) -> Iterator[None]:
    """Hold an exclusive lock on an open file, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
    file.seek(0, os.SEEK_END)
    yield


def _fetch(url: str, file: IO[bytes], path: Path, pause: float, size: int | None) -> None:
    """Append to `file` until it is complete, over as many connections as it takes.

    Raises:
        DownloadError: the server cannot be reached, refuses, states another size, or keeps closing the connection.
    """
    failures = 0
    with _Bar(path.name) as bar:
        while True:
            start = file.tell()
            try:
                if _connection(url, file, bar, size):
                    return
                reason: object = "the connection was cut"
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise _failure(url, path, f"HTTP {error.code} {error.reason}") from error
                reason = f"HTTP {error.code} {error.reason}"
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                if file.tell() == 0:  # no first byte: waiting for the network is useless
                    raise _failure(url, path, getattr(error, "reason", error)) from error
                reason = getattr(error, "reason", error)
            failures = 0 if file.tell() > start else failures + 1
            if failures >= ATTEMPTS:
                raise _failure(url, path, f"{reason}; {file.tell():,} bytes are kept, run again to continue")
            time.sleep(pause * 2**failures)


def _connection(url: str, file: IO[bytes], bar: _Bar, size: int | None) -> bool:
    """Append the data of one connection; return whether the file is complete, as the server states.

    Raises:
        DownloadError: the server states another size than the expected one.
    """
    start = file.tell()
    request = urllib.request.Request(url, headers={"User-Agent": "detrkit", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:  # nothing after `start`: complete, or longer than the file
            stated = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if stated and int(stated[1]) == start:
                return True
            _restart(file)
            return False
        raise
    with response:
        if start and not (response.status == 206 and _range_start(response) == start):
            _restart(file)  # the server sends the whole file again
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        if size is not None and total not in (None, size):
            reason = f"it has {total:,} bytes there, not {size:,}"
            raise DownloadError(f"{url} is not the expected file: {reason}", f"not the expected file: {reason}")
        bar.begin(start, total)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.advance(len(chunk))
    return total is None or file.tell() >= total


def _range_start(response: http.client.HTTPResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _failure(url: str, path: Path, reason: object) -> DownloadError:
    place = " in the place of the other one that is there" if path.exists() else ""
    return DownloadError(
        f"cannot download {url} ({reason}). Without a connection, put the file at {path}{place}", reason
    )


class _Bar:
    """Progress bar on a terminal, one plain line elsewhere; on standard error, so that output stays clean."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.console = Terminal(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = None if not self.console.is_terminal else self.progress.add_task(f"downloading {name}", start=True)
        self.announced = False

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def begin(self, done: int, total: int | None) -> None:
        """Start or continue at byte `done` of `total`."""
        if self.task is not None:
            self.progress.update(self.task, completed=done, total=total)
        elif not self.announced:
            size = "" if total is None else f" ({total / 1e6:.1f} MB)"
            self.console.print(f"downloading {self.name}{size}")
            self.announced = True

    def advance(self, count: int) -> None:
        """Advance by `count` bytes."""
        if self.task is not None:
            self.progress.advance(self.task, count)
