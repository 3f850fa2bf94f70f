"""Images of every kind, in files, in rows of parquet files or in memory: their size, and their pixels as RGB.

Training, evaluation and prediction all get their pixels from `read_rgb` (a file) or `as_rgb` (anything): 8-bit RGB,
turned upright by the EXIF orientation once.

Pillow decodes everything. torchvision's decoder gives the same pixels (both are libjpeg-turbo) in 1.4 ms instead of
1.7 ms per COCO image, but is deprecated since torchvision 0.29 and knows neither BMP nor TIFF.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from detrkit.data.pixels import full_scale, to_rgb
from detrkit.data.sources import ImageSource, TableImage
from detrkit.utils.documents import require_regular
from detrkit.utils.errors import DetrkitError
from detrkit.utils.image_names import COMMON_SUFFIXES as COMMON_SUFFIXES
from detrkit.utils.image_names import SUFFIXES as SUFFIXES
from detrkit.utils.image_names import is_image_file as is_image_file
from detrkit.utils.visible import first_line
from detrkit.utils.vision import tv_tensors

ImageInput = str | Path | TableImage | bytes | Image.Image | np.ndarray | Tensor

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
_TIFF_SIZE = 257, 256  # tags: height, width
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
_BACK = {6: 8, 8: 6}  # the orientation that undoes another; the others undo themselves
_PNG_CHUNKS = 100_000  # skipped at most; encoders write 8 to 64 kB in each
_ORIENTATION_CARRIERS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # of `Image.info`


class ImageHeader(NamedTuple):
    """Sizes and orientation of an image, known before it is decoded.

    Attributes:
        stored: (height, width) in pixels as stored.
        upright: (height, width) in pixels after EXIF orientation.
        orientation: of EXIF, 1 (upright) to 8; 1 when there is none or the tag is damaged.
    """

    stored: tuple[int, int]
    upright: tuple[int, int]
    orientation: int


def _refused(name: object, problem: str, error: Exception) -> DetrkitError:
    """Turn what Pillow raised on a missing or damaged image into an error of one line."""
    if isinstance(error, FileNotFoundError):
        return DetrkitError(f"{name}: image file is missing")
    if isinstance(error, UnidentifiedImageError):
        return DetrkitError(f"{name}: not an image that can be read (empty, damaged or of an unknown format)")
    reason = getattr(error, "strerror", None) or first_line(error)
    return DetrkitError(f"{name}: {problem} ({reason})")


def open_image(file: ImageSource | bytes, *, formats: tuple[str, ...] | None = None) -> ImageFile.ImageFile:
    """Open an image and read its header.

    Args:
        file: the image, or its bytes.
        formats: those that are tried, as Pillow calls them; by default all that it knows.

    Raises:
        DetrkitError: the file is missing, no regular file, no image, or a drawing without pixels (EPS, WMF).
    """
    try:
        if isinstance(file, Path):
            require_regular(file)
        content = file if isinstance(file, (Path, bytes)) else file.read()
        image = Image.open(BytesIO(content) if isinstance(content, bytes) else content, formats=formats)
    except DetrkitError:
        raise
    except Exception as error:  # struct.error, IndexError, EOFError, MemoryError: what the parsers of 40 formats raise
        raise _refused(_name(file), "cannot read the image", error) from error
    if image.format in _DRAWINGS:
        image.close()
        raise DetrkitError(f"{_name(file)}: a drawing ({image.format}), not an image of pixels; save it as PNG")
    return image


def _name(image: object) -> str:
    """Return what messages call an image."""
    return str(image) if isinstance(image, (str, Path, TableImage)) else "the image"


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) when there is none or the tag is damaged."""
    try:
        if isinstance(image, PngImageFile) and "exif" not in image.info and not _text_after_pixels(image):
            exif = super(PngImageFile, image).getexif()  # `PngImageFile.getexif` would decode the image to look there
        else:
            exif = image.getexif()
        value = exif.get(_ORIENTATION, 1)
        return int(value) if value in _UPRIGHT else 1
    except Exception:  # damaged EXIF: whatever Pillow's parser raises
        return 1


def _text_after_pixels(image: PngImageFile) -> bool:
    """Tell whether EXIF, or text that may hold it, can follow the pixels of a PNG that is not decoded yet.

    The chunks are skipped: 0.1 ms for a COCO image, where decoding takes 12 ms.
    """
    if not image.tile or image.fp is None:
        return True
    start = image.fp.tell()
    try:
        position = image.tile[0][2] - 8  # the first chunk of pixels
        for _ in range(_PNG_CHUNKS):
            image.fp.seek(position)
            head = image.fp.read(8)
            kind = head[4:]
            if len(head) < 8 or kind == b"IEND":
                return False
            if kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
                return True
            position += 12 + int.from_bytes(head[:4], "big")
        return True
    finally:
        image.fp.seek(start)


