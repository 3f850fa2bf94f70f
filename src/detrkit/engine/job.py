"""The processes of a command as one job: the first failure of a process is printed once and ends them all.

Each process has a thread that writes heartbeats into the rendezvous store of the processes and reads there what has
ended another one. It works while the main thread waits inside gloo, NCCL or a system call, where Python handles no
signal.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

import torch.distributed as dist

from detrkit.data._workers import end_workers
from detrkit.utils.errors import PeerError
from detrkit.utils.signals import NUMBERS, raise_in_main_thread, signal_name

NOTICE_SECONDS = 10  # of waiting before a notice is printed
_TICK_SECONDS = 0.5
_CAUSE_SECONDS = 6  # for the cause of a lost connection to arrive, if a process is left to report it
_READ_SECONDS = 3  # for the others to read a cause
_GRACE_SECONDS = 3  # for the main thread to stop its work
LAST_SECONDS = 60  # for the other processes of a command to end
_STORE_SECONDS = 20  # for an answer of the store
# messages of gloo, NCCL and the store when the process at the other end has gone
_PEER_GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|gloo|nccl|socket|remote process|timed out waiting|"
    r"process group|wait timeout|store->get|failed to recv|failed to send|epipe|econnreset",
    re.IGNORECASE,
)


class Place(NamedTuple):
    """Rank of a process in a job, and the address of the job's store.

    Attributes:
        rank: of the process.
        world: number of processes.
        address, port: of the store.
        prefix: of the job's keys in the store.
        hosts: whether the store is in this process; under torchrun it is in the agent's.
        agent: whether the store is in torchrun's agent.
    """

    rank: int
    world: int
    address: str
    port: int
    prefix: str
    hosts: bool
    agent: bool

    def connect(self) -> dist.PrefixStore:
        """Open a separate connection to the store: operations on the same connection wait for each other."""
        store = dist.TCPStore(
            "127.0.0.1" if self.hosts else self.address,
            self.port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=_STORE_SECONDS),
        )
        return dist.PrefixStore(self.prefix, store)

    def name(self, rank: int) -> str:
        """Return the name of a process for messages."""
        return f"process {rank} of {self.world}"


class Job:
    """Supervision of the other processes of a command; one at a time, `current`.

    Args:
        place: of this process.
        store: the rendezvous store of the processes.
        timeout: seconds without a heartbeat after which a process counts as lost.
        children: the processes that this one started, in the order of their ranks, which follow this one's.

    Attributes:
        current: the job of this process, or None.
        advice: function without arguments that returns what the user can do when the job fails, such as how to resume.
    """

    current: Job | None = None

    def __init__(
        self, place: Place, store: dist.Store, *, timeout: float, children: Sequence[subprocess.Popen[bytes]] = ()
    ) -> None:
        self.place, self.timeout, self.children = place, timeout, children
        self.advice: Callable[[], str] = str
        self._store = store
        self._watch_store = place.connect()
        self._closed = threading.Event()
        self._failing = threading.Lock()  # held by the thread that ends the process
        self._telling = threading.Lock()  # held from the record of a failure until its message is printed
        self._read = False
        self._silent = dict.fromkeys(range(place.world), 0.0)  # seconds without a heartbeat
        self._beats: dict[int, bytes] = {}
        self._noticed: set[int] = set()
        self._signals: list[tuple[float, int]] = []
        self._parent = os.getppid()
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="detrkit-job", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the supervision: this process is done. The one that hosts the store waits until the others are done."""
        if self._closed.is_set():
            return
        with suppress(RuntimeError):
            self._store.set(f"done/{self.place.rank}", "1")
            self._store.add("done", 1)
            if self.place.hosts:
                self._await(lambda: self._store.add("done", 0) == self.place.world, LAST_SECONDS)
        self._closed.set()
        Job.current = None
        signal.set_wakeup_fd(-1)
        self._thread.join(_STORE_SECONDS)

    def end_children(self, seconds: float) -> int:
        """Wait for the processes that this one started, and kill those that are still running after `seconds`.

        Returns:
            The first exit status that is not 0; 128 + n of one that a signal ended.
        """
        end, status = time.monotonic() + seconds, 0
        for child in self.children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, end - time.monotonic()))
            if child.poll() is None:
                child.kill()
                child.wait()
            status = status or _status(child.returncode)
        return status

    # ending a job

    def fail(self, error: BaseException | None, lines: Sequence[str], status: int) -> NoReturn:
        """End this process for an error and print it, unless another process failed before.

        Args:
            error: its cause may be that another process has gone.
            lines: the error's message.
            status: exit status of the command.
        """
        if not self._failing.acquire(blocking=False):
            time.sleep(LAST_SECONDS)  # the other thread ends the process
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)
        if isinstance(error, PeerError):
            self._end(error.status)
        if error is not None and peer_gone(error):
            cause = self._cause(_CAUSE_SECONDS)
            if cause is not None:
                self._end(cause)
            lines, status = [f"detrkit: error: {self._lost_words(error)}"], 2
        self._end(self._tell(lines, status))

    def _tell(self, lines: Sequence[str], status: int) -> int:
        """Print what ended the job, unless another process was first, and return the status of the job."""
        mine = json.dumps([self.place.rank, status])
        with self._telling:
            try:
                first = self._watch_store.compare_set("failure", "", mine).decode()
            except RuntimeError:  # the store is gone with its process: the first process that is left prints
                if self.place.rank == 1 or self.place.agent:
                    _say(lines)
                return status
            if first != mine:
                return int(json.loads(first)[1])
            _say(lines)
        busy = self.place.world - 1 - self._watch_store.add("done", 0)
        self._await(lambda: self._watch_store.add("read", 0) >= busy, _READ_SECONDS)
        return status

    def _cause(self, seconds: float) -> int | None:
        """Return the status of the job if another process reports within so many seconds what ended it; else None."""
        try:
            self._await(lambda: self._watch_store.check(["failure"]), seconds)
            if not self._watch_store.check(["failure"]):
                return None
            self._acknowledge()
            return int(json.loads(self._watch_store.get("failure"))[1])
        except RuntimeError:
            return None

    def _acknowledge(self) -> None:
        if not self._read:
            self._read = True
            self._watch_store.add("read", 1)

    def _lost_words(self, error: BaseException | None = None) -> str:
        """Describe a connection to another process that is lost, or takes too long, for an unknown reason."""
        if error is not None and re.search("time(d )?out", str(error), re.IGNORECASE):
            return f"another process has not done its part within {self.timeout:.0f} s{self._advice()}"
        dead = [rank for rank, seconds in self._silent.items() if seconds >= _CAUSE_SECONDS / 2]
        who = ", ".join(self.place.name(rank) for rank in dead) or "another process"
        return f"{who} has ended without a word (killed, perhaps for want of memory){self._advice()}"

    def _advice(self) -> str:
        advice = self.advice()
        return f"; {advice}" if advice else ""

    @staticmethod
    def _await(done: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            time.sleep(0.02)

    def _end(self, status: int) -> NoReturn:
        """End the process at once: a normal exit inside its process group may abort, or wait for the others."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, RuntimeError):
                stream.flush()
        end_workers()
        self.end_children(_GRACE_SECONDS)
        self._telling.acquire(timeout=_GRACE_SECONDS)  # another thread of this process may be about to print
        os._exit(status)

    # the thread

    def _watch(self) -> None:
        """Check heartbeats, failures, children and signals twice a second."""
        signals, ticks, now = select.poll(), 0, time.monotonic()
        signals.register(self._pipe[0], select.POLLIN)
        while not self._closed.is_set():
            signals.poll(1000 * _TICK_SECONDS)
            before, now = now, time.monotonic()
            if self._closed.is_set():
                return
            self._take_signals()
            ticks += 1
            try:
                self._watch_store.set(f"beat/{self.place.rank}", str(ticks))
                if self._watch_store.check(["failure"]):
                    self._leave(self._cause(0) or 2)
                self._look_at_beats(min(now - before, 2 * _TICK_SECONDS))
            except RuntimeError:
                self._store_gone()
                return
            self._look_at_children()
            self._look_at_signals()
            if self.place.agent and os.getppid() != self._parent:
                self._parent = os.getppid()
                os.kill(os.getpid(), signal.SIGTERM)  # torchrun has gone: the same as a request to stop

    def _take_signals(self) -> None:
        with suppress(BlockingIOError):
            for number in os.read(self._pipe[0], 512):
                if number in NUMBERS:
                    self._signals.append((time.monotonic(), number))

    def _look_at_signals(self) -> None:
        """End the process if the main thread cannot act on a signal."""
        if not self._signals:
            return
        number = self._signals[0][1]
        hung = [rank for rank, seconds in self._silent.items() if seconds >= NOTICE_SECONDS]
        stopped = f"detrkit: stopped by {signal_name(number)}"
        if hung:
            self._conclude([f"{stopped}: {self.place.name(hung[0])} does not answer{self._advice()}"], 128 + number)
        again = [at for at, n in self._signals[1:] if n == signal.SIGINT]
        if (
            again and time.monotonic() - again[0] > _GRACE_SECONDS
        ):  # a second Ctrl-C that the main thread does not act on
            self._conclude([f"{stopped} at once{self._advice()}"], 128 + number)

    def _look_at_beats(self, elapsed: float) -> None:
        """Find processes without a heartbeat: the first process checks all, the others check the first.

        Args:
            elapsed: seconds since the last check; bounded, for the case that this process itself was suspended.
        """
        place = self.place
        for rank in range(1, place.world) if place.rank == 0 else (0,):
            beat = self._watch_store.get(f"beat/{rank}")
            alive = beat != self._beats.get(rank) or self._watch_store.check([f"done/{rank}"])
            self._beats[rank] = beat
            seconds = self._silent[rank] = 0.0 if alive else self._silent[rank] + elapsed
            if alive:
                self._noticed.discard(rank)
            elif seconds >= self.timeout:
                line = f"{place.name(rank)} has not answered for {seconds:.0f} s{self._advice()}"
                self._conclude([f"detrkit: error: {line}"], 2)
            elif seconds >= NOTICE_SECONDS and rank not in self._noticed:
                self._noticed.add(rank)
                words = f"{place.name(rank)} has not answered for {seconds:.0f} s"
                _say([f"detrkit: {words}; waiting, at most {self.timeout:.0f} s"])

    def _look_at_children(self) -> None:
        for rank, child in enumerate(self.children, self.place.rank + 1):
            code = child.poll()
            if code is None or code == 0 or self._cause(1) is not None:
                continue
            lines = []  # one that has an exit status has printed why
            if code < 0:
                words = f"{self.place.name(rank)} was ended by {signal_name(-code)}"
                lines = [f"detrkit: error: {words}{self._advice()}"]
            self._conclude(lines, _status(code))

    def _store_gone(self) -> None:
        """Handle the end of the process that hosted the store: it succeeded, or the main thread finds out too."""
        if self.place.agent:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if not self._closed.wait(_CAUSE_SECONDS + _GRACE_SECONDS):
            self._conclude([f"detrkit: error: {self._lost_words()}"], 2)

    def _conclude(self, lines: Sequence[str], status: int) -> None:
        """End the job from this thread."""
        self._leave(self._tell(lines, status))

    def _leave(self, status: int) -> None:
        """Make the main thread stop its work, or end the process if it cannot."""
        raise_in_main_thread(PeerError("another process of the command has failed and says why", status=status))
        if self._closed.wait(_GRACE_SECONDS) or not self._failing.acquire(blocking=False):
            time.sleep(LAST_SECONDS)  # the main thread ends the process
        self._end(status)


def peer_gone(error: BaseException) -> bool:
    """Return whether an error says that the process at the other end of a connection has gone or takes too long."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(_PEER_GONE.search(str(error)))


def _status(code: int | None) -> int:
    """Convert a return code of `subprocess` to a shell's exit status."""
    return 0 if code is None else code if code >= 0 else 128 - code


def _say(lines: Sequence[Any]) -> None:
    with suppress(OSError, ValueError):
        for line in lines:
            print(line, file=sys.stderr, flush=True)
