"""Checks of class names, made by every reader when the dataset is opened."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from detrkit.data.readers.common import Findings
from detrkit.utils.documents import read_text
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import why_unusable


def check_class_names(names: Iterable[tuple[str, str]], file: Path, findings: Findings) -> None:
    """Note names that cannot be used: empty, with control characters or half a character, too long, or used twice.

    Results and other datasets are matched by the names of classes, so each class needs a name of its own.

    Args:
        names: of each class its id, as messages call it ("class 3"), and its name.
        file: where they are from.
        findings: takes the faults.

    Raises:
        DetrkitError: such a name (strict findings only).
    """
    first: dict[str, str] = {}
    for where, name in names:
        reason = why_unusable(name)
        if reason is None and not name.isascii() and name != name.encode("utf-8", "replace").decode():
            reason = "holds half a character (a lone surrogate)"  # allowed in a file name, not in a text
        if not name.strip():
            findings.add("error", file, where, "has no name")
        elif reason is not None:
            findings.add("error", file, where, f"{name[:40]!r} {reason}")
        elif name in first:
            findings.add("error", file, where, f"{name!r} is also the name of {first[name]}: give each class its own")
        first.setdefault(name, where)


def read_class_file(file: Path, findings: Findings, *, numbered: bool) -> list[str]:
    """Read and check the names in a classes.txt, one per line.

    Args:
        file: the text file.
        findings: takes the faults.
        numbered: whether classes are numbered by their lines: then there may be no empty line before a name.

    Raises:
        DetrkitError: no text, no name, or (strict findings) a name that cannot be used.
    """
    lines = [line.strip() for line in read_text(file).split("\n")]
    listed = [(f"line {number}", name) for number, name in enumerate(lines, 1) if name]
    if not listed:
        raise DetrkitError(f"{file}: lists no class: write one name a line")
    if numbered and not all(lines[: len(listed)]):
        number = lines.index("") + 1
        findings.add("error", file, f"line {number}", "is empty, but the lines number the classes: remove it")
    check_class_names(listed, file, findings)
    return [name for _, name in listed]
