"""Shared by all tests. `tests/` is on the path: `import goldens` finds the reference numbers, `helpers` the rest."""

from __future__ import annotations

import os
import signal

import pytest

# Torch's threads of several workers (`-n 2`) would wait for each other's cores; commands that tests start inherit it.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it

import torch  # noqa: E402  (libgomp reads both when torch is imported)

from detrkit.utils.signals import NUMBERS  # noqa: E402

# Without a GPU, Triton's kernels run in its interpreter. Triton looks when imported, which torch alone does not do.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items) -> None:
    # long tests first: at the end one worker would be alone with them
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
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
