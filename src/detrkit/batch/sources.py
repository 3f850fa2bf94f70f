"""Where many images come from: folders, patterns, lists, tables and tars, read one name after the other.

Nothing here holds all names at once, and nothing imports torch. An image is found again by a reference that is plain
JSON: it is relative to what the user named, so that machines may have the same folder under different paths.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from detrkit.utils.errors import DetrkitError
from detrkit.utils.existing import missing
from detrkit.utils.names import expanded_path
from detrkit.utils.visible import one_line

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class Item(NamedTuple):
    """An image of a source.

    Attributes:
        id: names it in the results; valid Unicode, of any characters.
        ref: where it is, as plain JSON, for `Source.image`.
    """

    id: str
    ref: Any


class Source:
    """Images that the user named by one word of the command.

    Args:
        name: that word.

    Attributes:
        name: as the argument.
        ordered: whether the order of the images counts; else the results are ordered by id.
        left_out: images so far that were left out because they are no images by their names.
    """

    ordered = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.left_out = 0

    def items(self) -> Iterator[Item]:
        """Yield the images, always the same ones while the source does not change.

        Raises:
            DetrkitError: the source cannot be read; names it, and the line or row.
        """
        raise NotImplementedError

    def signature(self) -> str | None:
        """Return a digest of the source's file; None where only the names of the images tell one from another.

        Raises:
            DetrkitError: the file cannot be read.
        """
        return None

    def image(self, ref: Any) -> Path | bytes:
        """Return the file of an image, or its bytes.

        Args:
            ref: of an `Item`.

        Raises:
            SourceError: the reference is none of this source, or the source itself is not there any more.
            DetrkitError: the image cannot be read.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Check that the source is still there, when one of its images is not.

        Raises:
            SourceError: it is not.
        """


class SourceError(DetrkitError):
    """A fault of a source and not of one image: an unmounted disk, a reference that is none of its own."""


class FolderSource(Source):
    """The images of a folder and of all folders in it, but hidden ones.

    Args:
        name: of the folder, as typed.
        prefix: of the ids, where several sources might have the same names.
    """

    def __init__(self, name: str, prefix: str = "") -> None:
        super().__init__(name)
        self._root = expanded_path(name)
        self._prefix = prefix

    def items(self) -> Iterator[Item]:
        """Yield the images; errors as of `Source.items`."""
        from detrkit.utils.image_names import is_image_file

        self.left_out = 0
        folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]  # relative path, those around it
        while folders:
            relative, around = folders.pop()
            place = os.path.join(self._root, relative) if relative else os.fspath(self._root)
            try:
                status = os.stat(place)
                here = (status.st_dev, status.st_ino)
                if here in around:  # a link to a folder around it
                    continue
                with os.scandir(place) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        path = f"{relative}/{entry.name}" if relative else entry.name
                        if entry.is_dir():
                            folders.append((path, (*around, here)))
                        elif not is_image_file(Path(entry.name)):
                            self.left_out += 1
                        else:
                            yield Item(self._prefix + unicode_name(path), path)
            except OSError as error:
                raise DetrkitError(f"{place}: cannot be looked into ({error.strerror or error})") from error

    def image(self, ref: Any) -> Path:
        """Return the file of an image; arguments and errors as of `Source.image`."""
        if not isinstance(ref, str) or not _is_below(ref):
            raise bad_reference(self.name, ref)
        return self._root / ref

    def check(self) -> None:
        """Check that the folder is there; errors as of `Source.check`."""
        _check_there(self.name, self._root)


class FilesSource(Source):
    """Single image files, in the order given.

    Args:
        names: of the files, as typed.
    """

    ordered = True

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more")
        self._names = list(names)

    def items(self) -> Iterator[Item]:
        """Yield the images; errors as of `Source.items`."""
        return (Item(unicode_name(name), name) for name in self._names)

    def image(self, ref: Any) -> Path:
        """Return the file of an image; arguments and errors as of `Source.image`."""
        if ref not in self._names:
            raise bad_reference(self.name, ref)
        return expanded_path(ref)


class GlobSource(Source):
    """The images that a pattern matches.

    Args:
        name: the pattern, as typed.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._pattern = os.fspath(expanded_path(name))

    def items(self) -> Iterator[Item]:
        """Yield the images; errors as of `Source.items`."""
        from detrkit.utils.image_names import is_image_file

        self.left_out = 0
        for hit in glob.iglob(self._pattern, recursive=True):
            file = Path(hit)
            if file.name.startswith(".") or not file.is_file():
                continue
            if is_image_file(file):
                yield Item(unicode_name(file.as_posix()), file.as_posix())
            else:
                self.left_out += 1

    def image(self, ref: Any) -> Path:
        """Return the file of an image; arguments and errors as of `Source.image`."""
        if not isinstance(ref, str) or "\0" in ref:
            raise bad_reference(self.name, ref)
        return Path(ref)


