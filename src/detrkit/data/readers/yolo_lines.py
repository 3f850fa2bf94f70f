"""The lines of YOLO's label files: `class cx cy w h`, relative to the image (after EXIF orientation), and more columns.

- Five numbers are a box; nine or more, an odd number, `class x1 y1 x2 y2 ...`, are a polygon whose bounds are the box.
- With `kpt_shape` in the data.yaml the first four numbers after the class are the box, what follows are keypoints.
- Six numbers are a box and a confidence between 0 and 1, which is left out.
- Seven numbers may be a triangle, or a box, a confidence and the id of a track. All lines of the split decide: if none
  is a polygon of more points, and every one of seven numbers is a box inside the image, a number between 0 and 1 and a
  whole number, they are boxes. Else they are triangles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detrkit.data.readers.common import Findings, Objects
from detrkit.utils.documents import decoded, read_bytes
from detrkit.utils.errors import DetrkitError

# Relative coordinates a little above 1 are boxes that leave the image; far above, they are pixels.
_PIXELS_ABOVE = 2.0
_ROUNDING = 0.01  # tolerance for a box that ends at the border of the image
_MAX_KEYPOINT_NUMBERS = 100_000


class Row(NamedTuple):
    """Line of a label file: its number in the file, from 1, and its values."""

    number: int
    values: list[float]


def read_rows(file: Path, findings: Findings) -> list[Row]:
    """Read the lines of a label file that are not empty.

    Raises:
        DetrkitError: no text or not numbers (strict findings only).
    """
    try:
        text = decoded(read_bytes(file), str(file))
    except DetrkitError as error:
        findings.add("error", file, "", str(error).removeprefix(f"{file}: "))
        return []
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            values = [float(v) for v in line.split()]
        except ValueError:
            findings.add("error", file, f"line {number}", f"not numbers: {line.strip()[:60]!r}")
            continue
        if values:
            rows.append(Row(number, values))
    return rows


def keypoint_count(config: dict[str, Any], file: Path, findings: Findings) -> int | None:
    """Return how many keypoint numbers follow the box in a line, by `kpt_shape: [points, numbers of each]`, or None."""
    if "kpt_shape" not in config:
        return None
    shape = config["kpt_shape"]
    try:
        points, numbers = (int(v) for v in shape if isinstance(shape, list))
        if 0 < points * numbers < _MAX_KEYPOINT_NUMBERS:
            return points * numbers
    except (TypeError, ValueError):
        pass
    reason = f"{repr(shape)[:80]} is not [number of keypoints, 2 or 3]: lines are read as boxes and keypoints"
    findings.add("warning", file, "field kpt_shape", reason)
    return 0


class Columns:
    """Meaning of the columns of a split's label files, by the rule at the top of this file.

    Args:
        label_of: label of each class number.
        masks: whether polygons are requested; None: keep those that there are.
        keypoints: numbers of keypoints in a line; None: it has none.
        findings: takes the faults.
    """

    def __init__(self, label_of: dict[int, int], masks: bool | None, keypoints: int | None, findings: Findings) -> None:
        self.label_of = label_of
        self.masks = masks
        self.keypoints = keypoints
        self.findings = findings
        self._seven_are_boxes = True
        self._further: list[tuple[Path, int]] = []  # lines with columns that are left out
        self._other_counts: list[tuple[Path, int, int]] = []  # lines with another number of keypoints

    def note(self, rows: list[Row]) -> bool:
        """Look at the lines of a file; return whether their meaning is known only after looking at all files."""
        if self.keypoints is not None:
            return False
        ambiguous = False
        for _, values in rows:
            count = len(values)
            if count == 7:
                ambiguous = True
                self._seven_are_boxes = self._seven_are_boxes and _is_box_with_track(values)
            elif count > 7 and count % 2:
                self._seven_are_boxes = False
        return ambiguous

    def objects(self, rows: list[Row], file: Path, size: tuple[int, int], first_id: int) -> Objects:
        """Collect the objects of one label file.

        Args:
            rows: its lines.
            file: the label file.
            size: (height, width) of the image in pixels.
            first_id: the id of the first line's annotation; ids count the lines.
        """
        height, width = size
        objects = Objects()
        for k, (number, values) in enumerate(rows):
            name = f"line {number}"
            polygon = self._polygon(values)
            reason = self._fault(values, polygon)
            if reason is not None:
                self.findings.add("error", file, name, reason)
                continue
            if polygon:
                xs, ys = [v * width for v in values[1::2]], [v * height for v in values[2::2]]
                objects.boxes.append((min(xs), min(ys), max(xs), max(ys)))
            else:
                cx, cy, w, h = values[1:5]
                objects.boxes.append(
                    ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
                )
                if len(values) != 5:
                    self._note_further(values, file, number)
            if self.masks is not False:
                objects.segmentations.append([[v for xy in zip(xs, ys, strict=True) for v in xy]] if polygon else None)
            objects.labels.append(self.label_of[int(values[0])])
            objects.annotation_ids.append(first_id + k)
            objects.names.append(name)
        return objects

    def _polygon(self, values: Sequence[float]) -> bool:
        """Tell whether a line is a polygon."""
        count = len(values)
        if self.keypoints is not None or count < 7 or not count % 2:
            return False
        return count > 7 or not self._seven_are_boxes

    def _fault(self, values: list[float], polygon: bool) -> str | None:
        """Say what is wrong with a line, or return None."""
        count = len(values)
        plain = count == 5 or polygon
        if self.keypoints is not None:
            plain = count >= 5
        if not plain and not (count == 6 and 0 <= values[5] <= 1) and count != 7:
            return f"{count} numbers; expected class cx cy w h, or class and a polygon"
        if values[0] not in self.label_of:
            return f"class {values[0]:g} is not one of the {len(self.label_of)} classes"
        coordinates = values[1:] if polygon else values[1:5]
        if not all(map(math.isfinite, coordinates)):
            return "polygon is not finite" if polygon else f"box {_text(coordinates)} is not finite"
        if max(map(abs, coordinates)) > _PIXELS_ABOVE:
            return f"{_text(values)!r} looks like pixels; expected values in [0, 1]"
        if self.masks and not polygon:
            return "is a box, not a polygon: open the dataset without masks"
        return None

    def _note_further(self, values: list[float], file: Path, number: int) -> None:
        """Remember a line with more than a box, for `report`."""
        if self.keypoints is None:
            self._further.append((file, number))
        elif self.keypoints and len(values) != 5 + self.keypoints:
            self._other_counts.append((file, number, len(values)))

    def report(self) -> None:
        """Note, once, what was left out."""
        if self._further:
            file, number = self._further[0]
            reason = f"{len(self._further)} lines have columns after the box, confidence or track id: left out"
            self.findings.add("warning", file, f"line {number}", reason)
        if self._other_counts:
            file, number, count = self._other_counts[0]
            reason = (
                f"has {count} numbers, but with kpt_shape a line has 5 or {5 + (self.keypoints or 0)}: its box is read "
                f"({len(self._other_counts)} such lines)"
            )
            self.findings.add("warning", file, f"line {number}", reason)


def _is_box_with_track(values: Sequence[float]) -> bool:
    """Tell whether seven numbers can be `class cx cy w h confidence track`."""
    _, cx, cy, w, h, confidence, track = values
    if not (0 <= confidence <= 1 and 0 < w <= 1 and 0 < h <= 1 and 0 <= track < math.inf and track == int(track)):
        return False
    return all(w_ / 2 - _ROUNDING <= c <= 1 - w_ / 2 + _ROUNDING for c, w_ in ((cx, w), (cy, h)))


def _text(values: Sequence[float]) -> str:
    """Format numbers for a message."""
    return " ".join(f"{v:g}" for v in values)[:60]
