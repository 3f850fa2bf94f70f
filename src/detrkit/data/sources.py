"""Where the bytes of an image are: in a file of its own, or in a row of a parquet file.

Parquet is compressed and read by row groups, often of a hundred images and more: one image out of a group of 100 costs
9 ms, out of a group of 1000 110 ms (of 236 kB each). So the images of a parquet file are copied once, when the first of
them is needed, to an Arrow file in detrkit's cache, which is mapped into memory: an image then costs 0.04 ms, nothing
stays in memory, and all processes share the pages.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from detrkit.errors import DetrkitError

_COPIED_TOGETHER = 16  # images
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ParquetImage:
    """The image in a row of a parquet file. Like a path it has a name, and prints as what messages call it.

    Attributes:
        file: the parquet file.
        row: from 0.
        name: what the row calls the image ("17.png").
        column: the column with the image: bytes, or a struct with a field `bytes`.
    """

    file: Path
    row: int
    name: str
    column: str = "image"

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot, as in ".png"; empty if there is none."""
        return Path(self.name).suffix

    def __str__(self) -> str:
        return f"{self.file}, row {self.row} ({self.name})"

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            DetrkitError: pyarrow is not installed, the file cannot be read, or the row has no image in it.
        """
        rows = _images_of(self.file, self.column)
        value = rows[self.row] if self.row < len(rows) else None
        if value is None or not value.is_valid:
            raise DetrkitError(f"{self}: column {self.column} has no image bytes; write the dataset with its images")
        return bytes(value.as_buffer())


ImageSource = Path | ParquetImage


def open_parquet(file: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`, its footer read.

    Raises:
        DetrkitError: pyarrow is not installed, or the file is missing or not parquet.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DetrkitError(f"{file}: reading parquet needs pyarrow: pip install 'detrkit[parquet]'") from error
    try:
        # neither prebuffered nor in one piece: half of the memory that the default takes
        return pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except FileNotFoundError as error:
        raise DetrkitError(f"{file}: parquet file is missing") from error
    except (pyarrow.ArrowException, OSError) as error:
        with file.open("rb") as opened:
            if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise DetrkitError(f"{file}: only a pointer to the file; fetch it with `git lfs pull`") from error
        raise DetrkitError(f"{file}: not a parquet file that can be read ({_one_line(error)})") from error


@lru_cache(maxsize=64)
def _images_of(file: Path, column: str) -> Any:
    """The images of a parquet file by row: a chunked array of binary values that lies in the mapped copy.

    Raises:
        DetrkitError: as `ParquetImage.read`, or the copy cannot be written.
    """
    from detrkit.download import home

    source = open_parquet(file)
    import pyarrow

    status = file.stat()
    # another content, another copy
    key = f"{file.resolve()}\n{column}\n{status.st_size}\n{status.st_mtime_ns}"
    copy = home() / "parquet" / f"{file.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.arrow"
    try:
        if not copy.exists():
            _copy_images(source, file, column, copy)
        return pyarrow.ipc.open_file(pyarrow.memory_map(str(copy))).read_all()["bytes"]
    except (pyarrow.ArrowException, OSError) as error:
        raise DetrkitError(f"{file}: cannot copy its images to {copy} ({_one_line(error)})") from error


def _copy_images(source: Any, file: Path, column: str, copy: Path) -> None:
    """Writes the Arrow file; of several processes one does, and the others wait (POSIX)."""
    import pyarrow
    from rich.console import Console

    from detrkit.download import locked

    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(copy.name + ".part")
    with part.open("ab") as lock, locked(lock):
        if copy.exists():  # another process was faster
            part.unlink(missing_ok=True)
            return
        text = f"copying the images of {file.name} to {copy} ({file.stat().st_size / 1e6:.0f} MB), once"
        Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)
        struct = pyarrow.types.is_struct(source.schema_arrow.field(column).type)
        schema = pyarrow.schema([("bytes", pyarrow.large_binary())])
        with pyarrow.OSFile(str(part), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
            name = f"{column}.bytes" if struct else column
            for batch in source.iter_batches(_COPIED_TOGETHER, columns=[name], use_threads=False):
                values = batch.column(0)
                if struct:
                    (values,) = values.flatten()  # null where the struct is
                writer.write_batch(pyarrow.record_batch([values.cast(pyarrow.large_binary())], schema=schema))
        os.replace(part, copy)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
