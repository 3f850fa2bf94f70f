"""CSV of boxes: one row for each box, as Kaggle's competitions, TensorFlow's tutorials and others have it.

- `csv_columns` says what the columns mean. A row whose box is empty is an image without objects. An image
  without a row is not part of the dataset; `check` lists it as unused.
- The separator is the comma, semicolon or tab that is most often in the first line; the comma if it is none.
- Numbers are pixels, or relative to the sides of the image: the largest of a table decides, up to 1 is relative, above
  2 pixels, anything between is refused. Open Images and AutoML are always relative.
- Splits: the values of a column split or set (in lower case); else each table is one, named as its file without words
  such as labels (train_labels.csv, validation-annotations-bbox.csv), "all" if no other word is left.
- Classes: classes.txt or labels.txt, one name a line; classes.csv of name and number, as keras-retinanet has it; else
  the names in all tables, in alphabetical order. A table without a class has the one class "object". Category ids are
  the numbers, where classes have numbers, else they count from 1.
- Images are looked for as those of a COCO json (`coco_places`); names without suffix get that of the file there. An
  image's id is its position in the split, from 1, and that of an annotation the position of its row.
- Without width and height, sizes come from the headers of the images.

A table is read row by row. A million rows of 100,000 images take about 12 s of a CPU and 730 MB.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detrkit.data.images import SUFFIXES
from detrkit.data.readers.base import Reader, Reading, register_reader
from detrkit.data.readers.class_names import check_class_names, read_class_file
from detrkit.data.readers.coco import no_garbage_collection
from detrkit.data.readers.coco_places import Place, image_files, usual_places
from detrkit.data.readers.common import Findings, make_record, size_or_error
from detrkit.data.readers.csv_columns import Columns
from detrkit.data.readers.csv_rows import ONLY_CLASS, ImageRows, Rows, Units, are_relative, collect_objects
from detrkit.data.readers.csv_tables import SUFFIXES as CSV_SUFFIXES
from detrkit.data.readers.csv_tables import Table, csv_files, find_tables
from detrkit.structures.classes import ClassList
from detrkit.utils.documents import shown
from detrkit.utils.errors import DetrkitError

_TRIED = 20  # names without suffix


@register_reader
class CsvReader(Reader):
    """Reader of CSV tables of boxes."""

    name = "csv"
    expects = "CSV (a table with columns of the image, the class and the box)"
    no_objects_cause = "the columns of the box are empty"
    divided_by = "a column split that says train or val"

    def recognize(self, path: Path) -> bool:
        """Tell whether `path` is a CSV, or a folder with one that has columns of an image and of a box."""
        if path.is_file():
            return path.suffix.lower() in CSV_SUFFIXES
        return path.is_dir() and bool(csv_files(path))

    def splits(self, path: Path) -> list[str]:
        """Return the names of the splits.

        Raises:
            DetrkitError: no table of boxes, one that can be read in two ways, or a split that is in two tables.
        """
        return list(find_tables(path))

    def read(self, path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None) -> Reading:
        """Read one split, as `Reader.read`.

        Raises:
            DetrkitError: masks were requested, columns that can be read in two ways, coordinates of unclear units, or
                (strict findings) any error in the rows.
        """
        if masks:
            raise DetrkitError(f"{path}: a CSV of boxes has no masks; open it without masks")
        return read_tables(path, find_tables(path), split, findings if findings is not None else Findings())


def read_tables(
    path: Path,
    tables: Mapping[str, Table],
    split: str,
    findings: Findings,
    class_names: Sequence[str] | None = None,
) -> Reading:
    """Read one split of tables of boxes, in files or in memory.

    Args:
        path: of the dataset, for lists of classes beside the tables and for messages.
        tables: split -> its table.
        split: one of them.
        findings: takes what is wrong.
        class_names: in label order, where the tables state it; by default as at the top of this file.

    Raises:
        DetrkitError: as `CsvReader.read`.
    """
    table = tables[split]
    with no_garbage_collection():
        rows = Rows(table, split, findings)
        if class_names is None:
            others = [other for other in dict.fromkeys(tables.values()) if other is not table]
            names = rows.class_names.union(*map(_names_of_classes, others))
            classes = _read_classes(path, tables, names, findings)
        else:
            check_class_names((("name of a class", name) for name in class_names), table.file, findings)
            classes = ClassList(tuple(class_names), tuple(range(1, len(class_names) + 1)), unused=frozenset())
        relative = are_relative(table, rows.largest, findings)
        images = dict(enumerate(rows.images.values(), 1))
        files = _files_of(table, split, images, findings)
        images = {i: image for i, image in images.items() if i in files}
        findings.measured.update(files[i] for i, image in images.items() if image.size is None)
        with ThreadPoolExecutor(8) as pool:  # headers of thousands of files, often on a network disk
            sizes = list(pool.map(lambda i: images[i].size or size_or_error(files[i]), images))
        label_of = {name: label for label, name in enumerate(classes.names)}
        units = Units(table, relative)
        records = []
        for (image_id, image), size in zip(images.items(), sizes, strict=True):
            if isinstance(size, DetrkitError):
                reason = str(size).removeprefix(f"{files[image_id]}: ")
                if files[image_id] not in findings.missing:
                    in_memory = table.file != table.place  # where no file has the row
                    where = table.where_image(image_id, images[image_id].first_line) if in_memory else ""
                    findings.add("error", files[image_id], where, reason)
                continue
            objects = collect_objects(image, size, units, label_of, findings)
            records.append(make_record(image_id, files[image_id], size, objects, table.file, findings))
        units.check(findings)
    return Reading(classes, records, findings)


def _files_of(table: Table, split: str, images: Mapping[int, ImageRows], findings: Findings) -> dict[int, Path]:
    """Map the ids of images to their files, for those that have one."""
    names = {i: image.name for i, image in images.items()}
    absolute = table.absolute_files(names)
    names = _with_suffixes(table.place, split, {i: n for i, n in names.items() if i not in absolute}, findings)
    if not names:
        return absolute

    def where(image_id: int) -> str:
        return table.where_image(image_id, images[image_id].first_line)

    return absolute | image_files(table.place, split, names, findings, called=table.file, where=where)


def _names_of_classes(table: Table) -> set[str]:
    """Return the names of the classes in a table; faults of its rows are reported when its split is read."""
    column = table.columns.label
    if column is None:
        return {ONLY_CLASS}
    box, count = table.columns.box, table.columns.count
    names = {row[column] for _, row in table.rows() if len(row) >= count and any(row[k].strip() for k in box)}
    return {name.strip() for name in names} - {""}


def _read_classes(path: Path, tables: Mapping[str, Table], used: set[str], findings: Findings) -> ClassList:
    """Read the classes by the rule at the top of this file.

    Raises:
        DetrkitError: tables with and without a column of the class, no class, or (strict findings) a name that cannot
            be used.
    """
    without = [table.file.name for table in tables.values() if table.columns.label is None]
    if 0 < len(without) < len(tables):
        raise DetrkitError(f"{path}: {without[0]} has no column of the class, but other tables have: add it")
    folders = [path] if path.is_dir() else [path.parent]
    folders += [table.place.parent for table in tables.values()]
    for folder in dict.fromkeys(folders):
        for name in ("classes.txt", "labels.txt"):
            if (folder / name).is_file():
                listed = read_class_file(folder / name, findings, numbered=False)
                return ClassList(tuple(listed), tuple(range(1, len(listed) + 1)), unused=frozenset())
        if (folder / "classes.csv").is_file():
            return _numbered_classes(folder / "classes.csv", findings)
    file = next(iter(tables.values())).file
    if not used:
        raise DetrkitError(f"{file}: no row has a box: there is no class to learn")
    if all(name.isascii() and name.isdecimal() and len(name) < 10 for name in used):
        numbers = {int(name): name for name in sorted(used)}
        if len(numbers) == len(used):
            return ClassList.contiguous(numbers)
    names = sorted(used)
    check_class_names((("name of a class", name) for name in names), file, findings)
    return ClassList(tuple(names), tuple(range(1, len(names) + 1)), unused=frozenset())


def _numbered_classes(file: Path, findings: Findings) -> ClassList:
    """Read a classes.csv: rows of name and number.

    Raises:
        DetrkitError: other rows, or (strict findings) a name that cannot be used.
    """
    numbers: dict[int, str] = {}
    for line, row in Table(file, Columns(count=2, header=False, image=0, box=(), form="xyxy")).rows():
        if len(row) != 2 or not (row[1].strip().isascii() and row[1].strip().isdecimal() and len(row[1]) < 10):
            if line == 1:  # a header
                continue
            raise DetrkitError(f"{file}: line {line}: expected the name of a class and its number")
        if int(row[1]) in numbers:
            findings.add("error", file, f"line {line}", f"number {int(row[1])} is used twice")
        numbers[int(row[1])] = row[0].strip()
    if not numbers:
        raise DetrkitError(f"{file}: lists no class: write a name and a number in each row")
    check_class_names(((f"class {number}", name) for number, name in sorted(numbers.items())), file, findings)
    return ClassList.contiguous(numbers)


def _with_suffixes(file: Path, split: str, names: Mapping[int, str], findings: Findings) -> dict[int, str]:
    """Complete names without suffix, as Kaggle's ids of images, by the files in the first place with some.

    A number also stands for a file whose name has zeros before it, which programs that read ids as numbers leave out.
    """
    completed = dict(names)
    bare = {i: name for i, name in names.items() if os.path.splitext(name)[1].lower() not in SUFFIXES}
    listings: dict[Path, dict[str, list[str]]] = {}

    def fits(place: Place, name: str) -> list[str]:
        target = place.file(name)
        if target is None:
            return []
        if target.parent not in listings:
            listings[target.parent] = _by_stem(target.parent)
        listing = listings[target.parent]
        found = listing.get(target.name, [])
        return found or (listing.get(_number(target.name), []) if target.name.isdecimal() else [])

    sample = list(bare.values())[:_TRIED]
    place = next((p for p in usual_places(file, split) if any(fits(p, name) for name in sample)), None)
    if place is None:
        return completed
    for image_id, name in bare.items():
        files = fits(place, name)
        if len(files) > 1:
            reason = f"{shown(name)} can be {' or '.join(text[-80:] for text in files[:2])}: write the suffix"
            findings.add("error", file, f"image {image_id}", reason)
        if files:
            completed[image_id] = name[: len(name) - len(re.split(r"[/\\]", name)[-1])] + files[0]
    return completed


def _number(digits: str) -> str:
    """Return the key of a number, however many zeros are before it; no stem of a file has it."""
    return "/" + digits.lstrip("0")


def _by_stem(folder: Path) -> dict[str, list[str]]:
    """Map the names of images in a folder, without suffix, to their names; numbers also by `_number`."""
    names: dict[str, list[str]] = {}
    try:
        entries = sorted(os.listdir(folder))
    except OSError:  # there is no folder, or it cannot be read
        return {}
    for name in entries:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SUFFIXES and not name.startswith("."):
            names.setdefault(stem, []).append(name)
            if stem.isdecimal():
                names.setdefault(_number(stem), []).append(name)
    return names
