"""Checks of the image files themselves: whether they are there, their sizes, how they are turned."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from detrkit.data.images import deep_scale, read_header, read_rgb, size_mismatch
from detrkit.data.readers import Fault, Findings
from detrkit.data.sample import Record
from detrkit.data.sources import ImageSource
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import first_names

_NEARLY_BLACK = 32  # largest value in the image, of 255


class _Examined(NamedTuple):
    """Result of examining an image file.

    Attributes:
        fault: what is wrong, if anything is.
        turned: whether its EXIF orientation turns it in a way that its size does not show.
        unmeasured: whether its EXIF orientation turns it, and its annotations state no size that could show it.
        outside: whether its boxes fit it as it is stored, but not as its EXIF orientation turns it.
        scale: of an image of more than 8 bits that was decoded, the value that becomes 255.
    """

    fault: Fault | None
    turned: bool = False
    unmeasured: bool = False
    outside: bool = False
    scale: int | None = None


def check_images(records: Sequence[Record], path: Path, split: str, findings: Findings, *, decode: bool) -> None:
    """Note images that are missing, unreadable, of another size, or turned in a way that only their pixels show.

    Args:
        records: of the split.
        path: of the dataset, for messages.
        split: name.
        findings: takes the faults.
        decode: decode every image instead of reading its header.
    """
    with ThreadPoolExecutor(8) as pool:
        measured = findings.measured
        examined = list(pool.map(lambda record: _examine(record, decode, record.file in measured), records))
    findings.faults += [one.fault for one in examined if one.fault is not None]
    _note_scales(records, examined, path, split, findings)
    for names, what in (
        ([r.file.name for r, one in zip(records, examined, strict=True) if one.turned], "their size does not show"),
        ([r.file.name for r, one in zip(records, examined, strict=True) if one.unmeasured], "no annotation shows"),
    ):
        if names:
            reason = (
                f"{len(names)} images have an EXIF orientation that {what} ({first_names(names)}): turned upright, and "
                "their boxes taken for those of the upright image; look at them with `detrkit data preview`"
            )
            findings.add("info", path, f"split {split}", reason)
    outside = [record.file.name for record, one in zip(records, examined, strict=True) if one.outside]
    if outside:
        reason = (
            f"{len(outside)} images are turned upright as EXIF says, but their boxes fit only the image as "
            f"stored ({first_names(outside)}): state width and height in the annotations, or draw them anew"
        )
        findings.add("warning", path, f"split {split}", reason)


def _note_scales(
    records: Sequence[Record], examined: Sequence[_Examined], path: Path, split: str, findings: Findings
) -> None:
    """Note how images of more than 8 bits are scaled: an image whose range was taken wrongly is nearly black."""
    of_scale: dict[int, list[str]] = {}
    for record, one in zip(records, examined, strict=True):
        if one.scale is not None:
            of_scale.setdefault(one.scale, []).append(record.file.name)
    for scale, names in sorted(of_scale.items()):
        reason = f"{len(names)} images of more than 8 bits are scaled from 0..{scale} to 0..255: {first_names(names)}"
        findings.add("info", path, f"split {split}", reason)


def _examine(record: Record, decode: bool, measured: bool) -> _Examined:
    """Examine the file of an image; `measured`: its size is that of its header."""
    size = record.height, record.width
    where = f"image {record.image_id}"
    reason = size_mismatch(record.file, size)
    if reason is not None:
        return _Examined(Fault("error", record.file, where, reason + _similar(record.file, reason)))
    try:
        scale = None
        if decode:
            rgb = read_rgb(record.file, size)
            scale = deep_scale(record.file)
        header = read_header(record.file)
    except DetrkitError as error:
        return _Examined(Fault("error", record.file, where, str(error).removeprefix(f"{record.file}: ")))
    if header.upright != size:
        reason = "annotated as stored, not as its EXIF orientation turns it: read as stored"
        return _Examined(Fault("warning", record.file, where, reason))
    if scale is not None and max(int(high) for _, high in rgb.getextrema()) < _NEARLY_BLACK:  # type: ignore[misc] # RGB
        reason = f"is nearly black: no value above {_NEARLY_BLACK} of 255, scaled from 0..{scale}; save it with 8 bits"
        return _Examined(Fault("warning", record.file, where, reason))
    turned = header.orientation != 1
    outside = turned and measured and _fits_only(record, header.stored)
    unmeasured = turned and measured and not outside
    return _Examined(None, turned and not measured and header.stored == size, unmeasured, outside, scale)


def _fits_only(record: Record, stored: tuple[int, int]) -> bool:
    """Tell whether boxes leave the upright image, but not the one of (height, width) = `stored`."""
    if not len(record.annotated) or stored == (record.height, record.width):
        return False
    right, bottom = (record.annotated[:, :2] + record.annotated[:, 2:]).max(0)
    upright = right <= record.width + 1 and bottom <= record.height + 1
    return not upright and bool(right <= stored[1] + 1 and bottom <= stored[0] + 1)


def _similar(file: ImageSource, reason: str) -> str:
    """Name the file of the same folder that a missing one may be: in another case, or decoded as in a URL."""
    if "missing" not in reason or not isinstance(file, Path):
        return ""
    try:
        names = {f.name.casefold(): f.name for f in file.parent.iterdir()}
    except OSError:
        return ""
    similar = names.get(file.name.casefold()) or names.get(unquote(file.name).casefold())
    return "" if similar is None else f"; {similar} is there"
