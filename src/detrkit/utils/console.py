"""Output of commands: progress bars on a terminal, plain lines in a log.

Names of files and classes are shown as they are: nothing in a text is markup, and control characters are written out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from detrkit.utils.durations import time_words
from detrkit.utils.launch import FIRST_PROCESS as FIRST_PROCESS
from detrkit.utils.visible import visible

T = TypeVar("T")
MIN_COLUMNS, MAX_COLUMNS = 40, 1000  # of a layout, whatever width a terminal or COLUMNS states
SECONDS_BETWEEN_LINES = 15.0  # of progress, where there is no terminal


class Terminal(Console):
    """A terminal, file or pipe that shows texts unchanged.

    Args:
        options: of rich's Console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and lines."""
        width, height = super().size
        return ConsoleDimensions(min(max(width, MIN_COLUMNS), MAX_COLUMNS), height)

    @size.setter
    def size(self, size: tuple[int, int]) -> None:
        self._width, self._height = size

    def on_broken_pipe(self) -> None:
        """Raise the error instead of ending the process with status 1, as rich would."""
        raise

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a text to print; every text, alone or in a table, passes through here."""
        return super().render_str(visible(text), **options)


console = Terminal(soft_wrap=True, quiet=not FIRST_PROCESS)


def table_console(width: int = 120) -> Console:
    """Return a console for tables: as wide as the terminal, or `width` columns for a pipe, which has no width."""
    terminal = Terminal(quiet=not FIRST_PROCESS)
    return terminal if terminal.is_terminal else Terminal(width=width, quiet=not FIRST_PROCESS)


class ProgressBar:
    """Progress bar of one task on a terminal; elsewhere a line every 15 seconds.

    Args:
        title: of the task.
        total: number of items.
        start: number of items that are done already.
        quiet: show nothing.
        words: returns the elapsed and the remaining time; by default those of this task.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        start: int = 0,
        quiet: bool = False,
        words: Callable[[], str] | None = None,
    ) -> None:
        self.title, self.total, self.done, self.quiet = title, total, start, quiet
        self._first = start
        self._words = self._time if words is None else words
        self._began = self._last = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[time]}", markup=False),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=total, completed=start, note="", time="")
            self._bar.start()

    def advance(self, note: str = "") -> None:
        """Advance by one item; `note` is shown behind the bar."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, advance=1, note=note, time=self._words())
        elif not self.quiet and time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            console.print(f"{self.title} {self.done}/{self.total}  {self._words()}  {note}")

    def _time(self) -> str:
        """Return the elapsed and the remaining time of this task."""
        gone = time.monotonic() - self._began
        return time_words(gone, (self.total - self.done) * gone / max(1, self.done - self._first))

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress_bar(
    title: str, total: int, *, start: int = 0, quiet: bool = False, words: Callable[[], str] | None = None
) -> Iterator[ProgressBar]:
    """Yield a `ProgressBar` that is closed at the end."""
    progress = ProgressBar(title, total, start=start, quiet=quiet, words=words)
    try:
        yield progress
    finally:
        progress.close()


def track(items: Iterable[T], title: str, total: int, *, quiet: bool = False) -> Iterator[T]:
    """Iterate with a progress bar."""
    with progress_bar(title, total, quiet=quiet) as progress:
        for item in items:
            yield item
            progress.advance()
