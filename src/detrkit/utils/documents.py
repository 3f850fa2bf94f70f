"""Bounded reading of JSON, YAML, XML and text from outside: no file hangs the machine or exhausts its memory."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import stat
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import yaml

from detrkit.utils.errors import DetrkitError

YAML_MAX_BYTES = 1 << 20  # of a recipe or a data.yaml; the 1203 names of LVIS take 30 kB
YAML_MAX_NODES = 100_000  # values once aliases are followed
MESSAGE_CHARACTERS = 80  # characters of a value in a message
YAML_MAX_DEPTH = 100  # of nested lists and mappings

_XML_ENCODING = re.compile(rb"\s*<\?xml\s[^>]*?encoding\s*=\s*[\"']([A-Za-z][A-Za-z0-9._-]*)")
_XML_HEAD_BYTES = 256  # bytes that hold the declaration
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16's: checked first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
# Declared encodings and the codecs that read them: files declared gb2312 are written as gbk; ASCII is part of UTF-8.
_WIDER_ENCODING = {"gb2312": "gb18030", "gbk": "gb18030", "ascii": "utf-8"}
# Python codecs that are no encodings of documents; decoding some takes quadratic time.
_NO_DOCUMENT = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined")


@contextmanager
def _open_regular(file: Path) -> Iterator[BinaryIO]:
    """Open a regular file.

    Raises:
        DetrkitError: missing, unreadable (also while it is read), or a folder, a pipe or a device.
    """
    try:
        # Opened before it is checked, so that it cannot be exchanged in between; a pipe does not make this wait.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DetrkitError(f"{file}: not a regular file")
            with open(descriptor, "rb", closefd=False) as stream:
                yield stream
        finally:
            os.close(descriptor)
    except UnicodeError:  # a ValueError too; `open_text` explains it
        raise
    except (OSError, ValueError) as error:
        raise DetrkitError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_bytes(file: Path) -> bytes:
    """Read the content of a regular file.

    Raises:
        DetrkitError: missing, unreadable, or a folder, a pipe or a device.
    """
    with _open_regular(file) as stream:
        return stream.read()


@contextmanager
def open_text(file: Path, *, strict: bool = True) -> Iterator[TextIO]:
    """Open a text file that is too large to be read at once; encodings as in `read_text`, line ends as they stand.

    Args:
        file: the text file.
        strict: whether another encoding is an error; else its characters are replaced, to look at the beginning.

    Raises:
        DetrkitError: missing, unreadable, or (while it is read) in another encoding.
    """
    try:
        with _open_regular(file) as stream:
            utf16 = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            stream.seek(0)
            encoding, errors = "utf-16" if utf16 else "utf-8-sig", "strict" if strict else "replace"
            with io.TextIOWrapper(stream, encoding, errors, newline="") as text:
                yield text
    except UnicodeDecodeError as error:
        raise DetrkitError(f"{file}: not UTF-8 text; save it as UTF-8") from error


def require_regular(file: Path) -> None:
    """Check that a path is a regular file, since opening anything else may block.

    Raises:
        DetrkitError: a folder, a pipe or a device.
        OSError: missing, or in a folder that may not be entered.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise DetrkitError(f"{file}: not a regular file")


def read_text(file: Path) -> str:
    """Read a text file: UTF-8, or UTF-16 with its byte-order mark; any line ends.

    Raises:
        DetrkitError: missing, unreadable, or in another encoding.
    """
    return decoded(read_bytes(file), str(file))


