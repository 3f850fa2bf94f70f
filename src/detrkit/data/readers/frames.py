"""pandas DataFrames of boxes: one row for each box, in the conventions of the CSV of boxes (`csv_columns`).

- Splits are the values of a column split or set; or the keys of a dict of DataFrames; else all is the split "all".
- Images with relative paths are looked for below `root` as those of a CSV in that folder, and nothing outside of it is
  opened. Without `root`, absolute paths are taken as they stand, others are relative to the working directory.
- Classes: the categories of a categorical column in their order, else by the rules of the CSV.
- Messages name a row by its position, from 0 (`frame.iloc[17]`), and the columns.

pandas is not imported: it is there if there is a DataFrame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from detrkit.data.readers.base import Reader, Reading
from detrkit.data.readers.common import Findings
from detrkit.data.readers.csv_boxes import read_tables
from detrkit.data.readers.csv_columns import EXPECTED, AmbiguousColumns, Columns, Form, find_columns
from detrkit.data.readers.csv_tables import Table, split_values
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import first_names

FRAME = "DataFrame"
_ROWS = 10_000  # turned into texts together
_MISSING = frozenset({"NAType", "NaTType", "NoneType"})


def is_frame(data: object) -> bool:
    """Tell whether something is a pandas DataFrame, without importing pandas."""
    return all(hasattr(data, name) for name in ("iloc", "columns", "dtypes"))


@dataclass(frozen=True, eq=False)
class FrameTable(Table):
    """A table of boxes in memory.

    Attributes:
        frame: the DataFrame.
        root: folder of the images; None: absolute paths, or relative to the working directory.
    """

    frame: Any
    root: Path | None
    corners_advice: ClassVar[str] = 'pass box_format="xyxy"'

    @property
    def place(self) -> Path:
        """Path that the images are looked for beside."""
        return (self.root or Path.cwd()) / FRAME

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the positions of the rows, and their values as texts; columns without meaning are empty."""
        c = self.columns
        used = {c.image, *c.box, *(c.size or ()), *(k for k in (c.label, c.split, c.crowd, c.area) if k is not None)}
        for start in range(0, len(self.frame), _ROWS):
            part = self.frame.iloc[start : start + _ROWS]
            empty = [""] * len(part)
            columns = [[*map(_text, part.iloc[:, k].tolist())] if k in used else empty for k in range(c.count)]
            for number, row in enumerate(zip(*columns, strict=True), start):
                yield number, list(row)

    def where(self, number: int, columns: Sequence[int] = ()) -> str:
        """Name a row by its position, and columns by their names."""
        names = [str(self.frame.columns[k]) for k in columns]
        return f"row {number}" + (f", column{'s' * (len(names) > 1)} {', '.join(names)}" if names else "")

    def where_image(self, image_id: int, number: int) -> str:
        """Name the first row of an image."""
        return self.where(number, [self.columns.image])

    def absolute_files(self, names: Mapping[int, str]) -> dict[int, Path]:
        """Return the files of images with absolute paths.

        Raises:
            DetrkitError: a path outside `root`.
        """
        files: dict[int, Path] = {}
        for image_id, name in names.items():
            file = Path(name)
            if not file.is_absolute():
                continue
            if self.root is not None and (".." in file.parts or not file.is_relative_to(self.root)):
                continue  # looked up below the root by its last part, as a path of another machine
            files[image_id] = file
        return files


class FrameReader(Reader):
    """Reader of a DataFrame, or of a dict of them: split -> DataFrame.

    Args:
        data: the DataFrames.
        root: folder of the images, absolute.
        box_format: what a single column of the box holds.

    Raises:
        DetrkitError: no table of boxes, or one that can be read in two ways.
    """

    name = "dataframe"
    expects = "a pandas DataFrame"
    no_objects_cause = "the columns of the box are empty"

    def __init__(self, data: Any, root: Path | None, box_format: Form | None) -> None:
        self.root = root
        if isinstance(data, Mapping):
            tables = {str(split): _table(frame, f"{FRAME} {split}", root, box_format) for split, frame in data.items()}
            self._tables = {split: _without_split(table) for split, table in tables.items()}
            self._frames = list(data.values())
        else:
            table = _table(data, FRAME, root, box_format)
            names = ["all"] if table.columns.split is None else split_values(table)
            self._tables = dict.fromkeys(names, table)
            self._frames = [data]

    def recognize(self, path: Path) -> bool:
        """Return False: it reads no files."""
        return False

    def splits(self, path: Path) -> list[str]:
        """Return the names of the splits."""
        return list(self._tables)

    def read(self, path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None) -> Reading:
        """Read one split, as `CsvReader.read`."""
        if masks:
            raise DetrkitError(f"{path}: a table of boxes has no masks; open it without masks")
        findings = findings if findings is not None else Findings(hint="")
        table = self._tables[split]
        return read_tables(self.root or path, self._tables, split, findings, self._categories(table))

    def _categories(self, table: FrameTable) -> list[str] | None:
        """Return the categories of a categorical column of the class, if all tables have the same."""
        found: list[list[str]] = []
        for other in dict.fromkeys(self._tables.values()):
            label = other.columns.label
            categories = None if label is None else getattr(other.frame.dtypes.iloc[label], "categories", None)
            if categories is None:
                return None
            found.append([_text(value).strip() for value in categories])
        return found[0] if all(names == found[0] for names in found) else None


def _table(frame: Any, called: str, root: Path | None, box_format: Form | None) -> FrameTable:
    """Find the meaning of a DataFrame's columns.

    Raises:
        DetrkitError: it is no table of boxes, or can be read in two ways.
    """
    names = [str(name) for name in frame.columns]
    numbered = names == [str(k) for k in range(len(names))]  # read_csv(..., header=None)
    row = [_text(value) for value in frame.iloc[0].tolist()] if numbered and len(frame) else names
    try:
        columns = find_columns(row)
    except AmbiguousColumns as error:
        raise DetrkitError(f"{called}: {error}") from error
    if columns is not None and not columns.header and not numbered:
        raise DetrkitError(f"{called}: its columns are named as the first image: read it with header=None")
    if columns is None or (columns.header and numbered):
        listed = first_names([name.strip()[:40] for name in names], 8)
        raise DetrkitError(f"{called}: no table of boxes: its columns are {listed}; expected {EXPECTED}")
    if box_format is not None:
        if len(columns.box) != 1 and box_format != columns.form:
            raise DetrkitError(f"{called}: box_format={box_format!r}, but the names of its columns say {columns.form}")
        columns = replace(columns, form=box_format)
    return FrameTable(Path(called), columns, frame, root)


def _without_split(table: FrameTable) -> FrameTable:
    """Return the table without its column of the split, which the key of a dict states."""
    return replace(table, columns=replace(table.columns, split=None))


def _text(value: Any) -> str:
    """Return a value as a CSV has it: empty if it is missing, 3.0 as 3, a box as four numbers."""
    if type(value) is str:
        return value
    if type(value) is float:
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else repr(value)
    if type(value).__name__ in _MISSING:
        return ""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        value = value.tolist()
        return _text(value)
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return str(value)


__all__ = ["FRAME", "Columns", "FrameReader", "FrameTable", "is_frame"]
