"""Images of a request: what they are is read from their header, before anything is decoded."""

from __future__ import annotations

from PIL import Image, ImageFile

from detrkit.data.images import as_rgb, open_image
from detrkit.serve.refusal import Refusal
from detrkit.utils.errors import DetrkitError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif", "image/tiff")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")


def open_checked(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Open an image and read its header.

    Args:
        data: the file.
        max_pixels: of its width times its height.

    Raises:
        Refusal: of another format (415), damaged (400), or of too many pixels (413).
    """
    if not data:
        raise Refusal(400, "image_empty", "the image has no bytes")
    if not _is_known(data):
        raise Refusal(415, "image_format", f"the image is of no format that is taken: {', '.join(FORMATS)}")
    too_large = Refusal(
        413, "image_too_large", f"the image has more than the {max_pixels / 1e6:g} million pixels that are taken"
    )
    try:
        image = open_image(data, formats=FORMATS)
    except DetrkitError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):  # Pillow's own bound
            raise too_large from error
        raise damaged() from error
    if image.width * image.height > max_pixels:
        raise too_large
    if 0 in image.size:
        raise damaged()
    return image


def decoded(image: ImageFile.ImageFile) -> Image.Image:
    """Decode an opened image to upright 8-bit RGB, as `Detector.predict` does.

    Raises:
        Refusal: it is damaged (400), or memory is short (413).
    """
    try:
        return as_rgb(image)
    except MemoryError as error:
        raise Refusal(413, "image_memory", "the image takes more memory than this server has") from error
    except (DetrkitError, ValueError) as error:
        raise damaged() from error


def damaged() -> Refusal:
    """Return the refusal of an image that cannot be decoded."""
    message = "the image is damaged or truncated, or its pixels have no known range"
    return Refusal(400, "image_damaged", message)


def _is_known(data: bytes) -> bool:
    return data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
