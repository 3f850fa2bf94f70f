"""Rows of a table of boxes, collected by image, and their boxes in pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from detrkit.data.readers.common import Findings, Objects, size_fault
from detrkit.data.readers.csv_tables import Table, split_value
from detrkit.utils.documents import shown
from detrkit.utils.errors import DetrkitError

ONLY_CLASS = "object"  # of a table without a column of the class
_RELATIVE_UP_TO, _PIXELS_ABOVE = 1.01, 2.0  # files round
_LARGEST_AREA = 1e18  # square pixels, far more than an image has
_TRUE, _FALSE = {"1", "true", "1.0"}, {"0", "false", "0.0", "", "-1"}  # Open Images writes -1 for "unknown"


@dataclass(slots=True)
class ImageRows:
    """Rows of an image.

    Attributes:
        name: as the table has it.
        first_line: line that it is first in.
        size: (height, width) in pixels, if the table has it.
        size_line: line that it is from.
        boxes: as in the file, four numbers each.
        labels: names of their classes.
        crowd: whether each is one of a group.
        areas: square pixels, or None where there is none.
        lines: line of each box.
        numbers: id of each box.
    """

    name: str
    first_line: int = 0
    size: tuple[int, int] | None = None
    size_line: int = 0
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    areas: list[float | None] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)


class Rows:
    """Rows of a split, by image.

    Attributes:
        images: name of an image -> its rows, in the order of the table.
        class_names: of all splits in the table.
        largest: the largest coordinate in the table, whatever its split; None without any.
    """

    def __init__(self, table: Table, split: str, findings: Findings) -> None:
        self.images: dict[str, ImageRows] = {}
        self.class_names: set[str] = set()
        self.largest: float | None = None
        self._table = table
        self._findings = findings
        self._next = 1
        self._sizes: dict[tuple[str, str], tuple[int, int] | str | None] = {}
        column = table.columns.split
        for number, row in table.rows():
            if len(row) < table.columns.count or any(row[table.columns.count :]):
                reason = f"has {len(row)} columns, but the first row has {table.columns.count}"
                self._fault(number, f"{reason} (texts with a separator need quotes)")
                continue
            self._read(number, row, column is None or split_value(row[column]) == split)
        if table.columns.label is None:
            self.class_names.add(ONLY_CLASS)
            reason = f"has no column of the class: every box is of the one class {ONLY_CLASS!r}"
            findings.note("info", table.file, "", reason)

    def _fault(self, number: int, reason: str, *columns: int | None) -> None:
        positions = [column for column in columns if column is not None]
        self._findings.add("error", self._table.file, self._table.where(number, positions), reason)

    def _read(self, number: int, row: Sequence[str], in_split: bool) -> None:
        """Read one row; of another split only its class and its coordinates."""
        columns = self._table.columns
        texts = [row[k] for k in columns.box]
        if len(texts) == 1:
            texts = texts[0].strip().strip("[]()").replace(",", " ").split()
        box = _four_numbers(texts)
        empty = box is None and not any(text.strip() for text in texts)
        if box is not None:  # infinity counts as pixels, NaN as nothing; both are errors later on
            self.largest = max(self.largest or 0.0, *map(abs, box))
        name = ONLY_CLASS if columns.label is None else row[columns.label].strip()
        if box is not None and name:
            self.class_names.add(name)
        if not in_split:
            return
        image_name = row[columns.image].strip()
        if not image_name:
            self._fault(number, "names no image", columns.image)
            return
        image = self.images.get(image_name)
        if image is None:
            image = self.images[image_name] = ImageRows(image_name, number)
        self._note_size(image, row, number)
        if empty:
            return
        self._next += 1
        if box is None:
            text = " ".join(row[k] for k in columns.box)
            self._fault(number, f"box {shown(text)} is not four numbers", *columns.box)
        elif not name:
            self._fault(number, "has no class", columns.label)
        else:
            image.boxes.append(box)
            image.labels.append(name)
            image.crowd.append(self._crowd(row, number))
            image.areas.append(self._area(row, number))
            image.lines.append(number)
            image.numbers.append(self._next - 1)

    def _crowd(self, row: Sequence[str], number: int) -> bool:
        """Tell whether a box is one of a group."""
        column = self._table.columns.crowd
        text = "" if column is None else row[column].strip().lower()
        if text not in _TRUE and text not in _FALSE:
            self._fault(number, f"{shown(text)} is neither 0 nor 1, for a box of a group", column)
        return text in _TRUE

    def _area(self, row: Sequence[str], number: int) -> float | None:
        """Return the area of an object, or None."""
        column = self._table.columns.area
        text = "" if column is None else row[column].strip()
        if not text:
            return None
        try:
            area = float(text)
        except ValueError:
            area = math.nan
        if 0 < area < _LARGEST_AREA:
            return area
        reason = f"area {shown(text)} is not a positive number of square pixels: taken from the box"
        self._findings.add("warning", self._table.file, self._table.where(number, [column or 0]), reason)
        return None

    def _note_size(self, image: ImageRows, row: Sequence[str], number: int) -> None:
        """Note the size of an image, and check that all its rows have the same."""
        columns = self._table.columns.size
        if columns is None:
            return
        texts = row[columns[0]], row[columns[1]]
        if texts not in self._sizes:  # a dataset has few sizes and many rows
            self._sizes[texts] = _size(*texts)
        size = self._sizes[texts]
        if isinstance(size, str):
            self._fault(number, size, *columns)
        elif image.size is None:
            image.size, image.size_line = size, number
        elif size is not None and image.size != size:
            before = f"{image.size[1]}x{image.size[0]} in {self._table.where(image.size_line)}"
            self._fault(number, f"image {image.name[:80]} is {size[1]}x{size[0]} pixels here, but {before}", *columns)


def _four_numbers(texts: Sequence[str]) -> tuple[float, float, float, float] | None:
    """Return four numbers, or None."""
    try:
        a, b, c, d = map(float, texts)
    except ValueError:
        return None
    return a, b, c, d


def _size(height: str, width: str) -> tuple[int, int] | str | None:
    """Return (height, width) in pixels, or what is wrong with them; None: stated as 0 or not at all.

    Some tools write 0; then the header of the image says it.
    """
    sides = _number(height), _number(width)
    if sides == (0, 0):
        return None
    return size_fault(*sides) or (int(sides[0]), int(sides[1]))


def _number(text: str) -> float | str:
    """Return a text as a number (0 if it is empty), or as it is if it is none."""
    try:
        return float(text) if text.strip() else 0.0
    except ValueError:
        return text


def are_relative(table: Table, largest: float | None, findings: Findings) -> bool:
    """Tell whether coordinates are relative to the sides of the image, by the rule at the top of this file.

    Raises:
        DetrkitError: they may be either.
    """
    if table.columns.relative is not None:
        return table.columns.relative
    if largest is None or largest > _PIXELS_ABOVE:
        return False
    if largest > _RELATIVE_UP_TO:
        raise DetrkitError(
            f"{table.file}: the largest coordinate of a box is {largest:g}: neither relative to the sides of the image "
            f"(at most 1) nor in pixels (above {_PIXELS_ABOVE:g} somewhere); correct the columns of the box"
        )
    reason = "no coordinate is above 1: taken as relative to the sides of the image, not as pixels"
    findings.note("info", table.file, "", reason)
    return True


class Units:
    """Conversion of boxes of a table to pixels.

    Args:
        table: whose columns say the form.
        relative: whether numbers are relative to the sides of the image.
    """

    def __init__(self, table: Table, relative: bool) -> None:
        self.table = table
        self.relative = relative
        self._boxes = self._outside = self._corners = 0

    def corners(self, box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return a box as xyxy pixels of an image of (height, width) = `size`."""
        a, b, c, d = box
        if self.table.columns.form == "cxcywh":
            a, b = a - c / 2, b - d / 2
        if self.table.columns.form != "xyxy":
            c, d = a + c, b + d
        height, width = size
        if self.relative:
            return a * width, b * height, c * width, d * height
        if len(self.table.columns.box) == 1:
            self._boxes += 1
            self._outside += c > width + 1 or d > height + 1
            self._corners += a < box[2] <= width and b < box[3] <= height
        return a, b, c, d

    def check(self, findings: Findings) -> None:
        """Note a column of texts with four numbers that are corners, where sides are expected.

        Raises:
            DetrkitError: it is so (strict findings only).
        """
        if self._boxes and self._corners == self._boxes and 2 * self._outside > self._boxes:
            reason = (
                f"{self._outside} of {self._boxes} boxes leave their image when read as [x, y, width, height], and "
                f"none as corners: {self.table.corners_advice}"
            )
            findings.add("error", self.table.file, "column of the box", reason)


