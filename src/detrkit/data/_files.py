"""Writing whole directories at once: a reader never sees half a dataset."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detrkit.errors import DetrkitError

# Any of these says that a folder holds a dataset, the only kind of folder that `force` may replace.
_DATASET_MARKS = (
    "annotations/*.json",
    "*/_annotations.coco.json",
    "_annotations.coco.json",
    "ImageSets/Main/*.txt",
    "data.yaml",
    "classes.txt",
)


@contextmanager
def new_directory(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when the block ends without an error.

    Args:
        path: the folder to make.
        force: replace a folder that is there already, provided that it holds a dataset or nothing.

    Raises:
        DetrkitError: `path` exists and may not be replaced, or its parent cannot be written.
    """
    path = path.expanduser().absolute()
    check_writable_name(path, force=force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise DetrkitError(f"{path}: cannot write there ({error.strerror}); choose another output folder") from error
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes 0o700; a dataset is for everybody on the machine
        if path.exists():
            check_writable_name(path, force=force)
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(old / path.name)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def check_writable_name(path: Path, *, force: bool) -> None:
    """Raises DetrkitError unless `path` is free, or holds a dataset (or nothing) and `force` was given."""
    if not path.exists():
        return
    if not path.is_dir():
        raise DetrkitError(f"{path} is a file; choose another output folder")
    empty = next(path.iterdir(), None) is None
    if not force and not empty:
        raise DetrkitError(f"{path} exists already; choose another output folder or pass force (--force)")
    if not empty and not any(next(path.glob(mark), None) for mark in _DATASET_MARKS):
        raise DetrkitError(f"{path} holds files that are no dataset, so it is not replaced; choose another folder")
