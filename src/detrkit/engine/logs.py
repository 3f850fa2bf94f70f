"""The logs of a run: steps.csv, epochs.csv, TensorBoard."""

from __future__ import annotations

import csv
import io
import os
import socket
import time
from pathlib import Path
from typing import Any

from PIL import Image

from detrkit.utils.atomic import append, check_exists, make_folder, write_atomic
from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError, WriteError


class CsvLog:
    """CSV table that grows line by line; columns may be added, too.

    Args:
        path: the file.
        key: the column that orders the lines; a resumed run drops the lines from its first step or epoch on.
    """

    def __init__(self, path: Path, *, key: str) -> None:
        self.path = path
        self.key = key
        rows = self.rows()
        self.columns: list[str] = list(rows[0]) if rows else []

    def rows(self) -> list[dict[str, Any]]:
        """Return all whole lines, values as text; lines that a kill or a power cut left incomplete are skipped.

        Raises:
            DetrkitError: the file cannot be read, or is no such table.
        """
        try:
            text = self.path.read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DetrkitError(f"{self.path}: cannot be read ({error.strerror})") from error
        lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
        table = csv.reader(lines)
        try:
            columns = next(table, [])
            values = [line for line in table if len(line) == len(columns)]
        except csv.Error as error:
            raise DetrkitError(f"{self.path}: damaged ({error}): move it away") from error
        if columns and (self.key not in columns or len(set(columns)) < len(columns)):
            raise DetrkitError(f"{self.path}: damaged, it has no column {self.key!r}: move it away")
        rows = [dict(zip(columns, line, strict=True)) for line in values]
        return [row for row in rows if row[self.key].isdecimal()]

    def add(self, row: dict[str, Any]) -> None:
        """Append a line, whole or not at all.

        Raises:
            WriteError: it cannot be written, or the folder is gone.
        """
        check_exists(self.path.parent)
        if set(row) - set(self.columns) or not self.path.exists():
            rows = self.rows()
            self.columns += [c for c in row if c not in self.columns]
            write_atomic(self.path, self._text([*rows, row]))
            return
        append(self.path, self._text([row], header=False).encode(), lines=True)

    def keep_before(self, value: int) -> None:
        """Drop incomplete lines, and those with a key of `value` or more, which came after the resumed state.

        Raises:
            DetrkitError: the file cannot be read or written, or is no such table.
        """
        rows = [r for r in self.rows() if int(r[self.key]) < value]
        text = self._text(rows)
        if self.path.exists() and self.path.read_bytes() != text.encode():
            write_atomic(self.path, text)

    def _text(self, rows: list[dict[str, Any]], *, header: bool = True) -> str:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, self.columns)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()


class TensorBoardLog:
    """Log of scalars for TensorBoard; does nothing when switched off.

    The file is written here and not by torch's SummaryWriter, whose thread prints a traceback when the disk is full
    and raises the error anywhere later. A failed write never ends a run: the error is printed once, and the run goes on
    without this log.

    Args:
        folder: created if it does not exist.
        on: whether to write.
        purge_step: of a resumed run, its next step: TensorBoard forgets earlier points from there on.
    """

    def __init__(self, folder: Path, *, on: bool, purge_step: int | None = None) -> None:
        self.on = on
        self.path = folder / f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        if not on:
            return
        from tensorboard.compat.proto.event_pb2 import SessionLog

        events: list[dict[str, Any]] = [{"file_version": "brain.Event:2"}]
        if purge_step is not None:
            events.append({"step": purge_step, "session_log": SessionLog(status=SessionLog.START)})
        try:
            make_folder(folder)
        except WriteError as error:
            self._give_up(error)
        self._write(events)

    def add(self, values: dict[str, Any], step: int) -> None:
        """Add one point to each curve."""
        if not self.on:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        points = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float)
        ]
        self._write([{"step": step, "summary": Summary(value=points)}])

    def add_image(self, name: str, png: bytes, step: int) -> None:
        """Add an image, the content of a PNG file."""
        if not self.on:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(io.BytesIO(png)) as image:
            width, height = image.size
        shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._write([{"step": step, "summary": Summary(value=[Summary.Value(tag=name, image=shown)])}])

    def _write(self, events: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        if not self.on:
            return
        buffer = io.BytesIO()
        for event in events:
            RecordWriter(buffer).write(Event(wall_time=time.time(), **event).SerializeToString())
        try:
            append(self.path, buffer.getvalue())
        except WriteError as error:
            self._give_up(error)

    def _give_up(self, error: WriteError) -> None:
        self.on = False
        console.print(f"warning: {error}; the run goes on without TensorBoard")
