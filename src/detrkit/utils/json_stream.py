"""A JSON object that is written entry by entry: as long as it becomes, memory holds one entry."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from detrkit.utils.atomic import atomic_file, write_errors

_END = b"\n}\n"


class JsonStream:
    """A context that writes `{key: value, ...}` as `json.dumps(..., indent=1)` does, under a temporary name.

    The file is whole after each entry, so that only its name is left to be given: that takes no room on a full disk.

    Args:
        path: the file.

    Attributes:
        count: entries that are written.

    Raises:
        WriteError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._open = atomic_file(path)
        self._part = self._open.__enter__()
        self._file = self._part.open("wb", buffering=0)
        self._end = 0  # of the entries: what comes after is `_END`
        try:
            with write_errors(path):
                self._put(0, b"{}\n")
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def add(self, key: str, value: Any) -> None:
        """Writes an entry.

        Raises:
            WriteError: it cannot be written; the entries before it are.
        """
        text = json.dumps({key: value}, indent=1)[1:-2].encode()  # without the braces
        data = (b"," if self.count else b"{") + text
        with write_errors(self.path):
            try:
                self._put(self._end, data + _END)
            except BaseException:
                with suppress(OSError):
                    self._put(self._end, _END if self.count else b"{}\n")  # its place is there already
                raise
        self._end += len(data)
        self.count += 1

    def _put(self, start: int, data: bytes) -> None:
        """Writes what the file has from `start` on."""
        self._file.seek(start)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._file.truncate()

    def publish(self) -> None:
        """Gives a copy of the entries so far the name of the file.

        Raises:
            WriteError: it cannot be written.
        """
        with atomic_file(self.path) as part, write_errors(self.path):
            shutil.copyfile(self._part, part)

    def finish(self) -> None:
        """Gives the entries the name of the file; nothing can be added any more.

        Raises:
            WriteError: it cannot.
        """
        self._file.close()
        self._open.__exit__(None, None, None)

    def discard(self) -> None:
        """Removes what has not been published, unless it is finished."""
        if self._file.closed:
            return
        self._file.close()
        stop = GeneratorExit()
        with suppress(GeneratorExit):
            self._open.__exit__(GeneratorExit, stop, None)
