"""The published models, their losses and what turns outputs into results."""

from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Capture, Outputs, Target

__all__ = ["Batch", "Capture", "Outputs", "Target"]
