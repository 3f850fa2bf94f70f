"""Tables of a CSV dataset: which files are tables of boxes, their splits, and their rows."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from detrkit.data.readers.csv_columns import EXPECTED, AmbiguousColumns, Columns, find_columns
from detrkit.utils.documents import open_text
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import first_names
from detrkit.utils.names import checked_name, not_hidden

SUFFIXES = (".csv", ".tsv")
_FOLDERS = ("", "annotations", "data")  # where tables are, below the dataset's folder
_MOST_TABLES = 100  # a folder with more CSVs holds something else
_FIRST_LINE_CHARACTERS = 1 << 16
_USUAL_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "trainval"}
_OTHER_WORDS = {"annotations", "annotation", "labels", "label", "boxes", "bbox", "bboxes", "objects", "data", "dataset"}


@dataclass(frozen=True, eq=False)
class Table:
    """A table of boxes and the meaning of its columns: here a CSV, see `frames` for one in memory.

    Attributes:
        file: the file; of a table in memory what messages call it.
        columns: their meaning.
    """

    file: Path
    columns: Columns
    corners_advice: ClassVar[str] = "write corners into four columns xmin, ymin, xmax, ymax"

    @property
    def place(self) -> Path:
        """Path that the images are looked for beside."""
        return self.file

    def absolute_files(self, names: Mapping[int, str]) -> dict[int, Path]:
        """Return the files of images that the table may name by absolute paths; in a file there are none."""
        return {}

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows that are not empty, with the numbers of their lines, without the header.

        Raises:
            DetrkitError: no text, or a quote without end.
        """
        with open_text(self.file) as stream:
            delimiter = _delimiter(stream.readline(_FIRST_LINE_CHARACTERS))
            stream.seek(0)
            reader = csv.reader(stream, delimiter=delimiter)
            before = 0
            try:
                if self.columns.header:
                    next(reader)
                    before = reader.line_num
                for row in reader:
                    before = reader.line_num
                    if row:
                        yield before, row
            except csv.Error as error:
                reason = f"{error} (a quote without its end?)"
                raise DetrkitError(f"{self.file}: line {before + 1}: {reason}") from error

    def where(self, number: int, columns: Sequence[int] = ()) -> str:
        """Name a row, as messages do; a table in memory also names the columns."""
        return f"line {number}"

    def where_image(self, image_id: int, number: int) -> str:
        """Name an image, as messages do, that row `number` is the first of."""
        return f"image {image_id}"


def csv_files(path: Path) -> list[Path]:
    """List the CSVs of a dataset's folder, or of its annotations/ or data/; none if there are too many."""
    for folder in _FOLDERS:
        files = sorted(file for suffix in SUFFIXES for file in not_hidden(path / folder, f"*{suffix}"))
        if len(files) <= _MOST_TABLES and any(map(is_table, files)):
            return files
    return []


def is_table(file: Path) -> bool:
    """Tell whether a file is a table of boxes; also of one whose columns are ambiguous."""
    try:
        return find_columns(_first_row(file)) is not None
    except AmbiguousColumns:
        return True
    except DetrkitError:
        return False


def find_tables(path: Path) -> dict[str, Table]:
    """Map each split to its table; the splits of a column are all in one.

    Raises:
        DetrkitError: as `CsvReader.splits`.
    """
    files = [path] if path.is_file() else csv_files(path)
    tables = []
    for file in files:
        row = _first_row(file)
        try:
            columns = find_columns(row)
        except AmbiguousColumns as error:
            raise DetrkitError(f"{file}: {error}") from error
        if columns is not None:
            tables.append(Table(file, columns))
        elif path.is_file():
            names = first_names([name.strip()[:40] for name in row])
            raise DetrkitError(f"{file}: no table of boxes: its first row is {names}; expected {EXPECTED}")
    if not tables:
        raise DetrkitError(f"{path}: no table of boxes in it; expected {EXPECTED}")
    split_by_column = next((table for table in tables if table.columns.split is not None), None)
    if split_by_column is not None:
        if len(tables) > 1:
            other = next(table for table in tables if table is not split_by_column)
            raise DetrkitError(
                f"{path}: {split_by_column.file.name} has all splits, and {other.file.name} is a table, too: open one"
            )
        return dict.fromkeys(split_values(split_by_column), split_by_column)
    splits: dict[str, Table] = {}
    for table in tables:
        split = checked_name(split_of(table.file.name), f"{table.file}: the split")
        other = splits.setdefault(split, table)
        if other is not table:
            raise DetrkitError(
                f"{path}: split {split} is in {other.file.name} and in {table.file.name}: open one of them"
            )
    return splits


def split_of(name: str) -> str:
    """Return the split of a table by the name of its file: without words such as labels, "all" if none is left."""
    stem = os.path.splitext(name)[0]
    words = stem.lower().replace("_", "-").replace(".", "-").replace(" ", "-").split("-")
    usual = [word for word in words if word.rstrip("0123456789") in _USUAL_SPLITS]
    if len(usual) == 1:
        return usual[0]
    return stem if set(words) - _OTHER_WORDS - {""} else "all"


def split_values(table: Table) -> list[str]:
    """List the splits that the rows are in.

    Raises:
        DetrkitError: one that is no name of a split.
    """
    column = table.columns.split
    assert column is not None
    values: dict[str, None] = {}
    for number, row in table.rows():
        if len(row) > column and (value := split_value(row[column])) not in values:
            values[checked_name(value, f"{table.file}: {table.where(number, [column])}: the split")] = None
    return list(values) or ["all"]


def split_value(text: str) -> str:
    """Return the name of the split that a row states."""
    return text.strip().lower() or "unassigned"


def _first_row(file: Path) -> list[str]:
    """Return the first row of a file.

    Raises:
        DetrkitError: it cannot be read.
    """
    with open_text(file, strict=False) as stream:  # read in full, another encoding is an error
        line = stream.readline(_FIRST_LINE_CHARACTERS)
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=_delimiter(line)), [])
    except csv.Error as error:
        raise DetrkitError(f"{file}: line 1: {error}") from error


def _delimiter(line: str) -> str:
    """Return what separates the columns, by the rule at the top of this file."""
    return max((",", ";", "\t"), key=line.count)
