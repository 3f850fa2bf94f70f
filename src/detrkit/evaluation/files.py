"""Files that are written whole or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from detrkit.errors import DetrkitError


def write_atomic(path: str | Path, content: bytes | str) -> Path:
    """Writes a file under a temporary name beside `path` and renames it, so that nobody reads half of it.

    Raises:
        DetrkitError: the folder cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise DetrkitError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)  # mkstemp makes 0o600; results are for everybody on the machine
        os.replace(temporary, target)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise DetrkitError(f"{path}: cannot be written ({error.strerror}); choose another file") from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def png(pixels: np.ndarray) -> bytes:
    """A PNG file's content of (H, W, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
