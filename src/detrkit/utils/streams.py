"""Standard output and standard error that may be closed, full, a pipe without a reader, or of any encoding.

Work is not lost because a line about it cannot be written: unwritable output is dropped, and reported at the end.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

BROKEN_PIPE = 141  # 128 + SIGPIPE, the status of programs whose reader has left


class LossyStream:
    """A text stream that drops what cannot be written, from the first failure on.

    Args:
        stream: to write to.

    Attributes:
        failure: the first error; None without any.
        patient: whether writing goes on when the reader leaves (`| head -1`). Otherwise it raises BrokenPipeError.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        self.patient = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write or drop a text; return its length."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Write or drop the buffered text."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Discard further output: buffered text would be tried again with every line, and at the end."""
        first = self.failure is None
        self.failure = self.failure or error
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            self._stream.flush()
        if first and isinstance(error, BrokenPipeError) and not self.patient:
            raise error


class Streams:
    """The two streams of a command.

    Args:
        out: standard output.
        err: standard error.
    """

    def __init__(self, out: LossyStream, err: LossyStream) -> None:
        self.out, self.err = out, err

    def status(self, status: int) -> int:
        """Return the exit status of a finished command, and print a line if its output has been lost.

        Args:
            status: of the command itself; kept unless the output is what the command is for (`out.patient` is False).
        """
        with suppress(BrokenPipeError):
            self.out.flush()
        failure = self.out.failure
        if isinstance(failure, BrokenPipeError):
            status = status if self.out.patient else BROKEN_PIPE
        elif failure is not None:
            lost = f"standard output: {failure.strerror}: what should be there is lost"
            self.err.write(f"detrkit: {'' if self.out.patient else 'error: '}{lost}\n")
            status = status if self.out.patient else status or 2
        self.err.flush()
        return status


@contextmanager
def lossy_streams(*, program: bool) -> Iterator[Streams]:
    """Replace sys.stdout and sys.stderr by streams that drop unwritable lines.

    Args:
        program: the process is the command's own: its closed file descriptors are opened, and stay so. The next file
            would get the number of a closed one, and what a library writes to standard error would go into it.
    """
    if program:
        _open_closed()
    before = sys.stdout, sys.stderr
    out, err = (LossyStream(_writable(stream)) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield Streams(out, err)
    finally:
        if not program:  # the end of a program also flushes the streams
            sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Open the null device on those of the three standard file descriptors that are closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is given


def _writable(stream: TextIO | None) -> TextIO:
    """Return a stream that takes any text: a name outside its encoding must not end a command."""
    if stream is None:  # closed when Python started
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
