"""Errors that end a command with one clear line."""

from __future__ import annotations

import shlex
import signal


class DetrkitError(Exception):
    """Bad input from outside: the message names the file, the field and the fix; the command line prints only that.

    Attributes:
        status: exit status of a command that it ends.
    """

    status = 2


class UsageError(DetrkitError):
    """Words that no command takes: names the word, and what is written here instead."""


class PeerError(DetrkitError):
    """Failure of another process of the run, which reports the reason itself.

    Args:
        message: for callers from Python.
        status: exit status of the other process.
    """

    def __init__(self, message: str, *, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class ProcessEnded(DetrkitError):
    """End of a process, started by this one, by a signal.

    Args:
        message: the error message.
        status: 128 + the signal's number.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class WriteError(DetrkitError):
    """Failure to write: no room, no permission, a folder that is gone."""


IN_PYTHON = "detrkit.train(config, resume=True, data=...)"  # for data in memory


def how_to_go_on(folder: str, command: str | None = None, *, saved: bool = True) -> str:
    """Return the advice after a run was stopped; arguments as those of `Interrupted`."""
    if saved:
        return f"go on with: {command or f'detrkit train --resume {shlex.quote(folder)}'}"
    return f"nothing was saved; {command or 'the same command'} starts it again"


class Interrupted(Exception):
    """End of a run by a signal (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1).

    Attributes:
        number: of the signal.
        folder: of the run.
        agreed: whether all its processes stopped at the same place.

    Args:
        number: of the signal.
        folder: of the run.
        command: that continues it; by default `detrkit train --resume`.
        during: the phase of the run, such as "in the report"; "" where that makes no difference.
        saved: whether there is a state to resume from.
        agreed: as the attribute.
    """

    def __init__(
        self,
        number: int,
        folder: str,
        command: str | None = None,
        *,
        during: str = "",
        saved: bool = True,
        agreed: bool = True,
    ) -> None:
        stopped = " ".join(filter(None, ["stopped by", signal.Signals(number).name, during]))
        advice = how_to_go_on(folder, command, saved=saved)
        super().__init__(f"{stopped}{'; ' if saved else ': '}{advice}")
        self.number = number
        self.folder = folder
        self.agreed = agreed


class SettingError(DetrkitError, ValueError):
    """Error for a setting out of its range, or settings that do not go together."""


class ImageSizeError(DetrkitError, ValueError):
    """Error for an image too large for a model with learned positions."""
