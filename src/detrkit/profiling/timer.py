"""A timer for the parts of a program. Models have no code for it: it is attached to their modules by forward hooks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


class Timer:
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
def instrument(timer: Timer, modules: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
    """Attach a timer to modules, and detach it at the end.

    Args:
        timer: to attach.
        modules: pairs of a module and the part of its forward pass.
    """
    with ExitStack() as stack:
        for module, part in modules:
            begin = module.register_forward_pre_hook(lambda *_, part=part: timer.begin(part))
            stack.callback(begin.remove)
            end = module.register_forward_hook(lambda *_: timer.end(), always_call=True)
            stack.callback(end.remove)
        yield
