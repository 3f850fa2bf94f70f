"""The image and the masks of a page."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from detrkit.explanation.page.sections import Section, packed_masks, section

# (longest side in pixels, JPEG quality), the best first
_QUALITIES = ((1600, 90), (1600, 82), (1200, 82), (1000, 80), (800, 78), (640, 75), (400, 70))
MAX_MASK_SIDE = 800  # pixels; masks are drawn over the image at less than its size


def encoded_image(image: Image.Image, limit: int) -> tuple[str, tuple[int, int]]:
    """Return a data: address of the image as JPEG, and its (width, height) in pixels.

    Args:
        image: RGB.
        limit: bytes in the file; the smallest image is returned if none takes less.
    """
    address, size = "", image.size
    for side, quality in _QUALITIES:
        factor = min(1.0, side / max(image.size))
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        smaller = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0) if factor < 1 else image
        buffer = io.BytesIO()
        smaller.convert("RGB").save(buffer, "JPEG", quality=quality, optimize=True)
        address = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        if len(address) <= limit:
            break
    return address, size


def mask_section(masks: Tensor) -> Section:
    """Pack (N, H, W) bool masks, those of large images at a smaller size: section `masks` of (N, h, ceil(w / 8))."""
    height, width = masks.shape[1:]
    factor = min(1.0, MAX_MASK_SIDE / max(height, width))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    smaller = [functional.interpolate(mask[None, None].float(), size, mode="nearest")[0, 0].bool() for mask in masks]
    return section("masks", packed_masks(torch.stack(smaller)))


def mask_width(masks: Tensor) -> int:
    """Return the width in pixels of the masks that `mask_section` packs."""
    height, width = masks.shape[1:]
    return max(1, round(width * min(1.0, MAX_MASK_SIDE / max(height, width))))
