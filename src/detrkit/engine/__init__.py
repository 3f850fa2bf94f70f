"""Training and evaluation."""

from detrkit.engine.evaluating import evaluate
from detrkit.engine.training import RunResult, train

__all__ = ["RunResult", "evaluate", "train"]
