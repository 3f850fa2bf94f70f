"""Standard output and standard error as they may be: closed, full, a pipe whose reader has left, of any encoding.

Work is not lost because a line about it cannot be written: what a stream refuses is dropped, and said at the end.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

BROKEN_PIPE = 141  # 128 + SIGPIPE, with which programs end whose reader has left


class LossyStream:
    """A text stream that drops what cannot be written, from the first failure on.

    Args:
        stream: that is written to.

    Attributes:
        failure: the first error; None while all is well.
        patient: whether a reader that leaves (`| head -1`) is no reason to stop. Otherwise writing raises
            BrokenPipeError then.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        self.patient = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes or drops a text; returns its length."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Writes or drops what is still held back."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Lets what follows go nowhere: what is held back would be tried again with every line, and at the end."""
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
        """The exit status of a command that is done, and a line if its output has been lost.

        Args:
            status: without that; it stays unless the output is what the command is for (`out.patient` is False).
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
    """Puts streams that lose nothing but lines in the place of sys.stdout and sys.stderr.

    Args:
        program: the process is the command's own: its closed file descriptors are opened, and stay so. The next file
            would get the number of a closed one, and what a library writes to standard error would go into it.
    """
    if program:
        _open_closed()
    before = sys.stdout, sys.stderr
    out, err = (LossyStream(_writable(stream)) for stream in before)
    sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
    try:
        yield Streams(out, err)
    finally:
        if not program:  # a program's own ending flushes the streams, too
            sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Gives the three standard file descriptors to the null device where they are closed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is given


def _writable(stream: TextIO | None) -> TextIO:
    """A stream that takes any text: a name that its encoding lacks must not end a command."""
    if stream is None:  # closed when Python began
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream
