"""Large images in tiles: how an image is cut, and how the detections of its tiles become those of the image."""

from detrkit.tiling.tiles import Tiling

__all__ = ["Tiling"]
