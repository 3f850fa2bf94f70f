"""Drawing: boxes, masks and panoptic segments on images, contact and comparison sheets, curves."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from detrkit.visualize.colors import color_of, instance_color, palette
from detrkit.visualize.draw import draw_boxes, draw_detections, draw_masks
from detrkit.visualize.panoptic import draw_panoptic
from detrkit.visualize.sheet import SheetRow, as_detections, comparison_sheet, grid, models_sheet, panoptic_sheet

if TYPE_CHECKING:
    from detrkit.visualize.curves import (
        confusion_heatmap,
        precision_recall_curves,
        save_figure,
        score_curves,
        study_curves,
        training_curves,
    )
    from detrkit.visualize.labels import label_plots

__all__ = [
    "SheetRow",
    "as_detections",
    "color_of",
    "comparison_sheet",
    "confusion_heatmap",
    "draw_boxes",
    "draw_detections",
    "draw_masks",
    "draw_panoptic",
    "grid",
    "instance_color",
    "label_plots",
    "models_sheet",
    "palette",
    "panoptic_sheet",
    "precision_recall_curves",
    "save_figure",
    "score_curves",
    "study_curves",
    "training_curves",
]

_PLOTS = {
    **dict.fromkeys(
        (
            "confusion_heatmap",
            "precision_recall_curves",
            "save_figure",
            "score_curves",
            "study_curves",
            "training_curves",
        ),
        "curves",
    ),
    "label_plots": "labels",
}


def __getattr__(name: str) -> Any:
    """Import the plots on first use: matplotlib takes 0.8 s, which drawing boxes does not need."""
    if name not in _PLOTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"detrkit.visualize.{_PLOTS[name]}"), name)