def find_sources(names: Sequence[str]) -> list[Source]:
    """Find what the words of a command name.

    Args:
        names: folders, images, quoted patterns, lists (.txt), tables (.csv, .tsv, .parquet) and tars (.tar).

    Raises:
        DetrkitError: nothing is there, or it is nothing that can be read.
    """
    words = [word for name in names for word in _expanded(name)]
    sources: list[Source] = []
    files: list[str] = []
    for word in words:
        path = expanded_path(word)
        kind = container(word)
        try:
            is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
        except OSError as error:
            raise DetrkitError(f"{word}: cannot be looked into ({error.strerror or error})") from error
        if is_folder:
            sources.append(FolderSource(word, "" if len(words) == 1 else f"{unicode_name(word.rstrip('/'))}/"))
        elif is_file and kind is not None:
            sources.append(kind(word))
        elif is_file:
            files.append(word)
        elif exists:
            raise DetrkitError(f"{word}: not a regular file")
        elif glob.has_magic(word):
            sources.append(GlobSource(word))
        else:
            raise missing(word)
    if files:
        sources.insert(0, FilesSource(files))
    if not sources:
        raise DetrkitError("no images given: name folders, files, patterns, lists, tables or tars")
    return sources


def container(name: str) -> Callable[[str], Source] | None:
    """Return what reads a file that names or holds many images, by its suffix; None for an image."""
    lower = name.lower()
    if lower.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        from detrkit.batch.tars import TarSource

        return TarSource
    if lower.endswith((".txt", ".csv", ".tsv", ".parquet")):
        from detrkit.batch.tables import CsvSource, ListSource, ParquetSource

        if lower.endswith(".parquet"):
            return ParquetSource
        return ListSource if lower.endswith(".txt") else CsvSource
    return None


def _expanded(name: str) -> list[str]:
    """Return the files of a pattern of tars or tables, and any other word alone."""
    if not glob.has_magic(name) or container(name) is None or os.path.lexists(expanded_path(name)):
        return [name]
    found = sorted(glob.glob(os.fspath(expanded_path(name)), recursive=True))
    if not found:
        raise missing(name)
    return found


def unicode_name(name: str) -> str:
    r"""Return a name as valid Unicode: bytes that are no UTF-8 as \xff, so that any file of results can hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return name


def listed_path(text: str, base: Path, where: str) -> Path:
    """Return the path that a list names, relative to the list's folder.

    The user's own list may name any file: it is only opened, as an image, and nothing is written there.

    Args:
        text: as the list has it.
        base: folder of the list.
        where: file and line, for the message.

    Raises:
        DetrkitError: an address, which is never fetched, or no path.
    """
    if _ADDRESS.match(text):
        raise DetrkitError(f"{where}: {one_line(text[:80])} is an address: download the image, none is fetched")
    if not text or "\0" in text:
        raise DetrkitError(f"{where}: names no file")
    return base / text


def bad_reference(name: str, ref: Any) -> SourceError:
    """Return the error for a reference that a source did not give."""
    return SourceError(f"{name}: {str(ref)[:80]!r} is no image of it: the manifest in the output folder was changed")


def _is_below(path: str) -> bool:
    parts = PurePosixPath(path)
    return bool(path) and "\0" not in path and not parts.is_absolute() and ".." not in parts.parts


def _check_there(name: str, path: Path) -> None:
    try:
        path.stat()
    except OSError as error:
        raise SourceError(f"{name} is gone ({error.strerror or error}): what is done is kept") from error
