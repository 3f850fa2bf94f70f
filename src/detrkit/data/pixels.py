"""Conversion of Pillow images of every mode to 8-bit RGB; deep ones are scaled from the range that they really use.

Most files do not say how many bits are meant: cameras and scanners keep 12 bits in 16, programs 8 or 16 bits in 32.
So the largest value of an image decides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from detrkit.utils.errors import DetrkitError

_FULL_SCALES = (0xFF, 0xFFF, 0xFFFF)  # largest values of 8, 12 and 16 bits
# their readers scale the largest value that the file declares to 16 bits
_SCALED_BY_PILLOW = frozenset({"PPM", "JPEG2000"})


def to_rgb(image: Image.Image, name: object) -> Image.Image:
    """Convert the pixels to 8-bit RGB; an image that is RGB already is returned itself, loaded.

    Gray, palette, CMYK, YCbCr, LAB and HSV images are converted, transparency is dropped. Whole numbers of 16 and 32
    bits are scaled from 12 bits if no value is above 4095, else from 16 bits; those of 32 bits whose values are all
    below 256 are 8-bit. Floating-point numbers are scaled from 0..1 if no value is above 1, else are 0..255.

    Args:
        image: of any mode, orientation ignored.
        name: what messages call it.

    Raises:
        DetrkitError: whole numbers below 0 or above 65535, or floating-point ones below 0, above 255 or not finite.
    """
    if image.mode == "RGB":
        image.load()
        return image  # `convert` would copy it: 0.2 ms for a COCO image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(image, name)).convert("RGB")
    if image.mode == "La":  # gray with premultiplied alpha, which `convert` does not know
        image = image.convert("LA")
    return image.convert("RGB")


def full_scale(image: Image.Image) -> int | None:
    """Return the value that becomes 255 in `to_rgb`; None for images of 8 bits per channel, which keep theirs.

    Raises:
        DetrkitError: as in `to_rgb`.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return None
    values = np.asarray(image)
    return _full_scale(image, values.min(initial=0), values.max(initial=0), "the image")


def _full_scale(image: Image.Image, low: Any, high: Any, name: object) -> int:
    """Do as `full_scale` does, for an image whose smallest and largest value are known."""
    if image.mode == "F":
        # not finite: NaN compares false
        if not (low >= 0 and high <= 255):
            raise DetrkitError(
                f"{name}: floating-point pixels from {low:g} to {high:g}: scale them to 0..1 or to 0..255, "
                "or save the image with 8 or 16 bits"
            )
        return 1 if high <= 1 else 255
    if low < 0 or high > _FULL_SCALES[-1]:
        bits = 32 if image.mode == "I" else 16
        raise DetrkitError(
            f"{name}: {bits}-bit pixels from {low} to {high}: only 0..255 (8 bits), 0..4095 "
            "(12 bits) and 0..65535 (16 bits) are known; save the image in one of these ranges"
        )
    if image.format in _SCALED_BY_PILLOW:
        return _FULL_SCALES[-1]
    return next(s for s in (_FULL_SCALES if image.mode == "I" else _FULL_SCALES[1:]) if s >= high)


def _eight_bits(image: Image.Image, name: object) -> np.ndarray:
    """Scale an image of one deep channel to (H, W) uint8; `Image.convert` would clip it to white.

    Raises:
        DetrkitError: as in `to_rgb`.
    """
    values = np.asarray(image)
    full = _full_scale(image, values.min(initial=0), values.max(initial=0), name)
    if image.mode == "F":
        return np.rint(values * np.float32(255 // full)).astype(np.uint8)
    # value * 255 / full, rounded
    return ((values.astype(np.uint32) * 255 + full // 2) // full).astype(np.uint8)
