"""Atomic writing of files: whole or not at all, with one clear line when one cannot be written.

A file is written under a temporary name beside its place, `.NAME.detrkit-xxxxxxxx.tmp`, flushed to the disk and
renamed. The writing process holds a lock (flock) on the temporary file, which the system releases when the process
ends, however it ends. So files left by a killed process can be told from files being written, and are removed the next
time that something is written into the same folder. Logs, which grow, get whole lines by `append`.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detrkit.utils.errors import DetrkitError, WriteError
from detrkit.utils.names import NAME_BYTES, real_path

try:
    import fcntl
except ImportError:  # Windows has no such locks, so nothing is swept there
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\..*\.detrkit-[0-9a-f]{8}\.tmp", re.DOTALL)
# message of torch's zip writer when it could not write: a RuntimeError with the line of its C++ code
_TORCH_WRITING = re.compile(r"PytorchStreamWriter|inline_container|iostream error|file write")
_swept: set[tuple[int, Path]] = set()  # (process, folder)


@contextmanager
def write_errors(path: str | Path) -> Iterator[None]:
    """Turn the exceptions of a failed write into one line: OSError, safetensors' and torch's own errors.

    Args:
        path: the file or folder that is written, for the message.

    Raises:
        WriteError: names the path and the reason.
    """
    try:
        yield
    except DetrkitError:
        raise
    except Exception as error:
        ours = isinstance(error, OSError) or type(error).__name__ == "SafetensorError"
        if not ours and not _TORCH_WRITING.search(str(error)):
            raise
        raise WriteError(f"cannot write {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the system's words for an error, or the first line of the error's own."""
    if isinstance(error, OSError) and error.strerror:
        number = re.search(r"\[errno (\d+)\]", error.strerror)  # in the middle of pyarrow's message
        return os.strerror(int(number[1])) if number else error.strerror
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        number = re.search(r"os error (\d+)", str(cause))
        if number is not None:
            return os.strerror(int(number[1]))
        cause = cause.__cause__ or cause.__context__
    text = str(error).strip().splitlines()
    # torch names the place in its C++ code, not the reason
    return "no room on the disk, or the disk fails" if not text or _TORCH_WRITING.search(text[0]) else text[0]


def make_folder(path: str | Path) -> Path:
    """Make a folder and those above it.

    Raises:
        WriteError: it cannot be made, or a file has its name.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise WriteError(f"{folder} is a file: choose another output folder") from error
    except OSError as error:
        raise WriteError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    return folder


def check_exists(folder: Path) -> None:
    """Check that a folder was not deleted or renamed while its files are written: it is not made again.

    Raises:
        WriteError: it does not exist.
    """
    if not folder.is_dir():
        raise WriteError(f"{folder} is gone: it has been deleted or renamed")


def write_atomic(path: str | Path, content: bytes | str, *, durable: bool = True) -> Path:
    """Write a file so that a reader sees the old one or the new one, never half of one.

    Args:
        path: the file; its folder is made.
        content: its bytes, or its text, which is written as UTF-8 (lone surrogates, as file names may have, as "?").
        durable: see `atomic_file`.

    Raises:
        WriteError: it cannot be written; nothing has changed then.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    with atomic_file(path, durable=durable) as part, part.open("wb") as file:
        file.write(data)
    return Path(path)


@contextmanager
def atomic_file(path: str | Path, *, durable: bool = True, in_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary file that becomes `path` when the block ends without an error, and is removed otherwise.

    Args:
        path: the file; its folder is made. A link is followed: what it points to is replaced.
        durable: wait until it is on the disk, so that it survives a power cut. It takes some 7 ms, too long for
            each of thousands of images, which can be made again.
        in_folder: put the temporary file into a temporary folder, for libraries that write another temporary file
            beside it.

    Yields:
        The temporary file, which exists and is empty (in a folder of its own: does not exist), to be written by its
        name. It ends in ".tmp": tell libraries that go by the suffix which format is meant.

    Raises:
        WriteError: it cannot be written; nothing has changed then.
    """
    target = real_path(path)
    with write_errors(path):
        if target.is_dir():
            raise IsADirectoryError(21, "a folder has this name")
        if target.exists() and not target.is_file():
            raise OSError(22, "a device or pipe has this name, not a file")  # root could replace it
        make_folder(target.parent)
        sweep(target.parent)
        with locked_temporary(target, folder=in_folder) as temporary:
            part = temporary / "part.tmp" if in_folder else temporary
            yield part
            if durable:
                with part.open("rb") as file:
                    os.fsync(file.fileno())  # otherwise a power cut could leave the new name with old bytes
            part.chmod(_permissions(target))
            os.replace(part, target)
        if durable:
            _sync_folder(target.parent)


def append(path: str | Path, data: bytes, *, lines: bool = False) -> None:
    """Append all of `data` to a file, or nothing.

    Args:
        path: the file; its folder must exist.
        data: what to append.
        lines: `data` is whole lines: a new line begins after one that was cut off when a process ended.

    Raises:
        WriteError: it cannot be written; the file is as it was then.
    """
    with write_errors(path), Path(path).open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if lines and size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                data = b"\n" + data
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(size)
            raise


@contextmanager
def locked_temporary(target: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary file (or folder) beside `target` that is removed at the end, unless it has been renamed.

    Raises:
        OSError: it cannot be made.
    """
    part, handle = _temporary(target, folder=folder)
    try:
        yield part
    finally:
        if folder:
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        os.close(handle)


def _temporary(target: Path, *, folder: bool = False) -> tuple[Path, int]:
    """Create a new temporary file (or folder) beside `target`, and return it with a handle that holds its lock."""
    ending = f".detrkit-{secrets.token_hex(4)}.tmp"
    name = os.fsdecode(os.fsencode(f".{target.name}")[: NAME_BYTES - len(ending)]) + ending
    if len(os.fsencode(target.name)) > NAME_BYTES:
        raise OSError(36, "File name too long")
    part = target.with_name(name)
    if folder:
        part.mkdir(0o755)
        handle = os.open(part, os.O_RDONLY)
    else:
        handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    if fcntl is not None:
        swept = False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            swept = True  # the process that has the lock is about to remove it
        except OSError:
            pass  # a file system without locks, where nothing is swept either
        if swept or not part.exists():  # removed between its creation and its lock
            os.close(handle)
            return _temporary(target, folder=folder)
    return part, handle


def _permissions(target: Path) -> int:
    """Return the permissions of the file that is replaced, or the default for new files."""
    try:
        return target.stat().st_mode & 0o777
    except OSError:
        return new_file_mode()


def new_file_mode() -> int:
    """Return the permissions of new files (reading the umask requires setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def is_temporary(name: str) -> bool:
    """Return whether this is the name of a temporary file or folder of detrkit."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove temporary files and folders that ended processes left in a folder; once per folder and process."""
    key = (os.getpid(), folder)
    if fcntl is None or key in _swept:
        return
    _swept.add(key)
    try:
        left = [entry.name for entry in os.scandir(folder) if is_temporary(entry.name)]
    except OSError:
        return
    for name in left:
        _remove_orphan(folder / name)


def _remove_orphan(part: Path) -> None:
    """Remove a temporary file or folder unless a process holds its lock."""
    handle = None
    for access in (os.O_RDWR, os.O_RDONLY):  # NFS locks only files open for writing, and folders cannot be opened so
        with suppress(OSError):
            handle = os.open(part, access | os.O_NOFOLLOW)
            break
    if handle is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
    except OSError:
        pass
    finally:
        os.close(handle)
