"""The published models, their losses and the post-processing of their outputs."""

from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Capture, Outputs, Target

# isort: off
# the models register themselves when they are imported: in this order `list_models` names them
from detrkit.models import detr as detr
from detrkit.models import deformable_detr as deformable_detr
from detrkit.models import hybrid as hybrid
from detrkit.models import dino as dino
from detrkit.models import rtdetr as rtdetr
from detrkit.models import demo as demo
# isort: on

__all__ = ["Batch", "Capture", "Outputs", "Target"]
