"""Names that come from files: checked, so that no name is used as a path that leads elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from detrkit.utils.errors import DetrkitError

NAME_BYTES = 255  # bytes of a name, on the usual file systems
_PATH_BYTES = 2048  # bytes of a relative path; systems allow 4096 including the folder that it is relative to
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def checked_name(name: str, where: str) -> str:
    """Check the name of one file or folder that came from a file: of a split, an image, a class.

    Args:
        name: the name.
        where: file and field that it is from, for the message.

    Returns:
        The name, unchanged.

    Raises:
        DetrkitError: empty, ".", "..", with a slash, a backslash, a drive, a control character or a lone surrogate, or
            longer than a file system allows.
    """
    reason = None
    if not name.strip():
        reason = "is empty"
    elif name in (".", ".."):
        reason = "means a folder, not a name"
    elif "/" in name or "\\" in name or PureWindowsPath(name).drive:
        reason = "is a path, not a name: give one without slashes"
    else:
        reason = why_unusable(name)
    if reason is not None:
        raise DetrkitError(f"{where}: {name[:80]!r} {reason}")
    return name


def below(root: Path, *names: str, where: str) -> Path:
    """Return the path of names below a folder that is being written.

    Args:
        root: the folder.
        names: one name for each folder, and for the file; each is checked as by `checked_name`.
        where: file and field that they are from, for the message.

    Raises:
        DetrkitError: an invalid name.
    """
    return root.joinpath(*(checked_name(name, where) for name in names))


def expanded_path(path: str | Path) -> Path:
    """Expand ~ and ~user in a path from the command line.

    Raises:
        DetrkitError: an unknown user, or no path that a file system can hold.
    """
    for part in Path(path).parts:
        if "\0" in part or len(os.fsencode(part)) > NAME_BYTES:
            reason = "holds a null character" if "\0" in part else f"is longer than {NAME_BYTES} bytes"
            raise DetrkitError(f"{str(path)[:80]!r}: {part[:40]!r} {reason}: no file has such a name")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DetrkitError(f"{path}: there is no such user: write the home folder out") from error


def full_path(path: str | Path) -> Path:
    """Expand ~ and ~user, and make the path absolute.

    Raises:
        DetrkitError: as `expanded_path`, or a relative path in a folder that has been deleted.
    """
    try:
        return expanded_path(path).absolute()
    except OSError as error:
        raise _folder_gone(path, error) from error


def real_path(path: str | Path) -> Path:
    """Make a path absolute, with links followed.

    Raises:
        DetrkitError: a relative path in a folder that has been deleted.
    """
    try:
        return Path(os.path.realpath(path))
    except OSError as error:
        raise _folder_gone(path, error) from error


def _folder_gone(path: str | Path, error: OSError) -> DetrkitError:
    return DetrkitError(f"{path}: the working directory is gone ({error.strerror}): go to another one")


def relative_path(
    text: str, where: str, *, up: bool = False, inside: str = "the dataset's folder", what: str = "image"
) -> PurePosixPath:
    """Check a relative path that a file states for another to be read: "val/17.jpg", also with backslashes.

    Args:
        text: the path.
        where: file and field that it is from, for the message.
        up: allow a path that leads above the folder that it is relative to.
        inside: that folder, for the message.
        what: kind of thing at the path, for the message.

    Raises:
        DetrkitError: absolute, above its folder (unless `up`), or no path that a file system can hold.
    """
    path = PurePosixPath(text.replace("\\", "/"))
    depth = lowest = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        lowest = min(lowest, depth)
    reason = None
    if not text.strip() or not path.parts:
        reason = "is empty"
    elif path.is_absolute() or PureWindowsPath(text).drive:
        reason = f"is an absolute path: give it relative to {inside}"
    elif 4 * len(text) > _PATH_BYTES and len(text.encode("utf-8", "surrogatepass")) > _PATH_BYTES:
        reason = f"is longer than {_PATH_BYTES} bytes"
    elif lowest < 0 and not up:
        reason = f"leads out of {inside}: put the {what} into it"
    else:
        reason = next(filter(None, map(why_unusable, path.parts)), None)
    if reason is not None:
        raise DetrkitError(f"{where}: {text[:80]!r} {reason}")
    return path


def not_hidden(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield the matches of a pattern (of `Path.glob`), except hidden files and folders (macOS writes "._name")."""
    for path in folder.glob(pattern):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def why_unusable(name: str) -> str | None:
    """Return why this cannot be a name of a file or class: a control character, half a character, too long; or None."""
    if _CONTROL.search(name):
        return "holds a control character"
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "holds half a character (a lone surrogate)"
    try:
        size = len(os.fsencode(name))
    except UnicodeEncodeError as error:
        return f"cannot be a name in the encoding of this locale, {error.encoding}: set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    return f"is longer than {NAME_BYTES} bytes" if size > NAME_BYTES else None
