"""Signals that ask a command to stop: Ctrl-C, SIGTERM, SIGHUP (the terminal closes), SIGUSR1 (Slurm's warning)."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar, Self

from detrkit.utils.launch import FIRST_PROCESS

NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
_WORKER_GRACE_SECONDS = 300


class Stopped(KeyboardInterrupt):
    """Stop requested by a signal. As a KeyboardInterrupt it passes through handlers of errors.

    Attributes:
        number: of the signal.
        agreed: whether all processes of a run stop at the same place.
    """

    def __init__(self, number: int, *, agreed: bool = False) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.agreed = agreed


def number_of(stop: KeyboardInterrupt) -> int:
    """Return the signal that stopped a command."""
    return stop.number if isinstance(stop, Stopped) else int(signal.SIGINT)


def raise_in_main_thread(error: BaseException) -> None:
    """Raise an error in the main thread at its next Python instruction, if a `SignalWatch` is active.

    Args:
        error: raised whatever the watch does with signals.
    """
    SignalWatch.sent = error
    _thread.interrupt_main(signal.SIGTERM)


def command_watch() -> SignalWatch | None:
    """Return the watch of a command whose process may be ended; None where Python code called."""
    watch = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return watch if isinstance(watch, SignalWatch) and watch.of_program() else None


def signal_name(number: int) -> str:
    """Return the name of a signal: SIGTERM of 15."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class SignalWatch:
    """A context in which signals stop the work at once (`Stopped`) or, inside `waiting`, are only noted.

    Ctrl-C after another signal stops at once in any case: with `Stopped`, or, where a watch was made with `program`,
    by the end of the process, since an exception can be lost in a destructor or inside torch. A signal that the process
    was started to ignore (nohup) stays ignored. Outside the main thread nothing is watched.

    Args:
        program: the process is the command's own and may be ended. After the context any signal ends it silently, with
            its status: no work is left.

    Attributes:
        asked: number of the first signal that came, 0 for none.
        last_words: returns the message for the end of the process by a second Ctrl-C; a function of no arguments.
        sent: an error that another thread asks the main thread to raise; shared by all watches.
    """

    sent: ClassVar[BaseException | None] = None

    def __init__(self, *, program: bool = False) -> None:
        self.asked = 0
        self.last_words: Callable[[], str] = lambda: "stopped"
        self._program = program
        self._waits = False
        self._outer: SignalWatch | None = None
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> Self:
        self._terminals = [handle for handle in (1, 2) if os.isatty(handle)]
        for number in NUMBERS:
            previous = signal.getsignal(number)
            if previous in (signal.SIG_IGN, None):
                continue
            around = getattr(previous, "__self__", None)
            if isinstance(around, SignalWatch):
                self._outer = around
            try:
                signal.signal(number, self._ask)
            except ValueError:
                break  # not the main thread: the caller's main thread handles signals
            self._previous[number] = previous
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, self._end_quietly if self._program else handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Only note the first signal in `asked`, within the context.

        Raises:
            Stopped: at its end, if a signal came and was not handled.
        """
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self.asked:
            raise Stopped(self.asked)

    def _ask(self, number: int, _: FrameType | None) -> None:
        error, SignalWatch.sent = SignalWatch.sent, None
        if error is not None:
            raise error
        first = not self.asked
        self._note(number)
        if number == getattr(signal, "SIGHUP", None):
            self._leave_terminal()
        if first and self._waits:
            with suppress(RuntimeError, OSError):  # in the middle of another line
                _say("stopping as soon as the state is safe (Ctrl-C again: at once, without saving)")
        elif first:
            raise Stopped(number)
        elif number == int(signal.SIGINT):
            if self.of_program():
                self._end_process()
            raise Stopped(number)

    def _note(self, number: int) -> None:
        self.asked = self.asked or number
        if self._outer is not None:  # the handler must not be interrupted by the next one
            self._outer._note(number)

    def of_program(self) -> bool:
        """Return whether the process is a command's own and may be ended."""
        return self._program or (self._outer is not None and self._outer.of_program())

    def _leave_terminal(self) -> None:
        """Redirect the output of a terminal that is gone: writing would fail, and end the run before it is saved."""
        for handle in self._terminals:
            if not os.isatty(handle):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, handle)
                os.close(null)

    def _end_process(self) -> None:
        with suppress(OSError):
            if 1 in self._terminals:
                os.write(1, b"\x1b[?25h")  # a progress bar hides the cursor
            if FIRST_PROCESS:
                os.write(2, f"detrkit: {self.last_words()}\n".encode("utf-8", "replace"))
        for child in multiprocessing.active_children():  # workers that load images
            child.kill()
        os._exit(128 + signal.SIGINT)

    def _end_quietly(self, number: int, _: FrameType | None) -> None:
        with suppress(RuntimeError, OSError, ValueError):
            sys.stdout.flush()
        os._exit(128 + (self.asked or number))


def leave_signals_to_parent() -> None:
    """Leave signals to the whole group (a terminal's Ctrl-C, a job's end) to the parent; called in worker processes.

    The parent finishes its step first, for which it needs the worker. SIGTERM is handled late: with it the parent ends
    a worker that does not end by itself.
    """
    for number in NUMBERS:
        signal.signal(number, _obey_late if number == signal.SIGTERM else signal.SIG_IGN)


def _obey_late(*_: Any) -> None:
    signal.alarm(_WORKER_GRACE_SECONDS)


def _say(line: str) -> None:
    """Print a line, above a progress bar if there is one; rich is not imported in a handler of a signal."""
    module = sys.modules.get("detrkit.utils.console")
    console = getattr(module, "console", None)
    if console is not None:
        console.print(line)
    elif FIRST_PROCESS:
        print(line, flush=True)
