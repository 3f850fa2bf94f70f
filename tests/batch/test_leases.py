"""At most one worker has a lease; that of a dead or silent worker is taken over, once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from detrkit.batch.leases import Leases
from detrkit.utils.errors import WriteError

HOLD = """
import sys, time
from pathlib import Path
from detrkit.batch.leases import Leases
lease = Leases(Path(sys.argv[1]), stale_seconds=60, machine=sys.argv[2]).acquire("00001")
with lease:
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "leases"


def hold(folder, machine):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), machine], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_one_worker_has_it_until_it_is_released(folder):
    one, third, other = Leases(folder), Leases(folder), Leases(folder, machine="other")
    with one.acquire("a"):
        assert other.acquire("a") is None and third.acquire("a") is None
        with other.acquire("b"):
            assert one.acquire("b") is None
    with other.acquire("a"):
        assert one.acquire("a") is None
    for leases in (one, third, other):
        leases.close()
    assert list(folder.iterdir()) == []


def test_of_many_threads_one_gets_it(folder):
    leases, found = [Leases(folder) for _ in range(8)], []
    barrier = threading.Barrier(8)

    def ask(one):
        barrier.wait()
        found.append(one.acquire("a"))

    threads = [threading.Thread(target=ask, args=(one,)) for one in leases]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    (lease,) = [one for one in found if one is not None]
    with lease:
        pass


def test_an_entered_lease_stays_fresh_and_a_silent_one_is_taken_over(folder):
    one, other = Leases(folder, stale_seconds=0.5, machine="one"), Leases(folder, stale_seconds=0.5, machine="other")
    with one.acquire("a"):
        time.sleep(1.2)
        assert other.acquire("a") is None  # renewed meanwhile
    silent = one.acquire("a")  # not entered: nothing renews it, as on a machine that has died
    assert other.acquire("a") is None
    time.sleep(0.7)
    with other.acquire("a"):
        assert other.taken_over == 1
        with silent:  # it comes back, and leaves the lease of the other alone when it ends
            pass
        assert one.acquire("a") is None


def test_the_clock_is_that_of_the_folder(folder):
    """A lease whose time of change is far from this machine's clock is judged by a file touched beside it."""
    one, other = Leases(folder, machine="one"), Leases(folder, machine="other")
    lease = one.acquire("a")
    status = os.stat(folder / "a")
    os.utime(folder / "a", (status.st_atime, status.st_mtime - 59))
    assert other.acquire("a") is None
    os.utime(folder / "a", (status.st_atime, status.st_mtime - 61))
    with other.acquire("a"):
        assert other.taken_over == 1
    with lease:
        pass


def test_an_empty_lease_is_live_until_it_is_old(folder):
    """Its owner is between creating it and writing into it; or the disk is full."""
    folder.mkdir()
    (folder / "a").touch()
    leases = Leases(folder, stale_seconds=60)
    assert leases.acquire("a") is None
    os.utime(folder / "a", (1, 1))
    with leases.acquire("a"):
        pass


@pytest.mark.slow
def test_a_killed_process_of_this_machine_is_seen_at_once_and_of_another_one_by_time(folder):
    from detrkit.batch.leases import this_machine

    for machine, at_once in ((this_machine(), True), ("far/away", False)):
        process = hold(folder, machine)
        leases = Leases(folder, stale_seconds=60)
        assert leases.acquire("00001") is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        lease = leases.acquire("00001")
        assert (lease is not None) == at_once
        if lease is not None:
            with lease:
                pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError):
        Leases(tmp_path / "file" / "leases").acquire("a")
