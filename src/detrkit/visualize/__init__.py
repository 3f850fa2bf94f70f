"""Pictures: boxes and masks on images, contact and comparison sheets, curves."""

from detrkit.visualize.colors import color_of, palette
from detrkit.visualize.draw import draw_boxes, draw_detections, draw_masks
from detrkit.visualize.sheet import SheetRow, as_detections, comparison_sheet, grid

__all__ = [
    "SheetRow",
    "as_detections",
    "color_of",
    "comparison_sheet",
    "draw_boxes",
    "draw_detections",
    "draw_masks",
    "grid",
    "palette",
]
