"""Rendezvous of the processes of a command, started by the first one, by torchrun, by Slurm or by hand."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from detrkit.engine.fabric import DDPStrategy, Fabric
from detrkit.engine.job import NOTICE_SECONDS, Job, Place
from detrkit.utils.errors import DetrkitError, PeerError, ProcessEnded
from detrkit.utils.messages import first_names
from detrkit.utils.parent import LAUNCHER, end_with_launcher
from detrkit.utils.signals import command_watch, signal_name
from detrkit.utils.visible import first_line

JOIN_SECONDS = 300  # for all processes to join, unless --timeout says otherwise
STEP_SECONDS = 1800  # that one process may take while the others wait, likewise
_LOOK_SECONDS = 0.05
_LAST_SECONDS = 60


def launch(fabric: Fabric, timeout: int | None = None) -> None:
    """Start the other processes if they do not run yet, let all find each other, and launch Fabric.

    Args:
        fabric: not launched.
        timeout: seconds that a process waits for the others; None: 300 for them to join, 1800 later.

    Raises:
        DetrkitError: a process did not join, cannot connect, or ended.
    """
    strategy = fabric.strategy
    if isinstance(strategy, DDPStrategy) and not dist.is_initialized():
        environment = strategy.cluster_environment
        assert environment is not None
        children: list[subprocess.Popen[bytes]] = []
        if environment.creates_processes_externally:
            end_with_launcher()
        else:
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
            children = _start_others(strategy.num_processes, strategy.num_processes * strategy.num_nodes)
        world = strategy.num_processes * strategy.num_nodes
        rank = environment.node_rank() * strategy.num_processes + environment.local_rank()
        environment.set_world_size(world)
        environment.set_global_rank(rank)
        device = strategy.root_device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            join(
                environment.global_rank(),
                environment.world_size(),
                environment.main_address,
                environment.main_port,
                device=device if device.type == "cuda" else None,
                timeout=timeout,
                children=children,
            )
        except BaseException:
            _kill(children)
            raise
    fabric.launch()


def join(
    rank: int,
    world: int,
    address: str,
    port: int,
    *,
    device: torch.device | None = None,
    timeout: int | None = None,
    children: Sequence[subprocess.Popen[bytes]] = (),
) -> None:
    """Wait until all processes have joined and make them a process group.

    Args:
        rank: of this process.
        world: number of processes.
        address: of the machine of the first process.
        port: of the first process.
        device: a CUDA device, for NCCL; None for gloo.
        timeout: as in `launch`.
        children: the processes that this one started, in the order of their ranks, which follow this one's.

    Raises:
        DetrkitError: a process did not join, cannot connect, or ended.
    """
    limit = JOIN_SECONDS if timeout is None else timeout
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    prefix = f"detrkit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    place = Place(rank, world, address, port, prefix, hosts=rank == 0 and not agent, agent=agent)
    waiting = _Waiting(place, limit)
    step = timedelta(seconds=STEP_SECONDS if timeout is None else timeout)
    try:
        store = _open_store(place, waiting, step)
        store.set(f"beat/{rank}", "")
        store.set(f"joined/{rank}", "1")
        store.add("joined", 1)
        waiting.until(lambda: store.add("joined", 0) >= world, store, children)
        if command_watch() is not None and os.name == "posix":
            Job.current = Job(place, store, timeout=step.total_seconds(), children=children)
        options: dict[str, Any] = {} if device is None else {"device_id": device}
        dist.init_process_group(
            "gloo" if device is None else "nccl",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=world,
            timeout=step,
            **options,
        )
    except RuntimeError as error:
        if Job.current is not None:
            raise  # its cause may be another process
        raise DetrkitError(
            f"{place.name(rank)} cannot reach the others at {address}:{port}: {first_line(error)}"
        ) from error


def _open_store(place: Place, waiting: _Waiting, timeout: timedelta) -> dist.PrefixStore:
    """Open the rendezvous store, which the first process or torchrun hosts."""
    if not place.hosts:
        waiting.until(waiting.listens)
    store = dist.TCPStore(
        "127.0.0.1" if place.hosts else place.address,
        place.port,
        is_master=place.hosts,
        wait_for_workers=False,
        multi_tenant=place.hosts,
        timeout=timeout,
    )
    return dist.PrefixStore(place.prefix, store)


class _Waiting:
    """Wait for the other processes: in Python, where signals are handled, with a notice after ten seconds.

    Args:
        place: of this process.
        limit: seconds.
    """

    def __init__(self, place: Place, limit: int) -> None:
        self._place, self._limit = place, limit
        self._began = time.monotonic()
        self._noticed = False
        self._trouble = ""

    def listens(self) -> bool:
        """Return whether the first process, or torchrun, listens."""
        try:
            with socket.create_connection((self._place.address, self._place.port), timeout=2):
                return True
        except OSError as error:
            self._trouble = f" ({error.strerror or error})"
            return False

    def until(
        self,
        done: Callable[[], bool],
        store: dist.Store | None = None,
        children: Sequence[subprocess.Popen[bytes]] = (),
    ) -> None:
        """Wait until `done()` is true.

        Args:
            done: ends the wait.
            store: tells which processes have joined.
            children: started processes; the end of one ends the wait.

        Raises:
            DetrkitError: the limit is reached, or another process has ended.
        """
        while not done():
            for rank, child in enumerate(children, self._place.rank + 1):
                code = child.poll()
                if code is not None and code < 0:
                    name = signal_name(-code)
                    raise ProcessEnded(f"{self._place.name(rank)} was ended by {name} at its start", status=128 - code)
                if code is not None:
                    raise PeerError("a process that was started has failed", status=code or 2)
            seconds = time.monotonic() - self._began
            if seconds >= self._limit:
                raise DetrkitError(
                    f"{self._missing(store)} did not join at {self._where()} within {self._limit} s: start every "
                    "process, with the same MASTER_ADDR and MASTER_PORT; --timeout waits longer"
                )
            if seconds >= NOTICE_SECONDS and not self._noticed:
                self._noticed = True
                text = f"waiting for {self._missing(store)} to join at {self._where()}, at most {self._limit} s"
                print(f"detrkit: {text}", file=sys.stderr, flush=True)
            time.sleep(_LOOK_SECONDS)

    def _missing(self, store: dist.Store | None) -> str:
        place = self._place
        if store is None:
            return place.name(0)
        missing = [rank for rank in range(place.world) if not store.check([f"joined/{rank}"])]
        return f"process {first_names(missing)} of {place.world}"

    def _where(self) -> str:
        return f"{self._place.address}:{self._place.port}{self._trouble}"


def _start_others(count: int, world: int) -> list[subprocess.Popen[bytes]]:
    """Start this command again for the other processes of this machine; environment variables give the rank."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    script = [os.path.abspath(sys.argv[0])] if spec is None else ["-m", spec.name]
    os.environ.setdefault("NODE_RANK", "0")
    os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(count)}
    shared = {**os.environ, LAUNCHER: str(os.getpid())}
    children: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, count):
            command = [sys.executable, *script, *sys.argv[1:]]
            children.append(subprocess.Popen(command, env={**shared, "LOCAL_RANK": str(rank)}))
    except BaseException:
        _kill(children)
        raise
    atexit.register(_end, children)
    return children


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait at the end of a program for started processes, which may have work left, unless it failed; then kill all."""
    if not hasattr(sys, "last_type"):
        with suppress(subprocess.TimeoutExpired):
            for child in children:
                child.wait(_LAST_SECONDS)
    _kill(children)


def _kill(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        with suppress(OSError):
            child.kill()