def _header(image: Image.Image) -> ImageHeader:
    """Return the header of an opened image."""
    orientation = _orientation(image)
    stored = image.height, image.width
    if orientation >= 5 and isinstance(image, TiffImageFile):
        stored = tuple(int(image.tag_v2[tag]) for tag in _TIFF_SIZE)  # type: ignore[assignment] # `size` is upright
    return ImageHeader(stored, stored[::-1] if orientation >= 5 else stored, orientation)


def read_header(file: ImageSource) -> ImageHeader:
    """Read the sizes and the orientation of an image, from its header alone.

    Raises:
        DetrkitError: the file is missing or no image.
    """
    with open_image(file) as image:
        return _header(image)


def image_size(file: ImageSource) -> tuple[int, int]:
    """Return (height, width) in pixels after EXIF orientation; read only the header.

    Raises:
        DetrkitError: the file is missing or no image.
    """
    return read_header(file).upright


def stored_size(file: ImageSource) -> tuple[int, int]:
    """Return (height, width) in pixels as stored, before EXIF orientation; read only the header.

    Raises:
        DetrkitError: the file is missing or no image.
    """
    return read_header(file).stored


def checked_format(file: ImageSource) -> str:
    """Return the format of an image as Pillow calls it ("JPEG"), after checking that the file is an image.

    The header of a usual format suffices; the checksums of a PNG are checked too (0.4 ms for a COCO image, where
    decoding takes 16 ms). Other formats are decoded: Pillow accepts some of them by their first byte alone.

    Raises:
        DetrkitError: missing, no regular file, no image, or a drawing without pixels (EPS, WMF).
    """
    with open_image(file) as image:
        form = str(image.format)
        try:
            if form in SUFFIX_OF:
                image.verify()
            else:
                image.load()
        except Exception as error:
            raise _refused(file, "the image is damaged or truncated", error) from error
    return form


