"""Pictures: boxes and masks on images, contact and comparison sheets, curves."""

from detrkit.visualize.colors import color_of, palette
from detrkit.visualize.draw import draw_boxes, draw_detections, draw_masks

__all__ = ["color_of", "draw_boxes", "draw_detections", "draw_masks", "palette"]
