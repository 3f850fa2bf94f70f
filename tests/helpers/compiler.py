"""A stand-in for the compiler of `detrkit.models.compiled`, and for its clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from detrkit.models import compiled


class Compiler:
    """Stands in for the compiler; the passes of its graphs take half the time.

    Attributes:
        graphs: that were made.
        passes: of graphs.
    """

    def __init__(self) -> None:
        self.graphs, self.passes, self.now, self.way = 0, 0, 0.0, 2.0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self.graphs += 1

        def graph(*arguments: Any) -> Any:
            self.passes, self.way = self.passes + 1, 1.0
            return function(*arguments)

        return graph

    def read(self, device: object) -> float:
        self.now, self.way = self.now + self.way, 2.0
        return self.now

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Compiler:
        """Take the place of the compiler and of the clock."""
        monkeypatch.setattr(compiled, "_by_inductor", self)
        monkeypatch.setattr(compiled, "_now", self.read)
        return self
