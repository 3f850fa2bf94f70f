"""The content of image files. Written whole by `write_atomic`: Pillow's own writing does not say why it failed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def image_bytes(image: Image.Image | np.ndarray, suffix: str = ".png", **options: Any) -> bytes:
    """The content of an image file.

    Args:
        image: an image, or (H, W, 3) uint8 RGB.
        suffix: .png, .jpg or .jpeg, in any case.
        **options: Pillow's for the format: quality, compress_level, ...
    """
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, format=_FORMATS[suffix.lower()], **options)
    return buffer.getvalue()
