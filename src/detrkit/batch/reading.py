"""Images of a manifest, decoded ahead of the model; what cannot be read becomes a problem of that image alone."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, UnidentifiedImageError

from detrkit.batch.plan import Entry
from detrkit.batch.sources import Source, SourceError
from detrkit.data.images import as_rgb
from detrkit.utils.errors import DetrkitError, ImageSizeError, SettingError
from detrkit.utils.memory import is_out_of_memory
from detrkit.utils.visible import one_line

Kind = Literal["missing", "not an image", "damaged", "too large", "unreadable"]
# errors of the machine at a moment, which say nothing of the image: the command ends, and goes on another time
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)  # of a file server that was away
_PAUSES = (0.5, 2.0)  # seconds before a file is tried again
_TOO_LARGE = (Image.DecompressionBombError, MemoryError)
_MAX_MESSAGE = 300  # characters


class Problem(NamedTuple):
    """Why there are no predictions for an image.

    Attributes:
        kind: of the problem.
        message: about it, without the path of the image.
    """

    kind: Kind
    message: str


def read_entries(entries: Iterable[Entry], sources: Sequence[Source]) -> Iterator[tuple[Entry, Image.Image | Problem]]:
    """Yield each image as upright RGB, or the problem with it.

    Args:
        entries: of a manifest.
        sources: of the plan.

    Raises:
        DetrkitError: a source itself is gone, or the machine has no handles or memory left.
    """
    for entry in entries:
        if entry.source >= len(sources):
            raise SourceError(f"the manifest names source {entry.source + 1} of {len(sources)}: it was changed")
        yield entry, _read(entry, sources[entry.source])


def _read(entry: Entry, source: Source) -> Image.Image | Problem:
    for pause in (*_PAUSES, None):
        found: Path | bytes | None = None
        try:
            found = source.image(entry.ref)
            return as_rgb(found)
        except SourceError:
            raise
        except (DetrkitError, ValueError, MemoryError) as error:
            number = _errno(error)
            if number in _OF_THE_MACHINE:
                raise DetrkitError(f"{source.name}: {error}") from error
            if number in _PASSING and pause is not None:
                time.sleep(pause)
                continue
            problem = problem_of(error, found)
            if problem.kind == "missing":
                source.check()
            return problem
    raise AssertionError("the last turn returns")


def problem_of(error: BaseException, where: object = None) -> Problem:
    """Return what an exception says about an image.

    Args:
        error: raised while it was read, or while the model was given it.
        where: the image's path, which the message leaves out: it differs from machine to machine.
    """
    cause = error.__cause__
    no_memory = isinstance(error, MemoryError) or is_out_of_memory(error)
    kind: Kind = "damaged"
    if isinstance(cause, FileNotFoundError | NotADirectoryError):
        kind = "missing"
    elif isinstance(cause, UnidentifiedImageError):
        kind = "not an image"
    elif no_memory or isinstance(error, SettingError | ImageSizeError) or isinstance(cause, _TOO_LARGE):
        kind = "too large"
    elif getattr(cause, "errno", None) is not None or (cause is None and isinstance(error, DetrkitError)):
        kind = "unreadable"  # no permission; no regular file, no bytes in a row
    message = "it does not fit into the memory of this machine"
    if not no_memory:
        message = str(error).removeprefix(f"{where}: ").removeprefix("the image: ")
    return Problem(kind, one_line(message)[:_MAX_MESSAGE])


def _errno(error: BaseException) -> int | None:
    cause = error.__cause__
    return cause.errno if isinstance(cause, OSError) else None
