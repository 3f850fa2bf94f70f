"""Files of results: a row for each image, as JSON lines or parquet, written and read row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from detrkit.batch.plan import RowFormat
from detrkit.utils.atomic import write_errors
from detrkit.utils.documents import parse_json
from detrkit.utils.errors import DetrkitError

_GROUP_ROWS = 512  # of a parquet file's row group
_GROUP_BYTES = 2**24  # of masks as text, after which a row group is written
_MAX_LINE = 2**30  # bytes


class RowWriter(Protocol):
    """Takes the rows of a file."""

    def add(self, row: dict[str, Any]) -> None:
        """Write a row.

        Raises:
            WriteError: it cannot be written.
        """


@contextmanager
def row_writer(file: Path, rows: RowFormat, shown: Path) -> Iterator[RowWriter]:
    """Yield what writes the rows of a file, which is complete at the end of the context.

    Args:
        file: to write.
        rows: its format.
        shown: name of the file in messages.

    Raises:
        DetrkitError: pyarrow is not installed.
        WriteError: the file cannot be written.
    """
    with write_errors(shown):
        if rows == "parquet":
            with _parquet_writer(file, shown) as writer:
                yield writer
        else:
            with file.open("wb") as stream:
                yield _JsonLines(stream, shown)


class _JsonLines:
    def __init__(self, stream: Any, shown: Path) -> None:
        self._stream, self._shown = stream, shown

    def add(self, row: dict[str, Any]) -> None:
        with write_errors(self._shown):
            self._stream.write(json_line(row))


def json_line(row: dict[str, Any]) -> bytes:
    """Return a row as a line of ASCII: no name in it can end the line, whatever a reader takes for an end."""
    return json.dumps(row, allow_nan=False).encode("ascii") + b"\n"


def read_rows(file: Path, rows: RowFormat) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of results.

    Raises:
        DetrkitError: it cannot be read, or was changed.
    """
    if rows == "parquet":
        yield from _parquet_rows(file)
        return
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                row = parse_json(line, f"{file}, line {number}")
                if not isinstance(row, dict):
                    raise DetrkitError(f"{file}, line {number}: is no row of results")
                yield row
    except OSError as error:
        raise DetrkitError(f"{file}: cannot be read ({error.strerror or error})") from error


def check_format(rows: RowFormat) -> None:
    """Check that a format can be written here.

    Raises:
        DetrkitError: pyarrow is not installed.
    """
    if rows == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise DetrkitError("--format parquet needs pyarrow: pip install 'detrkit[parquet]'") from error


def parquet_schema() -> Any:
    """Return the schema of the rows; floats are those of the model, of 32 bits."""
    import pyarrow as pa

    mask = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    common = [
        ("score", pa.float32()),
        ("label", pa.int32()),
        ("category_id", pa.int64()),
        ("name", pa.string()),
        ("query", pa.int32()),
        ("segmentation", mask),
    ]
    detection = pa.struct([("box", pa.list_(pa.float32())), *common])
    segment = pa.struct([("id", pa.int32()), ("kind", pa.string()), ("area", pa.int64()), *common])
    return pa.schema(
        [
            ("id", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("detections", pa.list_(detection)),
            ("segments", pa.list_(segment)),
            ("error", pa.struct([("kind", pa.string()), ("message", pa.string())])),
            ("model", pa.string()),
        ]
    )


@contextmanager
def _parquet_writer(file: Path, shown: Path) -> Iterator[RowWriter]:
    check_format("parquet")
    import pyarrow.parquet

    schema = parquet_schema()
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        table = _Parquet(writer, schema, shown)
        yield table
        table.flush()


class _Parquet:
    def __init__(self, writer: Any, schema: Any, shown: Path) -> None:
        self._writer, self._schema, self._shown = writer, schema, shown
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        found = [*(row.get("detections") or ()), *(row.get("segments") or ())]
        self._bytes += sum(len(one["segmentation"]["counts"]) for one in found if one.get("segmentation"))
        if len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            with write_errors(self._shown):
                self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows, self._bytes = [], 0


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    from detrkit.data.sources import open_parquet, parquet_errors

    table = open_parquet(file)
    with parquet_errors(file):
        for batch in table.iter_batches(_GROUP_ROWS, use_threads=False):
            yield from batch.to_pylist()
