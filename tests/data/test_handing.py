"""Batches come from loading processes as they were made, whatever is short, and a process that fails is one line."""

from __future__ import annotations

import gc
import os
import signal
import time
from multiprocessing import active_children

import pytest
import torch

import detrkit.data.loader as loading
from detrkit.data import eval_transform, handing, make_loader, open_dataset
from detrkit.data._workers import end_workers
from detrkit.data.handing import NEVER_SHARED, SHARED_FROM_BYTES, shared_from
from detrkit.data.tools.shapes import write_shapes
from detrkit.utils.errors import DetrkitError
from detrkit.utils.workers import loading_failure


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("handing") / "data"
    write_shapes(path, images={"train": 6, "val": 1}, sides=(48, 200), classes=3, seed=1)
    return open_dataset(path, split="train")


def batches_of(dataset, **options):
    return make_loader(dataset, transform=eval_transform(64, 256), batch_size=2, training=False, **options)


def send(loader, number) -> None:
    """Sends a signal to a loading process."""
    os.kill(loader._loader._iterator._workers[0].pid, number)


def ended(processes) -> None:
    for process in processes:
        process.join(5)
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize("free", [None, 2**19])
def test_batches_are_the_same_to_the_bit(dataset, free, monkeypatch, capsys):
    """In shared memory where there is enough, copied where there is none: labels and boxes always."""
    monkeypatch.setattr(handing, "shared_memory_free", lambda: free)
    monkeypatch.setattr(handing, "SHARED_FROM_BYTES", 2000)
    monkeypatch.setattr(loading, "PREFETCHED", 9)
    expected = list(batches_of(dataset, workers=0))
    found = list(batches_of(dataset, workers=1))
    assert ("they are copied instead" in capsys.readouterr().out) is (free is not None)
    assert len(found) == len(expected) == 3
    for (batch, targets), (other, others) in zip(found, expected, strict=True):
        assert torch.equal(batch.images, other.images) and batch.sizes == other.sizes
        for target, one in zip(targets, others, strict=True):
            assert torch.equal(target.boxes, one.boxes) and torch.equal(target.labels, one.labels)
            assert (target.image_id, target.size, target.orig_size) == (one.image_id, one.size, one.orig_size)
            assert not target.boxes.is_shared() and target.boxes.dtype == one.boxes.dtype
    assert all(batch.images.is_shared() is False for batch, _ in found)  # normalized: made here


def test_what_is_short_is_said_and_not_used(monkeypatch):
    """Docker gives 64 MiB of shared memory; 12 images of 800 x 1333 take 38 MB, and 4 processes prepare 9 batches."""
    monkeypatch.setattr(handing, "shared_memory_free", lambda: 64 * 2**20)
    least, why = shared_from(12 * 3 * 800 * 1333, batches=9, handles=9)
    assert least == NEVER_SHARED and why is not None
    assert why.startswith("/dev/shm has 64 MiB free, the batches that are loaded ahead may take 330 MiB")
    assert shared_from(2 * 3 * 400 * 600, batches=9, handles=9) == (SHARED_FROM_BYTES, None)
    assert handing.usable_workers(4) == (4, None)
    monkeypatch.setattr(handing, "handle_limit", lambda needed: 1024)
    least, why = shared_from(1, batches=9, handles=9 * 257)
    assert least == NEVER_SHARED and why is not None and why.startswith("this process may open 1024 files")
    monkeypatch.setattr(handing, "shared_memory_free", lambda: 65536)
    assert handing.usable_workers(4) == (
        0,
        "/dev/shm has 64 KiB free, too little for processes that load images: there are none",
    )
    assert handing.usable_workers(0) == (0, None)


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = 4096 if before[1] == resource.RLIM_INFINITY else min(before[1], 4096)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        assert handing.handle_limit(500) == 512
        assert handing.handle_limit(hard) == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_killed_loading_process_is_one_line(dataset, monkeypatch):
    loader = batches_of(dataset, workers=2)
    batches = iter(loader)
    next(batches)
    with pytest.raises((DetrkitError, RuntimeError)) as raised:  # torch raises it wherever the main thread is
        send(loader, signal.SIGKILL)
        list(batches)
        time.sleep(1)
    end_workers()
    line = loading_failure(raised.value) or str(raised.value)
    assert "a process that loads images" in line and "killed, perhaps for want of memory" in line


def test_stopped_loading_processes_are_said_and_given_up(dataset, monkeypatch, capsys):
    monkeypatch.setattr(loading, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(loading, "NOTICE_SECONDS", 0.2)
    loader = batches_of(dataset, workers=1)
    batches, waited = iter(loader), []
    next(batches)
    loader.timeout, loader.while_waiting = 1, waited.append
    send(loader, signal.SIGSTOP)
    started = active_children()
    time.sleep(0.2)
    with pytest.raises(DetrkitError, match=r"have given nothing for \d+ s: .*--workers 0"):
        list(batches)  # what was ready is given first
    assert capsys.readouterr().err.count("waiting for the processes that load images, at most 1 s") == 1
    assert waited == sorted(waited) and waited[-1] >= 1
    ended(started)  # given up is killed


@pytest.mark.slow
def test_a_stopped_loading_process_does_not_outlast_its_iterator(dataset, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    loader = batches_of(dataset, workers=1)
    batches = iter(loader)
    next(batches)
    send(loader, signal.SIGSTOP)
    workers = active_children()
    assert workers
    batches.close()
    loader._loader._iterator = None
    del batches
    gc.collect()  # torch asks it to end, which it does not hear
    end_workers()
    ended(workers)


def test_failures_of_loading_processes_are_known_from_faults_in_them():
    bus = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ... out of shared memory."
    assert "(7) has failed: shared memory (/dev/shm) is used up" in str(loading_failure(RuntimeError(bus)))
    caught = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last): "
    shm = f"{caught}\nunable to write to file </torch_1>: No space left on device (28)"
    assert "--shm-size" in str(loading_failure(RuntimeError(shm)))
    assert "ulimit -n" in str(loading_failure(RuntimeError("received 0 items of ancdata")))
    assert loading_failure(RuntimeError(f"{caught} a fault")) is None
    assert loading_failure(ValueError(bus)) is None and loading_failure(RuntimeError("killed by signal")) is None
