"""From the words after a command to an instance of its dataclass, by tyro; or its help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tyro

from detrkit.cli.commands import Command
from detrkit.cli.help import columns, command_help
from detrkit.cli.options import options_of
from detrkit.cli.spelling import check_words
from detrkit.utils.errors import UsageError
from detrkit.utils.launch import several

_HELP = ("-h", "--help", "--help-all")


def parse(command: Command, words: Sequence[str], *, check: bool = True) -> Any:
    """Return the command with the values of the words after it.

    Args:
        command: the command.
        words: after it.
        check: also check paths and names before the defaults are chosen, as `detrkit train` does.

    Raises:
        UsageError: words that the command does not take.
        DetrkitError: a recipe or a run, of which the defaults are, that is missing or unusable.
        SystemExit: help was asked for, and is printed.
    """
    kind = command.load()
    asked = [word for word in _before_separator(words) if word in _HELP]
    if asked:
        default = kind.with_defaults(words) if hasattr(kind, "with_defaults") else None
        everything = "--help-all" in asked
        chosen = kind.chosen_settings(default) if hasattr(kind, "chosen_settings") else ()
        print(command_help(command, kind, everything=everything, default=default, chosen=chosen, width=columns()))
        raise SystemExit(0)
    typed = check_words(command, options_of(kind), words)
    default = None
    if hasattr(kind, "with_defaults"):
        if check and not several():  # several processes must end together: the command's own checks see to that
            kind.check_typed(typed)
        default = kind.with_defaults(words)
    try:
        return tyro.cli(
            kind,
            prog=f"detrkit {command.name}",
            args=typed.words,
            config=(tyro.conf.OmitArgPrefixes,),
            console_outputs=False,
            add_help=False,
            **({} if default is None else {"default": default}),
        )
    except SystemExit as refusal:  # what `check_words` did not foresee
        raise UsageError(
            f"{' '.join(words)}: these words cannot be read: see `detrkit {command.name} --help`"
        ) from refusal


def _before_separator(words: Sequence[str]) -> Sequence[str]:
    """Return the words before "--", after which every word stands for itself."""
    return words[: list(words).index("--")] if "--" in words else words
