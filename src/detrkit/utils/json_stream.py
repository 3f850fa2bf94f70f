"""A JSON object written entry by entry: memory holds one entry, however long it becomes."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from detrkit.utils.atomic import atomic_file, write_errors

_END = b"\n}\n"


def entry_text(key: str, value: Any) -> bytes:
    """Format an entry of an object as `json.dumps(..., indent=1)` does, without the braces."""
    return json.dumps({key: value}, indent=1)[1:-2].encode()


class JsonStream:
    """A context that writes `{key: value, ...}` as `json.dumps(..., indent=1)` does, under a temporary name.

    The file is complete after each entry, so that at the end it is only renamed, which takes no space on a full disk.

    Args:
        path: the file.

    Attributes:
        count: number of entries written.

    Raises:
        WriteError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._open = atomic_file(path)
        self._part = self._open.__enter__()
        self._file = self._part.open("wb", buffering=0)
        self._end = 0  # end of the entries, before `_END`
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
        """Write an entry.

        Raises:
            WriteError: it cannot be written; the entries before it are.
        """
        self.add_text(entry_text(key, value))

    def add_text(self, text: bytes) -> None:
        """Write an entry as `entry_text` formats it.

        Raises:
            WriteError: it cannot be written; the entries before it are.
        """
        data = (b"," if self.count else b"{") + text
        with write_errors(self.path):
            try:
                self._put(self._end, data + _END)
            except BaseException:
                with suppress(OSError):
                    self._put(self._end, _END if self.count else b"{}\n")  # its space is reserved already
                raise
        self._end += len(data)
        self.count += 1

    def _put(self, start: int, data: bytes) -> None:
        """Write the content of the file from `start` on."""
        self._file.seek(start)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._file.truncate()

    def publish(self) -> None:
        """Save a copy of the entries so far under the name of the file.

        Raises:
            WriteError: it cannot be written.
        """
        with atomic_file(self.path) as part, write_errors(self.path):
            shutil.copyfile(self._part, part)

    def finish(self) -> None:
        """Rename the temporary file to the name of the file; nothing can be added any more.

        Raises:
            WriteError: it cannot be renamed.
        """
        self._file.close()
        self._open.__exit__(None, None, None)

    def discard(self) -> None:
        """Remove what has not been published, unless it is finished."""
        if self._file.closed:
            return
        self._file.close()
        stop = GeneratorExit()
        with suppress(GeneratorExit):
            self._open.__exit__(GeneratorExit, stop, None)
