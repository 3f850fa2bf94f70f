"""Checks of the objects as a whole: boxes in another convention, class names, and what is hard to learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrkit.data.readers import Findings
from detrkit.data.sample import Record
from detrkit.structures.classes import ClassList
from detrkit.utils.messages import counted, first_names

MIN_SIDE_PIXELS = 8  # of an object at the size of the input: a cell of the finest feature map
SMALL_INPUT, USUAL_INPUT = 256, 800  # short sides in pixels: of the recipe `small`, and by default
FEW_OBJECTS = 10  # of a class
_MAX_RATIO = 1333 / 800  # longest side of the input to its short side
_SEVERAL = 10  # boxes, from which shares of them mean something
_EDGE_PIXELS = 1.0


class BoxFaults(NamedTuple):
    """Numbers of boxes of a split that were handled.

    Attributes:
        dropped: left out for having no area.
        negative: those of `dropped` whose right or lower edge is before the other one.
        clamped: cut at the border of the image.
    """

    dropped: int
    negative: int
    clamped: int


def check_convention(records: Sequence[Record], faults: BoxFaults, path: Path, split: str, findings: Findings) -> None:
    """Note boxes that are most likely written in another convention than their format has.

    Args:
        records: of the split.
        faults: what was found of its boxes.
        path: of the dataset, for messages.
        split: its name.
        findings: takes the faults.
    """
    count = sum(len(record.boxes) for record in records) + faults.dropped
    if count < _SEVERAL:
        return
    where = f"split {split}"
    if 2 * faults.negative > count:
        reason = (
            f"{faults.negative} of {count} boxes end before they begin: likely [x, y, width, height] written where "
            "corners are expected"
        )
        findings.add("warning", path, where, reason)
    elif 2 * (faults.clamped + faults.dropped) > count:
        reason = f"{faults.clamped + faults.dropped} of {count} boxes leave their image: "
        if _are_corners(records):
            reason += "likely corners [x1, y1, x2, y2] where [x, y, width, height] is expected: so read, all fit"
        else:
            reason += "likely another convention, or images that were resized after they were annotated"
        findings.add("warning", path, where, reason)


def _are_corners(records: Sequence[Record]) -> bool:
    """Tell whether all boxes lie in their images when their widths and heights are read as corners."""
    found = False
    for record in records:
        if len(record.annotated):
            x, y, right, bottom = record.annotated.T
            inside = (right <= record.width + _EDGE_PIXELS) & (bottom <= record.height + _EDGE_PIXELS)
            if not ((right > x) & (bottom > y) & inside).all():
                return False
            found = True
    return found


def check_names(classes: Mapping[str, ClassList], path: Path, findings: Findings) -> None:
    """Note classes whose names differ only by case, blanks, hyphens and underscores."""
    names = dict.fromkeys(name for split in classes.values() for name in split.names)
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(c for c in name.casefold() if c.isalnum()) or name, []).append(name)
    for group in alike.values():
        if len(group) > 1:
            listed = " and ".join(map(repr, group[:3]))
            reason = f"the names {listed} differ only by case or blanks: two classes to a model; give them one name"
            findings.add("warning", path, "classes", reason)


def learning_hints(records: Sequence[Record], classes: ClassList, split: str) -> list[str]:
    """Return lines on what is hard to learn in a training split: small objects, classes with few examples.

    Args:
        records: of the split.
        classes: of their labels.
        split: its name.
    """
    hints: list[str] = []
    total = sum(int((~record.crowd).sum()) for record in records)
    counts = np.bincount(
        np.concatenate([np.zeros(0, np.int64), *(r.labels[~r.crowd] for r in records)]), minlength=len(classes)
    )
    few = [f"{classes.names[k]} {counts[k]}" for k in np.argsort(counts, kind="stable") if 0 < counts[k] < FEW_OBJECTS]
    if few:
        hints.append(
            f"split {split}: fewer than {FEW_OBJECTS} objects of {counted(len(few), 'class')} ({first_names(few)}): "
            "hardly enough to learn from"
        )
    small = {size: _small_objects(records, size) for size in (SMALL_INPUT, USUAL_INPUT)}
    if small[SMALL_INPUT]:
        text = ", ".join(f"{small[size]} at --size {size}" for size in small if small[size])
        hints.append(
            f"split {split}: of {total} objects these have a side below {MIN_SIDE_PIXELS} pixels in the model's input, "
            f"where little of them is left: {text}"
        )
    return hints


def _small_objects(records: Sequence[Record], size: int) -> int:
    """Count the objects with a side of fewer than 8 pixels at an input of short side `size`."""
    count = 0
    for record in records:
        short, long = sorted((record.height, record.width))
        scale = min(size / short, size * _MAX_RATIO / long)
        sides = (record.boxes[:, 2:] - record.boxes[:, :2])[~record.crowd]
        count += int((sides.min(1, initial=np.inf) * scale < MIN_SIDE_PIXELS).sum())
    return count
