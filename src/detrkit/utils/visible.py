"""Text from outside (names of files and classes, messages of others) made harmless for where it is shown.

A terminal obeys control characters, Markdown and HTML their own signs; none of them may act out of a name. The terminal
of `detrkit.utils.console` and the Markdown tables apply this themselves.
"""

from __future__ import annotations

import re

# C0 but tab and newline, DEL, C1, half characters (lone surrogates), and what turns the direction of writing about
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_BACKSLASH = re.compile(r"\\(?=[!-/:-@\[-`{-~])")  # before other letters it is itself
# emphasis, code, math, cells of tables, tags, entities, and the second part of links
_MARKDOWN = re.compile(r"[`*~$|<]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|(?<=\])[(\[]")


def visible(text: str) -> str:
    """A text whose control characters are written out: ESC is shown as its code; tabs and newlines stay."""
    return _CONTROL.sub(lambda found: _written_out(found[0]), text)


def one_line(text: str) -> str:
    """The same in one line: newlines and tabs are written out, too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def markdown(text: str) -> str:
    """A name for Markdown, which shows it as it is, in one line; also in a cell of a table.

    Only what would act is escaped, so that most names read as they are in the source, too: "traffic_light", "[red]".
    """
    text = _BACKSLASH.sub(r"\\\\", one_line(text))
    return _MARKDOWN.sub(lambda found: "&lt;" if found[0] == "<" else f"\\{found[0]}", text)


def first_line(error: BaseException) -> str:
    """The first line that an error says, or its kind where it says nothing, as some of torch's do."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _written_out(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
