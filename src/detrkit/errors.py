"""Errors that end a command with one clear line."""

from __future__ import annotations

import signal


class DetrkitError(Exception):
    """Bad input from outside: the message names the file, the field and the fix; the command line prints only that."""


class Interrupted(Exception):
    """A run was asked to stop by a signal (Ctrl-C, SIGTERM, SIGUSR1) and has saved its state.

    Attributes:
        number: of the signal.
        folder: of the run.
        command: that goes on with it; by default `detrkit train --resume`.
    """

    def __init__(self, number: int, folder: str, command: str | None = None) -> None:
        command = command or f"detrkit train --resume {folder}"
        super().__init__(f"stopped by {signal.Signals(number).name}; go on with: {command}")
        self.number = number
        self.folder = folder


class ImageSizeError(DetrkitError, ValueError):
    """An image is too large for a model with learned positions."""
