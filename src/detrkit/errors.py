"""Errors that end a command with one clear line."""

from __future__ import annotations

import shlex
import signal


class DetrkitError(Exception):
    """Bad input from outside: the message names the file, the field and the fix; the command line prints only that."""


class PeerError(DetrkitError):
    """Another process of the run found the input bad and says so: this one has nothing to add."""


class WriteError(DetrkitError):
    """Something cannot be written: no room, no permission, a folder that is gone."""


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
        if saved:
            super().__init__(f"{stopped}; go on with: {command or f'detrkit train --resume {shlex.quote(folder)}'}")
        else:
            super().__init__(f"{stopped}: nothing was saved; {command or 'the same command'} starts it again")
        self.number = number
        self.folder = folder
        self.agreed = agreed


class SettingError(DetrkitError, ValueError):
    """A setting out of its range, or settings that do not go together."""


class ImageSizeError(DetrkitError, ValueError):
    """An image is too large for a model with learned positions."""
