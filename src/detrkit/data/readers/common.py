"""Shared parts of the readers: findings about bad data, records with valid boxes, names of splits."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

import numpy as np
from PIL import Image

from detrkit.data.images import image_size
from detrkit.data.sample import Record
from detrkit.data.sources import ImageSource
from detrkit.utils.documents import shown
from detrkit.utils.errors import DetrkitError

T = TypeVar("T")

Severity = Literal["error", "warning", "info"]
# Files round coordinates (COCO to 0.01 pixel, YOLO to 6 digits): less than this outside the image is no fault.
ROUNDING_PIXELS = 0.05
# A segment is as large as its box at most; files round both.
AREA_TOLERANCE = 1.05
SMALLEST_SHARE = 1e-3  # a segment covers at least this share of its box; less is a mistake of units
MOST_PIXELS = 2**31  # limit of an image where Pillow has none
CHECK_HINT = "; `detrkit data check` lists every fault"
_NUMBERS = frozenset({int, float})
_ALIASES = ({"train", "training"}, {"val", "valid", "validation", "dev"}, {"test", "testing"})


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a dataset.

    Attributes:
        severity: "error": training or evaluation would fail or be wrong; "warning": handled as the reason says;
            "info": worth knowing.
        file: the file, or the image, it is in.
        id: the image or annotation, line or object within it, as the file numbers it.
        reason: what is wrong, with the numbers.
    """

    severity: Severity
    file: ImageSource
    id: str
    reason: str


@dataclass
class Findings:
    """Collector of faults; a strict one (for `open_dataset`) raises at the first error instead.

    Attributes:
        strict: whether an error ends the reading.
        dropped: boxes left out for having no area.
        negative: those of `dropped` that end before they begin.
        clamped: boxes cut at the border of the image.
        notes: remarks on what was handled, for whoever opens the dataset, one line each.
        missing: images that an error already reports as missing.
        measured: images whose size is that of their header, because the annotations state none.
        hint: the end of the message of an error.
    """

    strict: bool = True
    faults: list[Fault] = field(default_factory=list)
    dropped: int = 0
    negative: int = 0
    clamped: int = 0
    notes: list[str] = field(default_factory=list)
    missing: set[ImageSource] = field(default_factory=set)
    measured: set[ImageSource] = field(default_factory=set)
    hint: str = CHECK_HINT

    def add(self, severity: Severity, file: ImageSource, id: str, reason: str) -> None:
        """Note a fault.

        Raises:
            DetrkitError: it is an error and this is strict.
        """
        if severity == "error" and self.strict:
            where = f"{file}: {id}: " if id else f"{file}: "
            raise DetrkitError(f"{where}{reason}{self.hint}")
        if not self.strict:
            self.faults.append(Fault(severity, file, id, reason))

    def note(self, severity: Literal["warning", "info"], file: ImageSource, id: str, reason: str) -> None:
        """Note a fault, also for whoever opens the dataset."""
        self.add(severity, file, id, reason)
        self.notes.append(f"{file}: {id}: {reason}" if id else f"{file}: {reason}")


