"""End of the processes that load images: with the program, also when an error ends it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from multiprocessing import util
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data._utils import signal_handling

from detrkit.utils.parent import end_with_parent
from detrkit.utils.signals import leave_signals_to_parent

# private to torch: without it, torch may say at the program's end that a worker was killed
_remove_worker_pids: Callable[[int], None] | None = getattr(signal_handling, "_remove_worker_pids", None)

_iterators: weakref.WeakSet[Any] = weakref.WeakSet()
_workers: weakref.WeakSet[BaseProcess] = weakref.WeakSet()  # outlive an iterator that is freed while one is stopped


def begin_worker(_: int, *, parent: int, lasts: bool) -> None:
    """Prepare a worker process; the first call that it makes.

    Args:
        _: its number, as torch gives it.
        parent: id of the process that started it.
        lasts: whether the thread that started it lasts as long as the process.
    """
    if lasts:  # elsewhere torch looks for the parent every five seconds, unless the worker is stopped
        end_with_parent(parent)
    leave_signals_to_parent()


def end_with_program(iterator: Any) -> None:
    """Have the workers of a torch DataLoader's iterator killed at the end of the program, if they still live then.

    After an error the iterator may be held by a traceback, and at the program's end torch no longer ends its workers.
    multiprocessing sends them SIGTERM, which they obey late (`leave_signals_to_parent`), or while stopped not at all,
    and waits for them.

    Args:
        iterator: what `iter(DataLoader)` gave; without workers nothing happens.
    """
    _iterators.add(iterator)
    _workers.update(getattr(iterator, "_workers", ()))


def end_workers() -> None:
    """Kill the workers that still live, for a program that ends at once."""
    for iterator in list(_iterators):
        give_up(iterator)
    for worker in list(_workers):
        if worker.is_alive():
            worker.kill()


def give_up(iterator: Any) -> None:
    """Kill the workers of a torch DataLoader's iterator, also stopped ones, for which torch would wait 10 s each.

    Args:
        iterator: what `iter(DataLoader)` gave; without workers nothing happens.
    """
    # else torch raises an error at the death of a worker
    if _remove_worker_pids is not None and getattr(iterator, "_worker_pids_set", False):
        _remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
    for worker in getattr(iterator, "_workers", ()):
        if worker.is_alive():
            worker.kill()


util.Finalize(None, end_workers, exitpriority=10)  # before multiprocessing waits; not run in forked workers
