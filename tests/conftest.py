"""Shared by all tests; its place puts `tests/` on the path, so that `import goldens` finds the reference numbers."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
