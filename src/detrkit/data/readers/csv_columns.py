"""Columns of a CSV of boxes: what each means, by its name, in the conventions that Kaggle, TensorFlow and others have.

- Case, blanks, hyphens and underscores of a name do not count: `x_min`, `XMin` and `xmin` are one. A column of the box
  may begin with `bbox_` or `box_`.
- Corners are xmin, ymin, xmax, ymax; or x1, y1, x2, y2; or x0, y0, x1, y1; or left, top, right, bottom. Else a box is
  its upper left corner (x, y, or a name from above) or its center (cx, cy or x_center, y_center) with w and h, or with
  width and height, which otherwise are those of the image. Else it is one column `bbox` of texts "[x, y, w, h]".
- A table that can be read in two ways is refused, not guessed at.
- Two conventions have no header: keras-retinanet's (path, x1, y1, x2, y2, class) and AutoML's of 11 columns
  (SET, path, label, x1, y1, , , x2, y2, ,).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from detrkit.data.images import SUFFIXES
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import first_names

Form = Literal["xyxy", "xywh", "cxcywh"]

# Names of equal rank in one line; a lower line counts if no name of a higher one is there.
_IMAGE = (
    ("filename", "filepath", "file", "path", "image", "imagename", "imagefilename", "imagepath", "imagefile", "img"),
    ("imageid", "imgid"),
)
_CLASS = (
    ("classname", "labelname", "categoryname"),
    ("class", "label", "category", "object"),
    ("classid", "labelid", "categoryid"),
)
_SPLIT = (("split", "set", "subset"),)
_CROWD = (("iscrowd", "isgroupof", "crowd"),)
_AREA = (("area",),)
_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("left", "top", "right", "bottom"),
)
_UPPER_LEFT = (("x", "y"), ("xmin", "ymin"), ("x1", "y1"), ("x0", "y0"), ("left", "top"))
_CENTER = (("cx", "cy"), ("xcenter", "ycenter"), ("centerx", "centery"))
_SIDES = (("w", "h"), ("width", "height"))
_IMAGE_SIZE = (("imagewidth", "imageheight"), ("imgwidth", "imgheight"), ("imagew", "imageh"), ("width", "height"))
_BOX_PREFIX = re.compile(r"^b?box(?=.)")

_SETS = {"train", "training", "val", "valid", "validate", "validation", "test", "testing", "unassigned"}
_AUTOML_COLUMNS, _RETINANET_COLUMNS = 11, 6

EXPECTED = (
    "a column of the image (filename, path or image_id) and columns of the box (xmin, ymin, xmax, ymax; x, y, w, h; or "
    "bbox)"
)


class AmbiguousColumns(DetrkitError):
    """Error: a table of boxes that can be read in more than one way; the message does not name the file."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Positions of the columns of a table, from 0; None: it has no such column.

    Attributes:
        count: number of columns.
        header: whether the first row has their names.
        image: file name of the image, or its id, which is the name without suffix.
        box: four columns of numbers, in the order of `form`; or one of texts with four numbers.
        form: "xyxy": corners; "xywh": upper left corner and sides; "cxcywh": center and sides.
        relative: whether numbers of the box are relative to the sides of the image, not pixels; None: the numbers
            decide, see `csv_boxes`.
        label: name of the class.
        size: height and width of the image in pixels.
        split: name of the split that the image is in.
        crowd: whether the box is one of a group.
        area: of the object, in square pixels.
    """

    count: int
    header: bool
    image: int
    box: tuple[int, ...]
    form: Form
    relative: bool | None = None
    label: int | None = None
    size: tuple[int, int] | None = None
    split: int | None = None
    crowd: int | None = None
    area: int | None = None


def find_columns(first_row: Sequence[str]) -> Columns | None:
    """Find the meaning of a table's columns; None: it is no table of boxes.

    Args:
        first_row: the names of the columns, or the first row of a table without header.

    Raises:
        AmbiguousColumns: it is a table of boxes that can be read in more than one way.
    """
    return _without_header(first_row) or _by_names(first_row)


def _without_header(row: Sequence[str]) -> Columns | None:
    """Recognize the conventions without header by the first row."""
    if len(row) == _RETINANET_COLUMNS and _is_image(row[0]) and _is_box(row[1:5]):
        return Columns(count=len(row), header=False, image=0, box=(1, 2, 3, 4), form="xyxy", label=5)
    if len(row) == _AUTOML_COLUMNS and row[0].strip().casefold() in _SETS and _is_image(row[1]):
        corners = (3, 4, 7, 8)
        if _is_box([row[k] for k in corners]):
            return Columns(
                count=len(row), header=False, image=1, box=corners, form="xyxy", relative=True, label=2, split=0
            )
    return None


def _is_image(text: str) -> bool:
    """Tell whether a text is a file name of an image."""
    return "." + text.strip().lower().rpartition(".")[2] in SUFFIXES


def _is_box(texts: Sequence[str]) -> bool:
    """Tell whether texts are four numbers, or all empty, as for an image without objects."""
    if not any(text.strip() for text in texts):
        return True
    try:
        return all(math.isfinite(float(text)) for text in texts)
    except ValueError:
        return False


def _by_names(row: Sequence[str]) -> Columns | None:
    """Recognize a header by the names of its columns."""
    names = _Names(row)
    box = _find_box(names)
    image = names.first(_IMAGE) if box is not None else None
    if box is None or image is None:
        return None
    positions, form = box
    sizes = [pair for pair in _IMAGE_SIZE if names.have(pair) and not set(names.at(pair)) & set(positions)]
    size = names.at(sizes[0])[::-1] if sizes else None
    return Columns(
        count=len(row),
        header=True,
        image=image,
        box=positions,
        form=form,
        relative=True if names.have(("isgroupof",)) else None,  # Open Images
        label=names.first(_CLASS),
        size=(size[0], size[1]) if size else None,
        split=names.first(_SPLIT),
        crowd=names.first(_CROWD),
        area=names.first(_AREA),
    )


class _Names:
    """Names of the columns, compared without case, blanks, hyphens, underscores and "bbox_"."""

    def __init__(self, row: Sequence[str]) -> None:
        self.as_written = row
        self._positions: dict[str, list[int]] = {}
        for position, name in enumerate(row):
            plain = re.sub(r"[\s_\-.]+", "", name.casefold())
            self._positions.setdefault(_BOX_PREFIX.sub("", plain), []).append(position)

    def have(self, names: Sequence[str]) -> bool:
        """Tell whether there is a column for each of the names."""
        return all(name in self._positions for name in names)

    def at(self, names: Sequence[str]) -> tuple[int, ...]:
        """Return the positions of columns.

        Raises:
            AmbiguousColumns: two columns of one name.
        """
        for name in names:
            if len(self._positions[name]) > 1:
                raise AmbiguousColumns(f"has {self._written(self._positions[name])}, which mean the same: keep one")
        return tuple(self._positions[name][0] for name in names)

    def first(self, ranks: Sequence[Sequence[str]]) -> int | None:
        """Return the column that has the first rank.

        Raises:
            AmbiguousColumns: two columns of the same rank.
        """
        for rank in ranks:
            present = [name for name in rank if name in self._positions]
            if len(present) > 1:
                positions = [position for name in present for position in self._positions[name]]
                raise AmbiguousColumns(f"has {self._written(positions)}, which can mean the same: keep one")
            if present:
                return self.at(present)[0]
        return None

    def only(self, groups: Sequence[Sequence[str]]) -> tuple[int, ...] | None:
        """Return the positions of the one group of columns that is there, or None.

        Raises:
            AmbiguousColumns: several groups.
        """
        present = [group for group in groups if self.have(group)]
        if len(present) > 1:
            texts = [self._written([k for name in group for k in self._positions[name]]) for group in present]
            raise AmbiguousColumns(f"has two boxes in a row, {' and '.join(texts[:2])}: keep the columns of one")
        return self.at(present[0]) if present else None

    def _written(self, positions: Sequence[int]) -> str:
        """Name columns as the file does, for a message."""
        return f"the columns {first_names([self.as_written[k].strip()[:40] for k in positions])}"


def _find_box(names: _Names) -> tuple[tuple[int, ...], Form] | None:
    """Find the columns of the box and their meaning by the rule at the top of this file.

    Raises:
        AmbiguousColumns: there are several boxes, or polygons.
    """
    corners = names.only(_CORNERS)
    if corners is not None and names.have(("x3", "y3")):
        raise AmbiguousColumns("has x3 and y3: corners of polygons, not of boxes; write xmin, ymin, xmax and ymax")
    if corners is not None:
        return corners, "xyxy"
    sides = next((pair for pair in _SIDES if names.have(pair)), None)
    if sides is not None:
        groups = [(*point, *sides) for point in (*_UPPER_LEFT, *_CENTER)]
        box = names.only(groups)
        if box is not None:
            return box, "cxcywh" if any(names.have(point) for point in _CENTER) else "xywh"
    for name in ("bbox", "box"):
        if names.have((name,)):
            return names.at((name,)), "xywh"
    return None