def decoded(data: bytes, where: str) -> str:
    """Decode bytes: UTF-8 with or without its mark, or UTF-16 with its mark; line ends become newlines.

    Raises:
        DetrkitError: another encoding; names `where` and the byte.
    """
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DetrkitError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def shown(value: Any) -> str:
    """Format a value from a file for a message: in one line, shortened, control characters escaped."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= MESSAGE_CHARACTERS else text[: MESSAGE_CHARACTERS - 3] + "..."


def parse_json(data: bytes | str, where: str) -> Any:
    """Parse a JSON text.

    Args:
        data: in UTF-8, UTF-16 or UTF-32.
        where: the file, for the message.

    Raises:
        DetrkitError: malformed, nested too deep, or with a number of thousands of digits.
    """
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise DetrkitError(
            f"{where}: malformed JSON in line {error.lineno}, column {error.colno} ({error.msg})"
        ) from error
    except UnicodeDecodeError as error:
        raise DetrkitError(f"{where}: not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise DetrkitError(f"{where}: lists or objects are nested too deep") from error
    except ValueError as error:  # more digits than Python converts to a number
        raise DetrkitError(f"{where}: a number has too many digits") from error


def parse_yaml(text: str, where: str, *, scalars: bool = True) -> Any:
    """Parse a YAML text.

    Args:
        text: of the file.
        where: the file, for the message.
        scalars: whether numbers, dates, yes and no become values; False: every scalar stays text.

    Raises:
        DetrkitError: malformed, too large, nested too deep, or with aliases that multiply; names the line.
    """
    if len(text) > YAML_MAX_BYTES:
        raise DetrkitError(f"{where}: {len(text)} characters are too many for settings (at most {YAML_MAX_BYTES})")
    try:
        loader = (_Loader if scalars else _TextLoader)(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded_size(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise DetrkitError(f"{where}{line}: malformed YAML ({' '.join(str(problem).split())})") from error
    except (ValueError, OverflowError, AttributeError, IndexError, TypeError) as error:  # by PyYAML's constructors
        raise DetrkitError(f"{where}: malformed YAML ({error})") from error


def parse_xml(data: bytes, where: str) -> ElementTree.Element:
    """Parse an XML document, in linear time, and return its root.

    Args:
        data: in the encoding of its byte-order mark or its declaration, else UTF-8. (Expat itself reads only UTF-8,
            UTF-16 and the encodings of one byte.)
        where: the file, for the message.

    Raises:
        DetrkitError: malformed, in another encoding than it declares, or with entities of its own, which may multiply.
    """
    text = _xml_text(data, where)
    if "<!ENTITY" in text:
        raise DetrkitError(f"{where}: declares entities (<!ENTITY ...>): write what they stand for instead")
    try:
        return ElementTree.fromstring(text)  # for a str, the encoding in the declaration is ignored
    except ElementTree.ParseError as error:
        raise DetrkitError(f"{where}: line {error.position[0]}: malformed XML ({error})") from error
    except ValueError as error:  # half a character at the end
        raise DetrkitError(f"{where}: malformed XML ({error})") from error


def _xml_text(data: bytes, where: str) -> str:
    """Decode an XML document.

    Raises:
        DetrkitError: an unknown encoding, or not that of the bytes.
    """
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    if encoding is None:
        declared = _XML_ENCODING.match(data[:_XML_HEAD_BYTES])
        name = declared[1].decode("ascii") if declared else "utf-8"
        try:
            encoding = codecs.lookup(name).name
        except LookupError:
            encoding = "undefined"
        if encoding in _NO_DOCUMENT:
            raise DetrkitError(f"{where}: encoding {name[:40]!r} is not known; save it as UTF-8")
        if encoding.startswith(("utf-16", "utf-32")):
            # a declaration readable as single bytes is not in these encodings: another tool has saved the file again
            encoding = "utf-8"
    encoding = _WIDER_ENCODING.get(encoding, encoding)
    try:
        return data.decode(encoding)
    except UnicodeError as error:
        byte = getattr(error, "start", 0)
        raise DetrkitError(f"{where}: not {encoding} text (byte {byte}); save it as UTF-8") from error
    except LookupError as error:  # a codec that does not decode text, such as "hex"
        raise DetrkitError(f"{where}: encoding {encoding!r} is not one of text; save it as UTF-8") from error


class _Bounded:
    """Mixin for PyYAML loaders that limits the depth of nesting."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, a level deeper."""
        self._depth += 1
        if self._depth > YAML_MAX_DEPTH:
            event = self.peek_event()  # type: ignore[attr-defined]
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {YAML_MAX_DEPTH} levels", problem_mark=event.start_mark
            )
        try:
            return super().compose_node(parent, index)  # type: ignore[misc]
        finally:
            self._depth -= 1


class _Loader(_Bounded, yaml.SafeLoader):
    """Loader of plain values only."""


class _TextLoader(_Bounded, yaml.BaseLoader):
    """Loader of texts only."""


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the values in a node once its aliases are followed.

    Raises:
        yaml.MarkedYAMLError: more than `YAML_MAX_NODES`, or a node that holds itself.
    """
    size = sizes.get(id(node))
    if size is None:
        sizes[id(node)] = YAML_MAX_NODES  # until it is counted: a node that holds itself is infinite
        size = 1
        if isinstance(node, yaml.CollectionNode):
            for item in node.value:
                for part in item if isinstance(item, tuple) else (item,):
                    size += _expanded_size(part, sizes)
        sizes[id(node)] = size
    if size >= YAML_MAX_NODES:
        raise yaml.MarkedYAMLError(
            problem=f"holds more than {YAML_MAX_NODES} values once its aliases are followed",
            problem_mark=node.start_mark,
        )
    return size