@dataclass
class Objects:
    """The objects of one image as a file lists them, before any check.

    Attributes:
        boxes: xyxy pixels.
        annotated: xywh pixels exactly as in the file; leave it empty if the file holds something else.
        annotation_ids: unique in the dataset; leave them empty if the files have none.
        segment_ids: ids in the panoptic PNG, where there is one.
        names: how messages call each object ("annotation 12", "line 3").
    """

    boxes: list[Sequence[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    areas: list[float | None] = field(default_factory=list)
    segmentations: list[Any] = field(default_factory=list)
    annotation_ids: list[int] = field(default_factory=list)
    annotated: list[Sequence[float]] = field(default_factory=list)
    segment_ids: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def finite(value: Any) -> float | None:
    """Return a value of a file as a finite number, or None: no number, NaN, infinite, too large, or a Python bool."""
    if type(value) not in _NUMBERS:
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def whole(value: Any) -> int | None:
    """Return a value of a file as a whole number of 64 bits, also if written as 40.0, or None."""
    if type(value) is float:
        value = int(value) if value.is_integer() else None
    return value if is_int(value) else None


def corners_of(bbox: Any) -> tuple[float, float, float, float] | None:
    """Return xyxy of an xywh box, or None if it is not four numbers; they may be NaN or infinite."""
    try:
        x, y, w, h = bbox
        if not {type(x), type(y), type(w), type(h)} <= _NUMBERS:
            return None
        return x + 0.0, y + 0.0, x + w + 0.0, y + h + 0.0
    except (TypeError, ValueError, OverflowError):
        return None


def is_int(value: Any) -> TypeGuard[int]:
    """Tell whether a value is a whole number of 64 bits (Python's bools are not)."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_one_of(value: Any, keys: Container[T]) -> TypeGuard[T]:
    """Tell whether a value from a file is one of some keys. A list or an object never is; True is not 1."""
    try:
        return value in keys and type(value) is not bool
    except TypeError:  # not hashable; checking that first takes 5 times as long
        return False


def size_fault(height: Any, width: Any) -> str | None:
    """Say why no image can have the height and width that a file gives, or return None."""
    h, w = whole(height), whole(width)
    if h is None or w is None or min(h, w) <= 0:
        return f"height {shown(height)} and width {shown(width)} must be positive whole numbers (pixels)"
    # Pillow refuses to decode more than twice this number
    most = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else MOST_PIXELS
    if h * w > most:
        return f"{w}x{h} pixels (width x height) are more than an image may have ({most}): correct them"
    return None


def size_or_error(file: ImageSource) -> tuple[int, int] | DetrkitError:
    """Call `image_size` in a thread: an error is returned, so that every bad image can be reported."""
    try:
        return image_size(file)
    except DetrkitError as error:
        return error


def make_record(
    image_id: int,
    file: ImageSource,
    size: tuple[int, int],
    objects: Objects,
    source: Path,
    findings: Findings,
    *,
    duplicates: bool = True,
) -> Record:
    """Make the record of an image, with its boxes clamped and those without area left out.

    Args:
        image_id: the dataset's id.
        file: where the image is.
        size: (height, width) in pixels.
        objects: as read.
        source: the annotation file, for messages.
        findings: takes the faults and the counts.
        duplicates: whether objects with the same box are worth noting.

    Raises:
        DetrkitError: a box that is not finite (strict findings only; else it is left out).
    """
    height, width = size
    raw = np.array(objects.boxes, np.float64).reshape(-1, 4)  # (N, 4) xyxy
    finite = np.isfinite(raw).all(1)
    for k in np.flatnonzero(~finite):
        findings.add("error", source, objects.names[k], f"box {_text(raw[k])} is not finite (image {file.name})")
    boxes = np.clip(raw, 0, [width, height, width, height])
    with np.errstate(invalid="ignore"):
        outside = finite & (np.abs(boxes - raw).max(1, initial=0) > ROUNDING_PIXELS)
        solid = finite & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    for k in np.flatnonzero(finite & ~solid):
        findings.add("warning", source, objects.names[k], _why_empty(raw[k], file.name, width, height))
    for k in np.flatnonzero(outside & solid):
        reason = f"box {_text(raw[k])} (xyxy) leaves image {file.name} of {width}x{height} pixels: clamped"
        findings.add("warning", source, objects.names[k], reason)
    findings.dropped += int((finite & ~solid).sum())
    findings.negative += int((finite & ((raw[:, 2] < raw[:, 0]) | (raw[:, 3] < raw[:, 1]))).sum())
    findings.clamped += int((outside & solid).sum())
    if not findings.strict:
        if duplicates:
            _find_duplicates(boxes, objects, solid, source, file, findings)
        _find_impossible_areas(raw, objects, solid, source, file, findings)
    keep = np.flatnonzero(solid)
    boxes = boxes[keep]
    box_areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    areas = [objects.areas[k] if objects.areas else None for k in keep]
    return Record(
        image_id=image_id,
        file=file,
        height=height,
        width=width,
        boxes=boxes,
        labels=np.array(objects.labels, np.int64)[keep],
        crowd=np.array(objects.crowd, bool)[keep] if objects.crowd else np.zeros(len(keep), bool),
        areas=np.array([o if a is None else a for a, o in zip(areas, box_areas, strict=True)], np.float64),
        segmentations=[objects.segmentations[k] for k in keep] if objects.segmentations else [],
        annotation_ids=np.array(objects.annotation_ids, np.int64)[keep]
        if objects.annotation_ids
        else np.zeros(len(keep), np.int64),
        annotated=np.array(objects.annotated, np.float64).reshape(-1, 4)[keep]
        if objects.annotated
        else np.zeros((0, 4)),
        segment_ids=np.array(objects.segment_ids, np.int64)[keep] if objects.segment_ids else np.zeros(0, np.int64),
    )


def _text(box: np.ndarray) -> str:
    return "[" + ", ".join(f"{v:g}" for v in box) + "]"


def _why_empty(box: np.ndarray, image: str, width: int, height: int) -> str:
    """Describe what makes a box empty."""
    if box[2] < box[0] or box[3] < box[1]:
        kind = "has a negative width or height"
    elif box[2] == box[0] or box[3] == box[1]:
        kind = "has zero area"
    else:
        kind = f"lies outside the image of {width}x{height} pixels"
    return f"box {_text(box)} (xyxy) of image {image} {kind}: left out"


def _find_duplicates(
    boxes: np.ndarray, objects: Objects, solid: np.ndarray, source: Path, file: ImageSource, findings: Findings
) -> None:
    """Note objects with the same box: a warning for the same class, else an info."""
    first: dict[tuple[float, ...], int] = {}
    for k in np.flatnonzero(solid):
        j = first.setdefault(tuple(boxes[k]), int(k))
        if j == k:
            continue
        same = objects.labels[j] == objects.labels[k]
        reason = f"same box {_text(boxes[k])} as {objects.names[j]} (image {file.name})"
        severity: Severity = "warning" if same else "info"
        findings.add(severity, source, objects.names[k], reason + ("" if same else ", of another class"))


def _find_impossible_areas(
    raw: np.ndarray, objects: Objects, solid: np.ndarray, source: Path, file: ImageSource, findings: Findings
) -> None:
    """Note areas that no segment in its box can have: larger than the box, or next to nothing (relative units)."""
    for k in np.flatnonzero(solid):
        area = objects.areas[k] if objects.areas else None
        if area is None:
            continue
        x0, y0, x1, y1 = raw[k].tolist()  # plain numbers: those of numpy would warn of an overflow
        box = (x1 - x0) * (y1 - y0)
        if area > AREA_TOLERANCE * box + 1 or area < SMALLEST_SHARE * box:
            reason = f"area {area:g} does not fit the box of {box:g} square pixels (image {file.name}): "
            findings.add("warning", source, objects.names[k], reason + "taken as it stands")


class UnknownSplit(DetrkitError):
    """Error: the dataset does not have the requested split.

    Attributes:
        names: of the splits that it has.
    """

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


def match_split(name: str | None, names: Sequence[str], path: Path) -> str:
    """Find the split that a name means: its exact name, or "train" for "train2017", or "val" for "valid".

    Raises:
        UnknownSplit: no such split, several that fit, or None where there is a choice.
    """
    have = ", ".join(names)
    if name is None:
        if len(names) == 1:
            return names[0]
        raise DetrkitError(f"{path} has the splits {have}: say which one (split=... or --split)")
    if name in names:
        return name
    fits = [n for n in names if re.fullmatch(re.escape(name) + r"[-_]?\d{4}", n)]
    if not fits:
        same = next((a for a in _ALIASES if name in a), set())
        fits = [n for n in names if re.sub(r"[-_]?\d{4}$", "", n) in same]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise DetrkitError(f"{path}: split {name!r} can mean {' or '.join(fits)}: write it out")
    if list(names) == ["all"]:
        have = "one, all, since it is not divided"
    raise UnknownSplit(f"{path} has no split {name!r}; it has {have}", names)
