"""Stages of work beside each other: each in a thread of its own, with so much between them that memory stays flat."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self, TypeVar

Item = TypeVar("Item")

_GRACE_SECONDS = 1.0  # for a thread that waits for a file system that does not answer


class _Stopped(BaseException):
    """Ends a stage whose results nobody wants any more."""


class _Failed(NamedTuple):
    """What a stage raised, on its way to whoever takes its items."""

    error: BaseException


class Stages:
    """A context in which iterables are run ahead of whoever reads them; at its end their threads end.

    Python gives way while Pillow decodes and compresses and while torch computes: these then run at once. Signals are
    handled by the main thread, which should be the last to read.
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

    def ahead(
        self,
        source: Iterable[Item],
        *,
        most: int,
        weight: Callable[[Item], int] | None = None,
        heaviest: int = 0,
        abandoned: bool = False,
    ) -> Iterator[Item]:
        """Yields the items of `source`, in its order, while a thread makes the next ones.

        Args:
            source: is read in the thread. What it raises is raised here, after the items before it.
            most: items that wait at any time, besides the one that is being made.
            weight: of an item, such as bytes.
            heaviest: the thread makes no further item while those that wait weigh more.
            abandoned: at the end of the context, the thread is not waited for: it only reads.
        """
        waiting: deque[tuple[Item | _Failed | None, int]] = deque()  # None: the end

        def run() -> None:
            try:
                for item in source:
                    self._put(waiting, item, 0 if weight is None else weight(item), most, heaviest)
                self._put(waiting, None, 0, most + 1, heaviest)
            except _Stopped:
                pass
            except BaseException as error:
                with self._changed:
                    waiting.append((_Failed(error), 0))
                    self._changed.notify_all()

        thread = threading.Thread(target=run, name="detrkit ahead", daemon=True)
        self._threads.append((thread, abandoned))
        thread.start()
        return self._taken(waiting)

    def _put(self, waiting: deque[Any], item: Any, weight: int, most: int, heaviest: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or not waiting or (len(waiting) < most and sum(w for _, w in waiting) <= heaviest)
            )
            if self._stopped:
                raise _Stopped
            waiting.append((item, weight))
            self._changed.notify_all()

    def _taken(self, waiting: deque[Any]) -> Iterator[Any]:
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
