"""The published tables from one command, the original commands, and the original torch.hub entries."""

from detrkit.reproduction.running import reproduce
from detrkit.reproduction.tables import Difference, Figure, Reproduced

__all__ = ["Difference", "Figure", "Reproduced", "reproduce"]
