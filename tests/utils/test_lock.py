"""Two processes and one folder: the second is refused and told by whom; a killed one holds nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from detrkit.utils.errors import DetrkitError
from detrkit.utils.lock import NAME, FolderLock
from helpers.disk import full_disk

_HOLD = (
    "import sys; from detrkit.utils.lock import FolderLock\nwith FolderLock(sys.argv[1]): print('held', flush=True); "
)


def _holder(folder: Path, then: str = "sys.stdin.read()") -> subprocess.Popen:
    """A process that has locked a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD + then, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_by_whom(tmp_path):
    holder = _holder(tmp_path / "run")
    try:
        with pytest.raises(DetrkitError, match=rf"run is being written by process {holder.pid} on \S+ since .*: wait"):
            FolderLock(tmp_path / "run").__enter__()
    finally:
        holder.communicate("")
    assert not (tmp_path / "run").exists()  # made for the lock, empty
    with FolderLock(tmp_path / "run"):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    holder = _holder(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert f"process {holder.pid} " in (tmp_path / NAME).read_text()
    with FolderLock(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / NAME).read_text()
    assert not (tmp_path / NAME).exists()


def test_a_forked_child_that_outlives_its_parent_holds_nothing(tmp_path):
    """As a worker that loads images may, for a while."""
    holder = _holder(tmp_path, "import os, time; child = os.fork(); child or time.sleep(60); print(child, flush=True)"
                               "; sys.stdin.read()")  # fmt: skip
    child = int(holder.stdout.readline())
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    try:
        with FolderLock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate()


def test_the_same_process_is_refused_too_and_does_not_lose_the_lock(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(DetrkitError, match="by this process already"):
            FolderLock(tmp_path / "." / "x" / "..").__enter__()
        other = "from detrkit.utils.lock import FolderLock; import sys; FolderLock(sys.argv[1]).__enter__()"
        done = subprocess.run([sys.executable, "-c", other, str(tmp_path)], capture_output=True, text=True)
        assert f"is being written by process {os.getpid()}" in done.stderr


def test_a_lock_on_a_file_that_its_process_removed_meanwhile_is_none(tmp_path, monkeypatch):
    """Opened, then removed and made anew by others, then locked: the lock is taken again, on the file that is there."""
    lock, calls = fcntl.lockf, []

    def replaced(handle, how):
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / NAME).unlink()
        lock(handle, how)

    monkeypatch.setattr(fcntl, "lockf", replaced)
    with FolderLock(tmp_path):
        assert len(calls) == 2 and (tmp_path / NAME).exists()


def test_a_foreign_file_and_a_link_are_left_alone(tmp_path):
    (tmp_path / NAME).write_text("mine\n")
    with pytest.raises(DetrkitError, match=r"run\.lock is not detrkit's"):
        FolderLock(tmp_path).__enter__()
    assert (tmp_path / NAME).read_text() == "mine\n"
    (tmp_path / NAME).rename(tmp_path / "mine")
    (tmp_path / NAME).symlink_to(tmp_path / "mine")
    with pytest.raises(DetrkitError, match=r"cannot write .*run\.lock"):
        FolderLock(tmp_path).__enter__()
    assert (tmp_path / "mine").read_text() == "mine\n"


def test_without_locks_a_warning(tmp_path, monkeypatch):
    def unsupported(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with pytest.warns(UserWarning, match="no locks on this file system"), FolderLock(tmp_path):
        assert not (tmp_path / NAME).exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DetrkitError, match=r"file is a file|cannot make the folder"):
        FolderLock(tmp_path / "file" / "run").__enter__()


def test_the_folder_may_go_away_while_the_file_is_opened(tmp_path, monkeypatch):
    opened, calls = os.open, []

    def gone_once(path, *rest):
        if str(path).endswith(NAME) and not calls:
            calls.append(path)
            (tmp_path / "run").rmdir()
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", gone_once)
    with FolderLock(tmp_path / "run"):
        assert calls and (tmp_path / "run" / NAME).exists()


@pytest.mark.parametrize("size", [0, 10])
def test_a_full_disk_takes_the_words_not_the_lock(size, tmp_path):
    with full_disk(size), FolderLock(tmp_path):
        assert (tmp_path / NAME).read_bytes() == b""
        with pytest.raises(DetrkitError, match="being written by this process"), FolderLock(tmp_path):
            pass
    assert os.listdir(tmp_path) == []