def deep_scale(file: ImageSource) -> int | None:
    """Return the value that becomes 255 in an image of more than 8 bits, None for others; decode only the former.

    Raises:
        DetrkitError: the file is missing, no image or damaged, or its pixels have no known range.
    """
    with open_image(file) as image:
        try:
            return full_scale(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise _refused(file, "the image is damaged or truncated", error) from error


def size_mismatch(file: ImageSource, size: tuple[int, int]) -> str | None:
    """Say why an image cannot have annotations for (height, width) = `size`, or return None; read only the header."""
    try:
        header = read_header(file)
    except DetrkitError as error:
        return str(error).removeprefix(f"{file}: ")
    if size in (header.upright, header.stored):
        return None
    height, width = header.upright
    return f"is {width}x{height} pixels but its annotations say {size[1]}x{size[0]} (width x height)"


def read_rgb(
    file: ImageSource | bytes, size: tuple[int, int] | None = None, *, at_least: tuple[int, int] | None = None
) -> Image.Image:
    """Read an image as 8-bit RGB, turned upright by its EXIF orientation; the result has no orientation left.

    Images of all modes become RGB, those of 12, 16 and 32 bits are scaled (`detrkit.data.pixels.to_rgb`); transparency
    is dropped (as the published code does).

    Args:
        file: the image, or its bytes.
        size: (height, width) that the annotations speak of. When the stored pixels have it and the upright ones have
            not, the image was annotated as stored, and is left so.
        at_least: (height, width) in pixels to which the image will be made smaller. A JPEG is then decoded at a half,
            a quarter or an eighth of its size, the smallest that still has that many pixels: its far edges may lie up
            to seven pixels of the file further out.

    Raises:
        DetrkitError: missing, damaged or truncated file, its size is not `size`, or its pixels have no known range.
    """
    with open_image(file) as image:
        return _upright_rgb(image, _name(file), size, at_least)


def _upright_rgb(
    image: Image.Image,
    name: object,
    size: tuple[int, int] | None = None,
    at_least: tuple[int, int] | None = None,
) -> Image.Image:
    """Do as `read_rgb` does, for an opened image."""
    header = _header(image)
    if size is not None and size not in (header.upright, header.stored):
        height, width = header.upright
        raise DetrkitError(
            f"{name}: the image is {width}x{height} pixels but its annotations say {size[1]}x{size[0]} "
            "(width x height); correct the size or the image file"
        )
    turned = header.orientation != 1 and (size is None or size == header.upright)
    try:
        if at_least is not None:
            image.draft(image.mode, at_least if turned and header.orientation >= 5 else at_least[::-1])
        rgb = to_rgb(image, name)
    except DetrkitError:
        raise
    except Exception as error:
        raise _refused(name, "the image is damaged or truncated", error) from error
    if header.orientation == 1:
        return rgb
    # Pillow itself turns a TIFF upright when it loads one, and no other format
    left = _orientation(image)
    if turned:
        pending = left
    else:
        pending = 1 if left == header.orientation else _BACK.get(header.orientation, header.orientation)
    rgb = rgb.transpose(_UPRIGHT[pending]) if pending != 1 else rgb.copy()
    for carrier in _ORIENTATION_CARRIERS:  # else the next reader turns it again
        rgb.info.pop(carrier, None)
    return rgb


def as_rgb(image: ImageInput | Any, name: object = None) -> Image.Image:
    """Convert any kind of image to a new upright 8-bit RGB image without orientation; never return `image` itself.

    Args:
        image: a path, the row of a parquet file, the bytes of an image file, a PIL image of any mode (its EXIF
            orientation is followed), an array of (H, W, 3) RGB, (H, W, 4) RGBA, (H, W) or (H, W, 1) gray, or a tensor
            of (3, H, W), (4, H, W), (H, W) or (1, H, W). Arrays and tensors are uint8; gray ones also uint16, int32
            or float32, scaled as in `detrkit.data.pixels.to_rgb`.
        name: what messages call an image that is no file; by default "the image".

    Raises:
        DetrkitError: a file or PIL image is missing, not an image, damaged or of pixels of no known range.
        ValueError: an array or tensor of another shape or type, or an image without pixels.
    """
    if isinstance(image, (str, Path, TableImage)):
        return read_rgb(Path(image) if isinstance(image, str) else image)
    name = name or "the image"
    if isinstance(image, bytes):
        with open_image(image) as opened:
            return _upright_rgb(opened, name)
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(_empty(name, *image.size))
        rgb = _upright_rgb(image, name)
        return rgb.copy() if rgb is image else rgb
    if isinstance(image, Tensor):
        dtype = str(image.dtype).removeprefix("torch.")
        if not _fits(image.shape[1:] + image.shape[:1] if image.ndim == 3 else image.shape, dtype):
            raise ValueError(f"{name} as a tensor must be (3, H, W) uint8, not {tuple(image.shape)} {image.dtype}")
        image = image.detach()
        return _of_array((image.permute(1, 2, 0) if image.ndim == 3 else image).cpu().numpy(), name)
    if isinstance(image, np.ndarray):
        if not _fits(image.shape, image.dtype.name):
            raise ValueError(f"{name} as an array must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
        return _of_array(image, name)
    raise ValueError(f"{name} is no image: {type(image).__name__}; expected a path, PIL image, uint8 array or tensor")


def _fits(shape: tuple[int, ...], dtype: str) -> bool:
    """Tell whether an array of this (H, W, C) or (H, W) shape and dtype is an image."""
    channels = shape[2] if len(shape) == 3 else 1
    dtypes = ("uint8",) if channels > 1 else ("uint8", "uint16", "int32", "float32")
    return len(shape) in (2, 3) and channels in (1, 3, 4) and dtype in dtypes


def _of_array(array: np.ndarray, name: object) -> Image.Image:
    """Convert an (H, W, C) or (H, W) array that `_fits` to a new 8-bit RGB image."""
    if 0 in array.shape:
        raise ValueError(_empty(name, array.shape[1], array.shape[0]))
    array = array[..., :3] if array.ndim == 3 and array.shape[2] > 1 else array.reshape(array.shape[:2])
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)), name)


def _empty(name: object, width: int, height: int) -> str:
    return f"{name} is {width} x {height} pixels (width x height): an empty crop has nothing to find"


def decode(
    file: ImageSource, size: tuple[int, int] | None = None, *, at_least: tuple[int, int] | None = None
) -> tv_tensors.Image:
    """Decode an image to (3, H, W) uint8 RGB; arguments and errors as in `read_rgb`.

    The memory stays interleaved (channels last), the order in which torch resizes uint8 without repacking.
    """
    array = np.array(read_rgb(file, size, at_least=at_least))  # (H, W, 3), a writable copy
    return torch.from_numpy(array).permute(2, 0, 1).as_subclass(tv_tensors.Image)


def image_files(folder: Path) -> list[Path]:
    """List the image files in a folder by name, without hidden ones.

    Raises:
        DetrkitError: the folder has no image files.
    """
    files = sorted(f for f in folder.iterdir() if is_image_file(f) and f.is_file())
    if not files:
        raise DetrkitError(f"{folder}: no images in this folder (known: {', '.join(sorted(SUFFIXES))})")
    return files