def collect_objects(
    image: ImageRows,
    size: tuple[int, int],
    units: Units,
    label_of: Mapping[str, int],
    findings: Findings,
    where: Callable[[int], str] | None = None,
) -> Objects:
    """Collect the objects of one image.

    Args:
        image: its rows.
        size: (height, width) in pixels.
        units: of the table.
        label_of: name of a class -> label.
        findings: takes the faults.
        where: names an object by its number in `image.lines`, as messages do; by default as the table does.
    """
    objects = Objects()
    where = where or units.table.where
    file, form = units.table.file, units.table.columns.form
    rows = zip(image.boxes, image.labels, image.crowd, image.areas, image.lines, image.numbers, strict=True)
    for box, class_name, crowd, area, line, number in rows:
        name = where(line)
        if class_name not in label_of:
            findings.add("error", file, name, f"class {shown(class_name)} is not in the list of classes")
            continue
        if units.relative and max(map(abs, box)) > _PIXELS_ABOVE and all(map(math.isfinite, box)):
            reason = f"box {' '.join(f'{v:g}' for v in box)} looks like pixels; expected values in [0, 1]"
            findings.add("error", file, name, reason)
            continue
        corners = units.corners(box, size)
        objects.boxes.append(corners)
        if not units.relative:
            x, y, x1, y1 = corners
            objects.annotated.append(box if form == "xywh" else (x, y, x1 - x, y1 - y))
        objects.labels.append(label_of[class_name])
        objects.crowd.append(crowd)
        objects.areas.append(None if units.relative else area)
        objects.annotation_ids.append(number)
        objects.names.append(name)
    return objects
