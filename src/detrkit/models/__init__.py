"""The published models, their losses and what turns outputs into results."""

from detrkit.models.batch import Batch
from detrkit.models.outputs import Capture, Outputs, Target

__all__ = ["Batch", "Capture", "Outputs", "Target"]
