"""Training and evaluation; each name is imported at its first use: checks of a run's folder need no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detrkit.engine.evaluating import evaluate as evaluate
    from detrkit.engine.result import RunResult as RunResult
    from detrkit.engine.training import train as train

_HOMES = {"RunResult": "training", "evaluate": "evaluating", "train": "training"}

__all__ = ["RunResult", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
