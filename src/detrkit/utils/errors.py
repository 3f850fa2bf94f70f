"""Errors that end a command with one clear line."""

from __future__ import annotations

import shlex
import signal


class DetrkitError(Exception):
    """Bad input from outside: the message names the file, the field and the fix; the command line prints only that.

    Attributes:
        status: of a command that it ends.
    """

    status = 2


class PeerError(DetrkitError):
    """Another process of the run has failed and says why: this one has nothing to add.

    Args:
        message: for who calls from Python.
        status: with which the other process ends its command.
    """

    def __init__(self, message: str, *, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


class ProcessEnded(DetrkitError):
    """A process that this one started was ended by a signal.

    Args:
        message: says so.
        status: 128 + the signal's number.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class WriteError(DetrkitError):
    """Something cannot be written: no room, no permission, a folder that is gone."""


def how_to_go_on(folder: str, command: str | None = None, *, saved: bool = True) -> str:
    """What to do after a run was stopped; arguments as those of `Interrupted`."""
    if saved:
        return f"go on with: {command or f'detrkit train --resume {shlex.quote(folder)}'}"
    return f"nothing was saved; {command or 'the same command'} starts it again"


class Interrupted(Exception):
    """A run was asked to stop by a signal (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1).

    Attributes:
        number: of the signal.
        folder: of the run.
        agreed: whether all its processes stopped at the same place.

    Args:
        number: of the signal.
        folder: of the run.
        command: that goes on with it; by default `detrkit train --resume`.
        during: what the run was doing, such as "in the report"; "" where that makes no difference.
        saved: whether there is a state to go on from.
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
    """A setting out of its range, or settings that do not go together."""


class ImageSizeError(DetrkitError, ValueError):
    """An image is too large for a model with learned positions."""
