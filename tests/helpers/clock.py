"""A clock for tests of measurements, so that they do not depend on the load of the machine."""

from __future__ import annotations

import types

import pytest

from detrkit.profiling import timer


class Clock:
    """A clock of `detrkit.profiling` that moves when told: `clock.now += 1`.

    Args:
        monkeypatch: of the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(timer, "time", types.SimpleNamespace(perf_counter=lambda: self.now))
