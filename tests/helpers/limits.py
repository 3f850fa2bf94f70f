"""What an example may take, and what a refusal must be."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from detrkit.utils.errors import DetrkitError
from detrkit.utils.memory import machine_memory

SECONDS = 10  # for one example, on a slow machine with other work
MEMORY = 1 << 30  # bytes that an example may take beyond what is there
EXAMPLES = int(os.environ.get("DETRKIT_FUZZ_EXAMPLES", "40"))


class TooSlowError(AssertionError):
    """An example took longer than it may."""


@contextmanager
def bounds(seconds: int = SECONDS) -> Iterator[None]:
    """Ends what hangs, and refuses memory beyond `MEMORY`."""

    def late(*_: object) -> None:
        raise TooSlowError(f"no end after {seconds} s")

    machine_memory()  # is kept: of the machine, not of what follows
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limit = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limit[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limit)
        signal.signal(signal.SIGALRM, handler)


def one_line(error: DetrkitError, *, lists: bool = False) -> None:
    """Checks what a refusal says.

    Args:
        error: the refusal.
        lists: whether it may list weights that do not fit.
    """
    assert str(error).strip()
    assert len(str(error)) < (10_000 if lists else 2000)
    assert "\n" not in str(error) or (lists and "do not fit" in str(error)), str(error)
