"""Sources of the bytes of an image: a file of its own, or a row of a parquet file or of a `datasets.Dataset`.

Parquet is read by row groups, often of a hundred images (24 MB of CPPE-5); to get one, all are unpacked. So the
images of a parquet file are copied once, when the first is needed, to an Arrow file in detrkit's cache, which is mapped
into memory: only the image itself is read from it, and all processes share its pages.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from detrkit.utils.documents import require_regular
from detrkit.utils.errors import DetrkitError

IMAGE_COLUMN = "image"  # bytes, or a struct with a field `bytes`
_COPIED_TOGETHER = 16  # images
_POINTER_BYTES = 1024  # a Git LFS pointer is smaller


class TableImage:
    """Image in a row of a table. Like a path it has a name, and `str` gives what messages call it.

    Attributes:
        name: what the row calls the image ("17.png").
    """

    name: str

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            DetrkitError: there is none.
        """
        raise NotImplementedError

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot, as in ".png"; empty if there is none."""
        return Path(self.name).suffix


@dataclass(frozen=True)
class ParquetImage(TableImage):
    """Image in a row of a parquet file.

    Attributes:
        file: the parquet file.
        row: from 0.
        name: what the row calls the image.
    """

    file: Path
    row: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row} ({self.name})"

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            DetrkitError: pyarrow is not installed, the file cannot be read, or the row has no image in it.
        """
        rows = _images_of(self.file)
        value = rows[self.row] if self.row < len(rows) else None
        if value is None or not value.is_valid:
            raise DetrkitError(f"{self}: column {IMAGE_COLUMN} has no image bytes; write the dataset with its images")
        return bytes(value.as_buffer())


@dataclass(frozen=True)
class DatasetImage(TableImage):
    """Image in a row of a `datasets.Dataset`.

    Attributes:
        rows: the Dataset, whose images are not decoded.
        column: of the images: bytes, or a struct with a field `bytes`.
        row: from 0.
        name: what the row calls the image.
        called: what messages call the Dataset.
    """

    rows: Any = field(compare=False, repr=False)
    column: str
    row: int
    name: str
    called: str

    def __str__(self) -> str:
        return f"{self.called}, row {self.row} ({self.name})"

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            DetrkitError: the row has no image in it, or cannot be read.
        """
        try:
            value = self.rows[self.row][self.column]
        except Exception as error:  # of Arrow, or of a file that has been removed
            raise DetrkitError(f"{self}: cannot be read ({_one_line(error)})") from error
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise DetrkitError(f"{self}: column {self.column} has no image bytes")
        return value


ImageSource = Path | TableImage


def open_parquet(file: Path) -> Any:
    """Open a `pyarrow.parquet.ParquetFile` and read its footer.

    Raises:
        DetrkitError: pyarrow is not installed, or the file is missing or not parquet.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DetrkitError(f"{file}: reading parquet needs pyarrow: pip install pyarrow") from error
    with parquet_errors(file):
        require_regular(file)
        # neither prebuffered nor in one piece: half of the memory that the default takes
        return pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)


@contextmanager
def parquet_errors(file: Path) -> Iterator[None]:
    """Turn what pyarrow raises while `file` is read into a DetrkitError of one line."""
    import pyarrow

    try:
        yield
    except FileNotFoundError as error:
        raise DetrkitError(f"{file}: parquet file is missing") from error
    except DetrkitError:
        raise
    # for damaged files pyarrow also raises Python's own errors
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        if file.is_file() and file.stat().st_size < _POINTER_BYTES and b"git-lfs" in file.read_bytes():
            raise DetrkitError(f"{file}: only a pointer to the file; fetch it with `git lfs pull`") from error
        raise DetrkitError(f"{file}: not a parquet file that can be read ({_one_line(error)})") from error


@lru_cache(maxsize=64)
def _images_of(file: Path) -> Any:
    """Return the images of a parquet file by row: a chunked array of binary values in the mapped copy.

    Raises:
        DetrkitError: as in `ParquetImage.read`, or the copy cannot be written.
    """
    from detrkit.utils.download import home

    source = open_parquet(file)
    import pyarrow

    status = file.stat()
    # a changed file gets another copy
    key = f"{file.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    copy = home() / "parquet" / f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.arrow"
    try:
        if not copy.exists():
            _copy_images(source, file, copy)
        return pyarrow.ipc.open_file(pyarrow.memory_map(str(copy))).read_all()["bytes"]
    except (pyarrow.ArrowException, OSError) as error:
        raise DetrkitError(f"{file}: cannot copy its images to {copy} ({_one_line(error)})") from error


def _copy_images(source: Any, file: Path, copy: Path) -> None:
    """Write the Arrow file; one of several processes does so, and the others wait (POSIX)."""
    import pyarrow

    from detrkit.utils.console import Terminal
    from detrkit.utils.download import locked

    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(copy.name + ".part")
    with part.open("ab") as lock, locked(lock):
        if copy.exists():  # another process was faster
            part.unlink(missing_ok=True)
            return
        text = f"copying the images of {file.name} to {copy} ({file.stat().st_size / 1e6:.0f} MB), once"
        Terminal(stderr=True).print(text, soft_wrap=True)
        struct = pyarrow.types.is_struct(source.schema_arrow.field(IMAGE_COLUMN).type)
        schema = pyarrow.schema([("bytes", pyarrow.large_binary())])
        try:
            with pyarrow.OSFile(str(part), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
                name = f"{IMAGE_COLUMN}.bytes" if struct else IMAGE_COLUMN
                for batch in source.iter_batches(_COPIED_TOGETHER, columns=[name], use_threads=False):
                    values = batch.column(0)
                    if struct:
                        (values,) = values.flatten()  # null where the struct is null
                    writer.write_batch(pyarrow.record_batch([values.cast(pyarrow.large_binary())], schema=schema))
            os.replace(part, copy)
        except BaseException:
            os.truncate(part, 0)  # not removed: others may wait for its lock
            raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
