"""Lists and tables of images: a text file with a path a line, a CSV, a parquet file of paths or of images."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detrkit.batch.sources import Item, Source, bad_reference, listed_path, unicode_name
from detrkit.utils.documents import open_text, require_regular
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import names_and_more
from detrkit.utils.names import expanded_path
from detrkit.utils.visible import one_line

PATH_COLUMNS = ("path", "file", "file_name", "filename", "filepath", "image_path", "image")
ID_COLUMNS = ("id", "image_id")
_ROWS = 1024  # of a parquet file at once
_CHUNK = 2**20  # bytes


class _TableSource(Source):
    """A file that names images, relative to its folder.

    Args:
        name: of the file, as typed.
    """

    ordered = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._file = expanded_path(name)

    def signature(self) -> str:
        """Return a digest of the file; errors as of `Source.signature`."""
        digest = hashlib.sha256()
        try:
            require_regular(self._file)
            with self._file.open("rb") as file:
                while part := file.read(_CHUNK):
                    digest.update(part)
        except OSError as error:
            raise DetrkitError(f"{self.name}: cannot be read ({error.strerror or error})") from error
        return digest.hexdigest()

    def image(self, ref: Any) -> Path | bytes:
        """Return the file of an image; arguments and errors as of `Source.image`."""
        if not isinstance(ref, str):
            raise bad_reference(self.name, ref)
        return listed_path(ref, self._file.parent, self.name)

    def _item(self, path: str, name: str | None, where: str) -> Item:
        listed_path(path, self._file.parent, where)  # an address is refused before anything is predicted
        return Item(path if name is None else name, path)


class ListSource(_TableSource):
    """A text file with the path of an image a line; empty lines are skipped. The id is the line.

    Args:
        name: of the file, as typed.
    """

    def items(self) -> Iterator[Item]:
        """Yield the images; errors as of `Source.items`."""
        with open_text(self._file) as lines:
            for number, line in enumerate(lines, 1):
                if path := line.rstrip("\r\n"):
                    yield self._item(path, None, f"{self.name}, line {number}")


class CsvSource(_TableSource):
    """A CSV (also with semicolons or tabs) with a column of paths, and perhaps one of ids.

    Args:
        name: of the file, as typed.
    """

    def items(self) -> Iterator[Item]:
        """Yield the images; errors as of `Source.items`."""
        with open_text(self._file) as text:
            first = text.readline()
            text.seek(0)
            separator = max(",;\t", key=first.count)
            rows = csv.reader(text, delimiter=separator, strict=True)
            try:
                header = [cell.strip().lower() for cell in next(rows, [])]
                path, name = self._columns(header)
                for row in rows:
                    if not row:
                        continue
                    where = f"{self.name}, line {rows.line_num}"
                    cells = [row[column] if column < len(row) else "" for column in (path, name)]
                    if not all(cells):
                        raise DetrkitError(f"{where}: no value in column {header[path if not cells[0] else name]}")
                    yield self._item(cells[0], cells[1] if name != path else None, where)
            except csv.Error as error:
                raise DetrkitError(f"{self.name}, line {rows.line_num}: malformed CSV ({error})") from error

    def _columns(self, header: Sequence[str]) -> tuple[int, int]:
        """Return the numbers of the columns of paths and of ids."""
        path = next((column for column in PATH_COLUMNS if column in header), None)
        if path is None:
            raise no_column(self.name, header)
        name = next((column for column in ID_COLUMNS if column in header), path)
        return header.index(path), header.index(name)


class ParquetSource(_TableSource):
    """A parquet file with a column of images, as `datasets` writes it, or of paths; perhaps with one of ids.

    Args:
        name: of the file, as typed.
    """

    def items(self) -> Iterator[Item]:
        """Yield the images; errors as of `Source.items`."""
        from detrkit.data.sources import open_parquet, parquet_errors

        table = open_parquet(self._file)
        with parquet_errors(self._file):
            names = list(table.schema_arrow.names)
            embedded = self._embedded(table.schema_arrow)
            path = None if embedded else next((column for column in PATH_COLUMNS if column in names), None)
            if not embedded and path is None:
                raise no_column(self.name, names)
            ids = next((column for column in ID_COLUMNS if column in names), None)
            columns = [ids] if ids is not None else []
            columns += [path] if path is not None else ["image.path"] if embedded == "named" and ids is None else []
            if not columns:
                yield from (Item(f"row {row}", [row, f"row {row}"]) for row in range(table.metadata.num_rows))
                return
            row = 0
            for batch in table.iter_batches(_ROWS, columns=columns, use_threads=False):
                for values in batch.to_pylist():
                    yield self._row(row, values, ids, path)
                    row += 1

    def _row(self, row: int, values: dict[str, Any], ids: str | None, path: str | None) -> Item:
        where = f"{self.name}, row {row}"
        image = values.get("image")
        name = values.get(ids) if ids is not None else (image or {}).get("path") if isinstance(image, dict) else None
        if ids is not None and name is None:
            raise DetrkitError(f"{where}: no value in column {ids}")
        if path is None:
            text = f"row {row}" if name is None else str(name)
            return Item(unicode_name(text), [row, text])
        value = values[path]
        if not isinstance(value, str):
            raise DetrkitError(f"{where}: column {path} has {type(value).__name__}, not the path of an image")
        return self._item(value, None if name is None else str(name), where)

    @staticmethod
    def _embedded(schema: Any) -> str | None:
        """Return "named" or "unnamed" where the table holds the images themselves, None where it does not."""
        import pyarrow

        if "image" not in schema.names:
            return None
        kind = schema.field("image").type
        if pyarrow.types.is_struct(kind):
            fields = [kind.field(number).name for number in range(kind.num_fields)]
            return ("named" if "path" in fields else "unnamed") if "bytes" in fields else None
        return "unnamed" if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind) else None

    def image(self, ref: Any) -> Path | bytes:
        """Return an image, of which a copy of the file is made once a machine (`detrkit.data.sources`)."""
        if isinstance(ref, str):
            return super().image(ref)
        from detrkit.data.sources import ParquetImage

        if not (isinstance(ref, list) and len(ref) == 2 and isinstance(ref[0], int) and ref[0] >= 0):
            raise bad_reference(self.name, ref)
        return ParquetImage(self._file, ref[0], str(ref[1])).read()


def no_column(name: str, columns: Sequence[str]) -> DetrkitError:
    """Return the error for a table without a column of paths."""
    shown = one_line(names_and_more(columns, 8)) or "none"
    return DetrkitError(f"{name}: no column of paths: name one of them path (its columns are {shown})")
