"""A stopwatch for the parts of a program, attached to modules and functions from outside.

Models have no code for it: forward hooks on their children and wrappers of functions are installed for an iteration and
removed after it.
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
    """Timer that sums the seconds of each part. While a part runs within another, only the inner one is counted.

    Args:
        device: where the model runs; at the beginning and the end of each part the host waits for it.

    Attributes:
        seconds: of every part so far, in the order of their first start.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    def begin(self, part: str) -> None:
        """Start a part; the running part pauses."""
        self._settle()
        self.seconds.setdefault(part, 0.0)
        self._open.append(part)

    def end(self) -> None:
        """Stop the part that was started last; the part around it continues."""
        self._settle()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the body of the `with` statement as a part."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def _settle(self) -> None:
        """Add the time since the last change to the part that was running."""
        now = finished(self.device)
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def finished(device: torch.device) -> float:
    """Return the time in seconds after waiting until the device has finished its work."""
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
    """Attach the watch to modules and functions, and detach it at the end.

    Args:
        watch: to attach.
        modules: pairs of a module and the part of its forward pass.
        functions: triples of an owner (a module of Python, or an object), the name of its function, and its part.
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
    """Restore the owner's own attribute of that name; if it had none, its class's method becomes visible again."""
    if before is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, before)
