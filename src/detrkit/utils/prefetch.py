"""Prefetching: stages of work that run in threads, with bounded queues between them so that memory stays flat."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self, TypeVar

Item = TypeVar("Item")

_GRACE_SECONDS = 1.0  # for a thread that waits for an unresponsive file system


class _Stopped(BaseException):
    """Signal to end a stage whose results are no longer needed."""


class _Failed(NamedTuple):
    """Exception of a stage, passed to the reader of its items."""

    error: BaseException


class Prefetcher:
    """A context in which iterables are computed ahead of their readers; its threads end with it.

    Pillow and torch release the GIL while they decode, compress and compute, so stages run in parallel. Signals are
    handled by the main thread, which should be the last reader.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stopped = False
        self._threads: list[tuple[threading.Thread, bool]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread, abandoned in self._threads:
            thread.join(_GRACE_SECONDS if abandoned else None)

    def prefetch(
        self,
        source: Iterable[Item],
        *,
        max_items: int,
        weight: Callable[[Item], int] | None = None,
        max_weight: int = 0,
        abandoned: bool = False,
    ) -> Iterator[Item]:
        """Yield the items of `source`, in its order, while a thread makes the next ones.

        Args:
            source: is read in the thread. Its exceptions are raised here, after the items before them.
            max_items: items that wait at any time, besides the one that is being made.
            weight: of an item, such as bytes.
            max_weight: the thread makes no further item while the waiting ones weigh more.
            abandoned: do not wait for the thread at the end of the context, since it only reads.
        """
        waiting: deque[tuple[Item | _Failed | None, int]] = deque()  # None: the end

        def run() -> None:
            try:
                for item in source:
                    self._put(waiting, item, 0 if weight is None else weight(item), max_items, max_weight)
                self._put(waiting, None, 0, max_items + 1, max_weight)
            except _Stopped:
                pass
            except BaseException as error:
                with self._changed:
                    waiting.append((_Failed(error), 0))
                    self._changed.notify_all()

        thread = threading.Thread(target=run, name="detrkit prefetch", daemon=True)
        self._threads.append((thread, abandoned))
        thread.start()
        return self._items(waiting)

    def _put(self, waiting: deque[Any], item: Any, weight: int, max_items: int, max_weight: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._stopped
                    or not waiting
                    or (len(waiting) < max_items and sum(w for _, w in waiting) <= max_weight)
                )
            )
            if self._stopped:
                raise _Stopped
            waiting.append((item, weight))
            self._changed.notify_all()

    def _items(self, waiting: deque[Any]) -> Iterator[Any]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or waiting)
                if self._stopped:
                    raise _Stopped
                item, _ = waiting.popleft()
                self._changed.notify_all()
            if item is None:
                return
            if isinstance(item, _Failed):
                raise item.error
            yield item
