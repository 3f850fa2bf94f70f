"""Average precision and recall as COCO defines them, per class, with curves, confusion and a report."""

from detrkit.evaluate.coco import evaluate_detections
from detrkit.evaluate.confusion import Confusion, confusion_matrix
from detrkit.evaluate.curves import PrecisionRecall
from detrkit.evaluate.evaluator import DetectionEvaluator
from detrkit.evaluate.ground_truth import GroundTruth
from detrkit.evaluate.metrics import Metrics
from detrkit.evaluate.report import write_report
from detrkit.evaluate.result_table import ResultTable

__all__ = [
    "Confusion",
    "DetectionEvaluator",
    "GroundTruth",
    "Metrics",
    "PrecisionRecall",
    "ResultTable",
    "confusion_matrix",
    "evaluate_detections",
    "write_report",
]
