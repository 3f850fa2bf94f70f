"""The logs of a run: steps.csv, epochs.csv, TensorBoard."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from detrkit.errors import DetrkitError


class CsvLog:
    """A table that grows by a line, whose columns may grow too.

    Args:
        path: the file.
        key: the column that orders the lines; on resume, lines at or beyond a value of it are dropped.
    """

    def __init__(self, path: Path, *, key: str) -> None:
        self.path = path
        self.key = key
        self.columns: list[str] = []
        if path.exists():
            self.columns = list(self.rows()[0]) if self.rows() else []

    def rows(self) -> list[dict[str, Any]]:
        """All lines, values as text."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def add(self, row: dict[str, Any]) -> None:
        """Appends a line."""
        if set(row) - set(self.columns):
            rows = self.rows()
            self.columns += [c for c in row if c not in self.columns]
            self._write([*rows, row])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def keep_before(self, value: int) -> None:
        """Drops lines whose key is `value` or more: what came after the state that is resumed."""
        rows = self.rows()
        kept = [r for r in rows if int(r[self.key]) < value]
        if len(kept) != len(rows):
            self._write(kept)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(rows)
            os.replace(temporary, self.path)
        except OSError as error:
            raise DetrkitError(f"cannot write {self.path}: {error.strerror or error}") from error


class TensorBoardLog:
    """Scalars for TensorBoard, or nothing when switched off."""

    def __init__(self, folder: Path, *, on: bool, purge_step: int | None = None) -> None:
        self._writer: Any = None
        if on:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def add(self, values: dict[str, Any], step: int) -> None:
        """One point of each curve."""
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()
