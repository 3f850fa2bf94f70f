"""Shared by all tests; its place puts `tests/` on the path, so that `import goldens` finds the reference numbers."""

from __future__ import annotations

import os

import pytest
import torch

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
