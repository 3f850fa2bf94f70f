"""JSON, YAML and text from outside, read within bounds: no document makes the machine hang or run out of memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from detrkit.errors import DetrkitError

YAML_MAX_BYTES = 1 << 20  # of a recipe or a data.yaml; the 1203 names of LVIS take 30 kB
YAML_MAX_NODES = 100_000  # values once aliases are followed
YAML_MAX_DEPTH = 100  # of nested lists and mappings


def read_bytes(file: Path) -> bytes:
    """The content of a regular file.

    Raises:
        DetrkitError: missing, unreadable, or a folder, a pipe or a device.
    """
    try:
        if file.exists() and not file.is_file():
            raise DetrkitError(f"{file}: not a regular file")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise DetrkitError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_text(file: Path) -> str:
    """The text of a file: UTF-8, or UTF-16 with its byte-order mark; any line ends.

    Raises:
        DetrkitError: missing, unreadable, or in another encoding.
    """
    return decoded(read_bytes(file), str(file))


def decoded(data: bytes, where: str) -> str:
    """Bytes as text: UTF-8 with or without its mark, or UTF-16 with its mark; line ends become newlines.

    Raises:
        DetrkitError: another encoding; names `where` and the byte.
    """
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DetrkitError(f"{where}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(data: bytes | str, where: str) -> Any:
    """The value of a JSON text.

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
    except ValueError as error:  # more digits than Python turns into a number
        raise DetrkitError(f"{where}: a number has too many digits") from error


def parse_yaml(text: str, where: str, *, scalars: bool = True) -> Any:
    """The value of a YAML text.

    Args:
        text: of the file.
        where: the file, for the message.
        scalars: whether numbers, dates, yes and no become values; False: every scalar stays the text that it is.

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
    except (ValueError, OverflowError, AttributeError, IndexError, TypeError) as error:  # of PyYAML's constructors
        raise DetrkitError(f"{where}: malformed YAML ({error})") from error


class _Bounded:
    """Refuses to nest without end; to be mixed into a loader of PyYAML."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node, a level deeper."""
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
    """Plain values only."""


class _TextLoader(_Bounded, yaml.BaseLoader):
    """Texts only."""


def _expanded_size(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a node once its aliases are followed.

    Raises:
        yaml.MarkedYAMLError: more than `YAML_MAX_NODES`, or a node that holds itself.
    """
    size = known.get(id(node))
    if size is None:
        known[id(node)] = YAML_MAX_NODES  # until it is known: a node that holds itself is infinite
        size = 1
        if isinstance(node, yaml.CollectionNode):
            for item in node.value:
                for part in item if isinstance(item, tuple) else (item,):
                    size += _expanded_size(part, known)
        known[id(node)] = size
    if size >= YAML_MAX_NODES:
        raise yaml.MarkedYAMLError(
            problem=f"holds more than {YAML_MAX_NODES} values once its aliases are followed",
            problem_mark=node.start_mark,
        )
    return size
