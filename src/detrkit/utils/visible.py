"""Escaping of text from outside (names of files and classes, messages of others) for where it is shown.

Terminals interpret control characters, Markdown and HTML their own signs; none of them may take effect from a name. The
terminal of `detrkit.utils.console` and the Markdown tables apply this themselves.
"""

from __future__ import annotations

import re

# C0 but tab and newline, DEL, C1, half characters (lone surrogates), and characters that change the writing direction
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_BACKSLASH = re.compile(r"\\(?=[!-/:-@\[-`{-~])")  # a backslash before other letters is literal
# emphasis, code, math, cells of tables, tags, entities, and the second part of links
_MARKDOWN = re.compile(r"[`*~$|<]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|(?<=\])[(\[]")


def visible(text: str) -> str:
    """Write out control characters of a text: ESC is shown as its code; tabs and newlines stay."""
    return _CONTROL.sub(lambda match: _written_out(match[0]), text)


def one_line(text: str) -> str:
    """Write out control characters, newlines and tabs of a text."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def markdown(text: str) -> str:
    """Escape a name for Markdown, which then shows it unchanged, in one line; also in a cell of a table.

    Only signs that would take effect are escaped, so that most names stay readable in the source: "traffic_light",
    "[red]".
    """
    text = _BACKSLASH.sub(r"\\\\", one_line(text))
    return _MARKDOWN.sub(lambda match: "&lt;" if match[0] == "<" else f"\\{match[0]}", text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, or its class where it has no message, as some of torch's."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _written_out(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
