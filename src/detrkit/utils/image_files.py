"""Encoding of image files; `write_atomic` writes them, as Pillow's own writing does not report why it failed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from detrkit.utils.overwriting import IMAGE_MARK

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def image_bytes(
    image: Image.Image | np.ndarray, suffix: str = ".png", *, marked: bool = False, **options: Any
) -> bytes:
    """Encode an image as the content of an image file.

    Args:
        image: an image, or (H, W, 3) uint8 RGB.
        suffix: .png, .jpg or .jpeg, in any case.
        marked: store in it that detrkit wrote it; see `overwriting.check_marked`.
        **options: Pillow's for the format: quality, compress_level, ...
    """
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    kind = _FORMATS[suffix.lower()]
    if marked and kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("Comment", IMAGE_MARK)
    elif marked:
        options["comment"] = IMAGE_MARK
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()
