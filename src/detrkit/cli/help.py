"""The text of `--help` and `--help-all` of a command, from its dataclass: plain lines as wide as the terminal."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from detrkit.cli.commands import Command
from detrkit.cli.options import CHOSEN, MISSING, Option, options_of, text_of

MIN_COLUMNS, MAX_COLUMNS = 40, 100
_NAME_COLUMNS = 26  # of the column of options, at most
_EXAMPLES = "Such as:"
_FEW = 3  # examples of the short help
_SECTIONS = {"data": "Data", "model": "Model", "optim": "Optimization", "loss": "Losses", "run": "Run"}
_SENTENCE = re.compile(r"(?<=[\w)\"'])[.] (?=[A-Z])")


def columns() -> int:
    """Return the width of help: the terminal's, within bounds."""
    return min(max(shutil.get_terminal_size().columns, MIN_COLUMNS), MAX_COLUMNS)


def command_help(
    command: Command,
    kind: type,
    *,
    everything: bool,
    default: Any = None,
    chosen: Collection[tuple[str, ...]] = (),
    width: int = 80,
) -> str:
    """Return the help of a command.

    Args:
        command: the command.
        kind: its dataclass.
        everything: all options with their whole texts (--help-all), or those that people use (--help).
        default: an instance whose values are shown as the defaults.
        chosen: paths of the fields whose defaults are chosen when the command runs.
        width: of the lines, in characters.
    """
    options = options_of(kind, default)
    options = [
        replace(option, default=CHOSEN) if option.path in chosen and option.default is not None else option
        for option in options
    ]
    everything = everything or not command.first
    paragraphs, examples = _description(kind)
    lines = [*_wrapped(_usage(command, options), width, indent="    "), ""]
    for paragraph in paragraphs if everything else paragraphs[:1]:
        lines += [*_wrapped(paragraph, width), ""]
    shown = examples if everything else examples[:_FEW]
    if shown:
        lines += [*(part for example in shown for part in _wrapped(f"  {example}", width, indent="      ")), ""]
    groups = _all_groups(options) if everything else _first_groups(command, options)
    for heading, members in groups:
        lines += [heading, *_rows(kind, members, width, whole=everything), ""]
    if not everything:
        left = len(options) - sum(len(members) for _, members in groups)
        lines += _wrapped(f"{left} more options: `detrkit {command.name} --help-all`", width)
    return "\n".join(lines).rstrip()


def _description(kind: type) -> tuple[list[str], list[str]]:
    """Return the paragraphs of a command's docstring, and its examples."""
    blocks = [" ".join(block.split()) for block in inspect.cleandoc(kind.__doc__ or "").split("\n\n")]
    place = blocks.index(_EXAMPLES) if _EXAMPLES in blocks else len(blocks)
    return blocks[:place], blocks[place + 1 :]


def _usage(command: Command, options: Sequence[Option]) -> str:
    """Return the line that shows how the command is written."""
    words = [f"usage: detrkit {command.name}"]
    for option in options:
        if option.positional:
            several = " ..." if option.count == "*" and not option.metavar.startswith("[") else ""
            name = option.metavar + several
            words.append(name if option.required or name.startswith("[") else f"[{name}]")
        elif option.required:
            words.append(f"--{option.name} {option.metavar}")
    return " ".join([*words, "[--option value ...]"])


def _first_groups(command: Command, options: Sequence[Option]) -> list[tuple[str, list[Option]]]:
    """Return the options that people use under their headings; a positional argument goes by its field's name."""
    named = {option.path[-1].replace("_", "-") if option.positional else option.name: option for option in options}
    return [(heading, [named[name] for name in names]) for heading, names in command.first.items()]


def _all_groups(options: Sequence[Option]) -> list[tuple[str, list[Option]]]:
    """Return all options: the command's own, then those of each section of settings."""
    groups: dict[str, list[Option]] = {"Options": []}
    for option in options:
        section = option.path[-2] if len(option.path) > 1 else ""
        groups.setdefault(_SECTIONS.get(section, section.capitalize()) or "Options", []).append(option)
    return [(heading, members) for heading, members in groups.items() if members]


def _rows(kind: type, options: Iterable[Option], width: int, *, whole: bool) -> list[str]:
    """Return a paragraph for each option: its name, its value, what it means, its default."""
    lines: list[str] = []
    indent = min(_NAME_COLUMNS, width // 3)
    for option in options:
        text = text_of(kind, option.path)
        if not whole:
            text = first_sentence(text)
        text = " ".join(filter(None, (text, _note(option, text))))
        name = f"  {_name(option, whole=whole)}"
        body = textwrap.wrap(text, width - indent, break_on_hyphens=False) or [""]
        if len(name) + 2 > indent:
            lines += textwrap.wrap(name, width, subsequent_indent=" " * 6)
        else:
            body[0] = name.ljust(indent) + body[0]
            lines.append(body.pop(0))
        lines += [" " * indent + part for part in body]
    return lines


def _name(option: Option, *, whole: bool) -> str:
    """Return how an option is typed."""
    if option.positional:
        return option.metavar
    if option.kind is bool:
        return f"--{option.name}, --no-{option.name}" if option.default is True or whole else f"--{option.name}"
    return " ".join(["--" + option.name, *([option.metavar] if option.metavar else [])])


def _note(option: Option, text: str) -> str:
    """Return the default, where there is one that the text does not say."""
    value = option.default
    if value is MISSING:
        return "" if option.positional else "(needed)"
    if value is CHOSEN:
        return "(default: chosen)" if option.count else ""
    if value is None or value == "" or value == () or value is False:
        return ""
    if value is True:
        return "(default: yes)"
    shown = (
        " ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else value
    )
    return f"(default: {shown})"


def first_sentence(text: str) -> str:
    """Return the first sentence of a text, without its full stop."""
    return _SENTENCE.split(text, maxsplit=1)[0].rstrip(".")


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
