"""The published models, their losses and the post-processing of their outputs."""

from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Capture, Outputs, Target

__all__ = ["Batch", "Capture", "Outputs", "Target"]
