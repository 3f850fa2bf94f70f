"""A stopwatch for the parts of a program, and its fixing to modules and functions from outside.

Models know nothing of it: forward hooks on their children and covers of functions are put there for a turn and taken
off after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

_ABSENT = object()


class Stopwatch:
    """Adds up the seconds of each part. While a part runs within another, only the inner one is counted.

    Args:
        device: where work is done; at the beginning and the end of each part the host waits for it.

    Attributes:
        seconds: of every part so far, in the order of their first beginning.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    def begin(self, part: str) -> None:
        """A part begins; that which was running waits."""
        self._settle()
        self.seconds.setdefault(part, 0.0)
        self._open.append(part)

    def end(self) -> None:
        """The part that began last ends; that around it goes on."""
        self._settle()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done within belongs to a part."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def _settle(self) -> None:
        """Gives the time since the last change to the part that was running."""
        now = finished(self.device)
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def finished(device: torch.device) -> float:
    """The time in seconds, when all that the device was given to do is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


@contextmanager
def watched(
    watch: Stopwatch,
    *,
    modules: Sequence[tuple[nn.Module, str]] = (),
    functions: Sequence[tuple[Any, str, str]] = (),
) -> Iterator[None]:
    """Fixes the watch to modules and functions; afterwards all is as it was.

    Args:
        watch: to fix.
        modules: pairs of a module and the part that its forward pass is.
        functions: owner (a module of Python, or an object), name of its function, and the part that it is.
    """
    with ExitStack() as stack:
        for module, part in modules:
            begin = module.register_forward_pre_hook(lambda *_, part=part: watch.begin(part))
            stack.callback(begin.remove)
            end = module.register_forward_hook(lambda *_: watch.end(), always_call=True)
            stack.callback(end.remove)
        for owner, name, part in functions:
            before = vars(owner).get(name, _ABSENT)
            setattr(owner, name, _covered(getattr(owner, name), watch, part))
            stack.callback(_uncover, owner, name, before)
        yield


def _covered(function: Callable[..., Any], watch: Stopwatch, part: str) -> Callable[..., Any]:
    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with watch.part(part):
            return function(*args, **kwargs)

    return timed


def _uncover(owner: Any, name: str, before: Any) -> None:
    """Puts back what the owner itself had under that name; methods of its class show again by themselves."""
    if before is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, before)
