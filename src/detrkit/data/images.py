"""Images of a dataset, in files or in rows of parquet files: their size from the header, and their pixels as RGB.

Pillow decodes everything. torchvision's decoder gives the same pixels (both are libjpeg-turbo) in 1.4 ms instead of
1.7 ms per COCO image, but is deprecated since torchvision 0.29 and knows neither BMP nor TIFF.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torchvision import tv_tensors

from detrkit.data.sources import ImageSource
from detrkit.errors import DetrkitError

# What PIL opens among the files of an image folder; others (.txt, .DS_Store) are not images.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"})
# The usual formats and the suffix that goes with each.
SUFFIX_OF = {
    "JPEG": ".jpg",
    "MPO": ".jpg",  # a JPEG with further images behind it, as some cameras write
    "PNG": ".png",
    "BMP": ".bmp",
    "TIFF": ".tif",
    "WEBP": ".webp",
    "GIF": ".gif",
    "PPM": ".ppm",
}
_DRAWINGS = ("EPS", "WMF")  # Pillow starts other programs for them
_ORIENTATION = 0x0112
# How the pixels are turned upright for each EXIF orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _open(file: ImageSource) -> ImageFile.ImageFile:
    """The opened image, its header read.

    Raises:
        DetrkitError: the file is missing or no image.
    """
    try:
        return Image.open(file if isinstance(file, Path) else BytesIO(file.read()))
    except FileNotFoundError as error:
        raise DetrkitError(f"{file}: image file is missing") from error
    except UnidentifiedImageError as error:
        raise DetrkitError(f"{file}: not an image that can be read (empty, damaged or of an unknown format)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DetrkitError(f"{file}: cannot read the image ({error})") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) when there is none or the tag is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError):
        return 1
    return value if value in _UPRIGHT else 1


def image_size(file: ImageSource) -> tuple[int, int]:
    """(height, width) in pixels after EXIF orientation; reads only the header.

    Raises:
        DetrkitError: the file is missing or no image.
    """
    with _open(file) as image:
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def stored_size(file: ImageSource) -> tuple[int, int]:
    """(height, width) in pixels as stored, before EXIF orientation.

    Raises:
        DetrkitError: the file is missing or no image.
    """
    with _open(file) as image:
        return image.height, image.width


def orientation(file: ImageSource) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) when there is none; reads only the header.

    Raises:
        DetrkitError: the file is missing or no image.
    """
    with _open(file) as image:
        return _orientation(image)


def checked_format(file: ImageSource) -> str:
    """The format of an image as Pillow calls it ("JPEG"), once it is sure that the file is an image.

    The header of a usual format says so; the checksums of a PNG are checked too (0.4 ms for a COCO image, where
    decoding takes 16). Other formats are decoded: Pillow takes some of them for images by their first byte alone.

    Raises:
        DetrkitError: missing, no regular file, no image, or a drawing without pixels (EPS, WMF).
    """
    if isinstance(file, Path) and not file.is_file():
        raise DetrkitError(f"{file}: image file is missing" if not file.exists() else f"{file}: not a regular file")
    with _open(file) as image:
        form = str(image.format)
        try:
            if form in _DRAWINGS:
                raise DetrkitError(f"{file}: a drawing ({form}), not an image of pixels; save it as PNG")
            if form in SUFFIX_OF:
                image.verify()
            else:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DetrkitError(f"{file}: the image is damaged or truncated ({error})") from error
    return form


def misfit(file: ImageSource, size: tuple[int, int]) -> str | None:
    """Why the image cannot have annotations for (height, width) = `size`, or None; reads only the header."""
    try:
        upright = image_size(file)
        if size == upright or size == stored_size(file):
            return None
    except DetrkitError as error:
        return str(error).removeprefix(f"{file}: ")
    return f"is {upright[1]}x{upright[0]} pixels but its annotations say {size[1]}x{size[0]} (width x height)"


def read_rgb(
    file: ImageSource, size: tuple[int, int] | None = None, *, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """The picture as 8-bit RGB, turned upright by its EXIF orientation.

    Gray, palette, CMYK and 16-bit images become RGB; transparency is dropped (as the published code does).

    Args:
        file: the image.
        size: (height, width) that the annotations speak of. When the stored pixels have it and the upright ones have
            not, the image was annotated as stored, and is left so.
        at_least: (height, width) in pixels to which the picture will be made smaller. A JPEG is then decoded at a half,
            a quarter or an eighth of its size, the smallest that still has so many pixels: its far edges may lie up
            to seven pixels of the file further out.

    Raises:
        DetrkitError: missing, damaged or truncated file, or its size is not `size`.
    """
    with _open(file) as image:
        orientation = _orientation(image)
        stored = image.height, image.width
        upright = stored[::-1] if orientation >= 5 else stored
        if size is not None and size not in (upright, stored):
            raise DetrkitError(
                f"{file}: the image is {upright[1]}x{upright[0]} pixels but its annotations say {size[1]}x{size[0]} "
                "(width x height); correct the size or the image file"
            )
        turned = orientation != 1 and (size is None or size == upright)
        try:
            if at_least is not None:
                image.draft(image.mode, at_least if turned and orientation >= 5 else at_least[::-1])
            picture = _to_rgb(image, file)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DetrkitError(f"{file}: the image is damaged or truncated ({error})") from error
    if turned:
        picture = picture.transpose(_UPRIGHT[orientation])
    return picture


def _to_rgb(image: Image.Image, file: ImageSource) -> Image.Image:
    """Any mode of PIL as RGB; `Image.convert` alone would clip 16-bit values to white."""
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DetrkitError(f"{file}: floating-point pixels have no fixed range; save the image with 8 or 16 bits")
    if image.mode == "RGB":
        image.load()
        return image  # `convert` would copy it: 0.2 ms for a COCO image
    return image.convert("RGB")


def decode(
    file: ImageSource, size: tuple[int, int] | None = None, *, at_least: tuple[int, int] | None = None
) -> tv_tensors.Image:
    """(3, H, W) uint8 RGB; arguments and errors as `read_rgb`.

    The memory stays interleaved (channels last), the order in which torch resizes uint8 without repacking.
    """
    array = np.array(read_rgb(file, size, at_least=at_least))  # (H, W, 3), a writable copy
    return tv_tensors.Image(torch.from_numpy(array).permute(2, 0, 1))
