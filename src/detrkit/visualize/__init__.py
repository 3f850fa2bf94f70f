"""Pictures: boxes and masks on images, contact and comparison sheets, curves."""

from detrkit.visualize.colors import color_of, palette
from detrkit.visualize.curves import confusion_heatmap, precision_recall_curves, save_figure, training_curves
from detrkit.visualize.draw import draw_boxes, draw_detections, draw_masks
from detrkit.visualize.sheet import SheetRow, as_detections, comparison_sheet, grid

__all__ = [
    "SheetRow",
    "as_detections",
    "color_of",
    "comparison_sheet",
    "confusion_heatmap",
    "draw_boxes",
    "draw_detections",
    "draw_masks",
    "grid",
    "palette",
    "precision_recall_curves",
    "save_figure",
    "training_curves",
]
