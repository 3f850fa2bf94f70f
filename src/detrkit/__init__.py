"""The toolkit for the DETR family: train, evaluate, explain and use detection transformers.

The names below are the public API. They are imported at their first use, so that `import detrkit` costs next to
nothing and a command that needs no model never loads one.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detrkit import convert as convert
    from detrkit import ops as ops
    from detrkit import serve as serve
    from detrkit.backbones.base import Backbone as Backbone
    from detrkit.backbones.base import register_backbone as register_backbone
    from detrkit.batch.folder import predict_folder as predict_folder
    from detrkit.config import load_config as load_config
    from detrkit.data import open_dataset as open_dataset
    from detrkit.data.readers import register_reader as register_reader
    from detrkit.detector import Detector as Detector
    from detrkit.detector import load as load
    from detrkit.engine import evaluate as evaluate
    from detrkit.engine import train as train
    from detrkit.engine.callbacks import Callback as Callback
    from detrkit.engine.facts import choose_config as choose_config
    from detrkit.engine.loggers import register_logger as register_logger
    from detrkit.evaluation import evaluate_detections as evaluate_detections
    from detrkit.evaluation import evaluate_panoptic as evaluate_panoptic
    from detrkit.explanation import Explanation as Explanation
    from detrkit.explanation.explain import explain as explain
    from detrkit.exporting.export import export as export
    from detrkit.exporting.report import ExportReport as ExportReport
    from detrkit.models.base import DetectionModel as DetectionModel
    from detrkit.models.criterion import build_criterion as build_criterion
    from detrkit.models.registry import list_models as list_models
    from detrkit.models.registry import register_model as register_model
    from detrkit.reproduction import reproduce as reproduce
    from detrkit.structures.batch import Batch as Batch
    from detrkit.structures.detections import Detections as Detections
    from detrkit.structures.outputs import Outputs as Outputs
    from detrkit.structures.outputs import Target as Target
    from detrkit.structures.panoptic import PanopticResult as PanopticResult
    from detrkit.utils.errors import DetrkitError as DetrkitError
    from detrkit.video import iter_video as iter_video
    from detrkit.video import predict_video as predict_video
    from detrkit.weights.build import build_model as build_model

from detrkit.utils import moved as _moved

__version__ = "0.1.0"

_moved.install()

# public name -> the module that defines it
_HOMES = {
    "Backbone": "detrkit.backbones.base",
    "Batch": "detrkit.structures.batch",
    "Callback": "detrkit.engine.callbacks",
    "DetectionModel": "detrkit.models.base",
    "Detections": "detrkit.structures.detections",
    "Detector": "detrkit.detector",
    "DetrkitError": "detrkit.utils.errors",
    "Explanation": "detrkit.explanation",
    "ExportReport": "detrkit.exporting",
    "Outputs": "detrkit.structures.outputs",
    "PanopticResult": "detrkit.structures.panoptic",
    "Target": "detrkit.structures.outputs",
    "build_criterion": "detrkit.models.criterion",
    "build_model": "detrkit.weights.build",
    "choose_config": "detrkit.engine.facts",
    "evaluate": "detrkit.engine",
    "evaluate_detections": "detrkit.evaluation",
    "evaluate_panoptic": "detrkit.evaluation",
    "explain": "detrkit.explanation",
    "export": "detrkit.exporting",
    "iter_video": "detrkit.video",
    "list_models": "detrkit.models.registry",
    "load": "detrkit.detector",
    "load_config": "detrkit.config",
    "open_dataset": "detrkit.data",
    "predict_folder": "detrkit.batch.folder",
    "predict_video": "detrkit.video",
    "register_backbone": "detrkit.backbones.base",
    "register_logger": "detrkit.engine.loggers",
    "register_model": "detrkit.models.registry",
    "register_reader": "detrkit.data.readers",
    "reproduce": "detrkit.reproduction",
    "train": "detrkit.engine",
}
_PACKAGES = ("convert", "ops", "serve")

__all__ = [
    "Backbone",
    "Batch",
    "Callback",
    "DetectionModel",
    "Detections",
    "Detector",
    "DetrkitError",
    "Explanation",
    "ExportReport",
    "Outputs",
    "PanopticResult",
    "Target",
    "__version__",
    "build_criterion",
    "build_model",
    "choose_config",
    "convert",
    "evaluate",
    "evaluate_detections",
    "evaluate_panoptic",
    "explain",
    "export",
    "iter_video",
    "list_models",
    "load",
    "load_config",
    "open_dataset",
    "ops",
    "predict_folder",
    "predict_video",
    "register_backbone",
    "register_logger",
    "register_model",
    "register_reader",
    "reproduce",
    "serve",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"detrkit.{name}")
    elif (present := _moved.present_name(f"detrkit.{name}")) is not None:  # set once it was imported anywhere, earlier
        warnings.warn(f"detrkit.{name} is now {present}", DeprecationWarning, stacklevel=2)
        value = importlib.import_module(present)
    else:
        raise AttributeError(f"module 'detrkit' has no attribute {name!r}")
    globals()[name] = value  # the next access is an ordinary attribute lookup
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
