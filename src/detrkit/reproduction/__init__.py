"""`reproduce`: evaluation of published checkpoints, with a table of published and measured metrics."""

from detrkit.reproduction.running import reproduce
from detrkit.reproduction.tables import Difference, Figure, Reproduced

__all__ = ["Difference", "Figure", "Reproduced", "reproduce"]
