"""Several processes: the first cause is said once and ends them all, and nothing waits without a word or for ever."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

import detrkit.engine.launching as launching
from detrkit.engine import job as jobs
from detrkit.engine.agreement import check_agreement
from detrkit.engine.job import Job, Place, peer_gone
from detrkit.utils.errors import DetrkitError, PeerError
from detrkit.utils.signals import SignalWatch
from helpers.tiny import tiny_config


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def ends(monkeypatch):
    """A list of the statuses with which the process would have ended."""
    statuses: list[int] = []

    def end(self, status):
        statuses.append(status)
        self._closed.set()
        raise Ended

    monkeypatch.setattr(Job, "_end", end)
    monkeypatch.setattr(jobs, "LAST_SECONDS", 1)
    return statuses


@pytest.fixture
def pair(monkeypatch):
    """The places of two processes, and the store of the first one."""
    monkeypatch.setattr(jobs, "_READ_SECONDS", 0.2)
    monkeypatch.setattr(jobs, "_CAUSE_SECONDS", 0.2)
    monkeypatch.setattr(jobs, "_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(jobs, "_TICK_SECONDS", 0.05)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    places = [Place(rank, 2, "127.0.0.1", store.port, "p", hosts=rank == 0, agent=False) for rank in (0, 1)]
    shared = dist.PrefixStore("p", store)
    for rank in (0, 1):
        shared.set(f"beat/{rank}", "")
    yield places, shared
    signal.set_wakeup_fd(-1)
    Job.current = None


def wait_for(condition) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def test_the_first_cause_is_the_only_one_that_is_said(pair, ends, capsys):
    (first, second), store = pair
    with SignalWatch(program=True):
        jobs_ = [Job(place, store, timeout=60) for place in (first, second)]
        for job in jobs_:
            job._closed.set()  # no threads: the ends are called by hand
        with pytest.raises(Ended):
            jobs_[1].fail(ValueError(), ["the cause"], 2)
        with pytest.raises(Ended):
            jobs_[0].fail(RuntimeError("[pair.cc:545] Connection closed by peer"), ["a traceback"], 1)
        assert ends == [2, 2]
    assert capsys.readouterr().err == "the cause\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_process_without_a_sign_of_life_is_said_and_given_up(pair, ends, capsys, monkeypatch):
    (first, _), store = pair
    monkeypatch.setattr(jobs, "NOTICE_SECONDS", 0.2)
    with SignalWatch(program=True):
        job = Job(first, store, timeout=1)
        job.advice = lambda: "go on"
        try:
            with pytest.raises(PeerError):  # in the main thread
                wait_for(lambda: ends)
            assert wait_for(lambda: ends) and ends == [2]
        except Ended:
            pass
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0] == "detrkit: process 1 of 2 has not answered for 0 s; waiting, at most 1 s"
    assert lines[1] == "detrkit: error: process 1 of 2 has not answered for 1 s; go on"


def test_errors_of_a_lost_connection_are_known_from_others():
    assert peer_gone(
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer [::1]:9")
    )
    assert peer_gone(dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited"))
    assert peer_gone(dist.DistNetworkError("failed to recv, got 0 bytes"))
    assert not peer_gone(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not peer_gone(ValueError("Connection closed by peer"))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_who_never_comes_is_named_and_waited_for_within_bounds(rank, monkeypatch, capsys):
    monkeypatch.setattr(launching, "NOTICE_SECONDS", 0.3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(DetrkitError, match=rf"process {1 - rank} of 2 did not join at 127.0.0.1:{port}.* within 1 s"):
        launching.join(rank, 2, "127.0.0.1", port, timeout=1)
    assert 1 <= time.monotonic() - began < 8
    assert capsys.readouterr().err.startswith(
        f"detrkit: waiting for process {1 - rank} of 2 to join at 127.0.0.1:{port}"
    )


_SCRIPT = """
import os, signal, sys
from detrkit.cli import main
from detrkit.engine.train_step import TrainStep

step, steps = TrainStep.__call__, []

def killed(self, parts):
    steps.append(1)
    if len(steps) == 2 and os.environ.get("LOCAL_RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, parts)

TrainStep.__call__ = killed
sys.exit(main())
"""


@pytest.mark.slow
def test_a_killed_process_ends_its_launcher_with_one_line(shapes, tmp_path):
    config = tiny_config(shapes, tmp_path / "run", optim={"epochs": 1}, run={"devices": 2, "save_every": 1})
    (tmp_path / "recipe.yaml").write_text(config.to_yaml())
    (tmp_path / "script.py").write_text(_SCRIPT)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", "train", "--recipe", tmp_path / "recipe.yaml"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKEN": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    said = [line for line in done.stderr.splitlines() if "waiting for" not in line]
    resume = f"go on with: detrkit train --resume {tmp_path / 'run'}"
    assert said == [f"detrkit: error: process 1 of 2 was ended by SIGKILL; {resume}"]
    assert done.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("change", "images", "said"),
    [
        ({"optim": {"lr": 0.5}}, 48, r"optim.lr is 0.5 in process 1 of 2, 0.001 in process 0"),
        (
            {"run": {"out": "b", "log_every": 7}, "data": {"workers": 3}},
            24,
            "train has 24 images in process 1 of 2, 48",
        ),
        ({"run": {"out": "b", "log_every": 7}, "data": {"workers": 3}}, 48, None),
    ],
)
def test_processes_compare_settings_and_data(change, images, said, tmp_path, monkeypatch):
    config = tiny_config(tmp_path, tmp_path / "run")
    data = {"train": {"images": 48, "files": "a"}, "val": None}
    other = config.changed(**change), {"train": {"images": images, "files": "a"}, "val": None}
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda into, mine: into.__setitem__(slice(None), [mine, other]))
    if said is None:
        check_agreement(data, "place", config)
    else:
        with pytest.raises(DetrkitError, match=said):
            check_agreement(data, "place", config)
