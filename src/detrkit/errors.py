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
    """

    def __init__(self, number: int, folder: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; go on with: detrkit train --resume {folder}")
        self.number = number
        self.folder = folder


class ImageSizeError(DetrkitError, ValueError):
    """An image is too large for a model with learned positions."""
