"""`reproduce`: evaluation of published checkpoints, with a table of published and measured metrics."""

from detrkit.reproduction.running import reproduce
from detrkit.reproduction.tables import (
    Difference,
    Figure,
    MetricComparison,
    Reproduced,
    ReproductionResult,
    SettingDifference,
)

__all__ = [
    "Difference",
    "Figure",
    "MetricComparison",
    "Reproduced",
    "ReproductionResult",
    "SettingDifference",
    "reproduce",
]
