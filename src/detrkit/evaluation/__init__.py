"""Average precision as COCO defines it and panoptic quality, per class, with curves, confusion and a report."""

from detrkit.evaluation.coco import evaluate_detections
from detrkit.evaluation.confusion import Confusion, confusion_matrix
from detrkit.evaluation.curves import PrecisionRecall
from detrkit.evaluation.evaluator import DetectionEvaluator
from detrkit.evaluation.ground_truth import DetectionGroundTruth
from detrkit.evaluation.metrics import Metrics
from detrkit.evaluation.panoptic import PanopticEvaluator
from detrkit.evaluation.panoptic_files import evaluate_panoptic, read_panoptic, write_panoptic
from detrkit.evaluation.panoptic_ground_truth import PanopticGroundTruth
from detrkit.evaluation.panoptic_metrics import PanopticMetrics
from detrkit.evaluation.report import report_folder, write_report
from detrkit.evaluation.result_table import ResultTable
from detrkit.evaluation.scores import OperatingPoint, ScoreCurves

__all__ = [
    "Confusion",
    "DetectionEvaluator",
    "DetectionGroundTruth",
    "Metrics",
    "OperatingPoint",
    "PanopticEvaluator",
    "PanopticGroundTruth",
    "PanopticMetrics",
    "PrecisionRecall",
    "ResultTable",
    "ScoreCurves",
    "confusion_matrix",
    "evaluate_detections",
    "evaluate_panoptic",
    "read_panoptic",
    "report_folder",
    "write_panoptic",
    "write_report",
]
