"""Shared by all tests. `tests/` is on the path: `import goldens` finds the reference numbers, `helpers` the rest."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from detrkit.utils.signals import NUMBERS

# Without a GPU, Triton's kernels run in its interpreter. Triton looks when imported, which torch alone does not do.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_signals():
    """Give each test the handlers pytest began with: after the watch of a program, the next signal ends the process."""
    handlers = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)
