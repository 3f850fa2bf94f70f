"""Errors that end a command with one clear line."""

from __future__ import annotations


class DetrkitError(Exception):
    """Bad input from outside: the message names the file, the field and the fix; the command line prints only that."""
