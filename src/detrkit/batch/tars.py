"""Images in tars, as WebDataset writes them, read in their place: nothing is unpacked, no name becomes a path."""

from __future__ import annotations

import hashlib
import os
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detrkit.batch.sources import Item, Source, SourceError, bad_reference, unicode_name
from detrkit.utils.documents import require_regular
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import expanded_path

MAX_IMAGE_BYTES = 2**30  # of an encoded image that is read into memory
_BLOCK = 512  # bytes of a tar's block
_SAMPLE = 2**16  # bytes
_SAMPLES = 64


class TarSource(Source):
    """The images of a tar, in its order. An id is the tar's name and the member's: "train-000.tar/0001.jpg".

    Args:
        name: of the file, as typed.
    """

    ordered = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._file = expanded_path(name)
        self._handle: int | None = None
        self._size = -1

    def items(self) -> Iterator[Item]:
        """Yield the images; errors as of `Source.items`."""
        from detrkit.utils.image_names import is_image_file

        self.left_out = 0
        prefix = unicode_name(self._file.name)
        for member in self._members():
            # a link has no bytes of its own, a sparse file not at one place
            if not member.isreg() or member.issparse() or not is_image_file(Path(os.path.basename(member.name))):
                self.left_out += not member.isdir()
                continue
            yield Item(f"{prefix}/{unicode_name(member.name)}", [member.offset_data, member.size])

    def _members(self) -> Iterator[tarfile.TarInfo]:
        count = 0
        try:
            require_regular(self._file)
            with tarfile.open(self._file, "r:", errors="surrogateescape", encoding="utf-8") as tar:
                while (member := tar.next()) is not None:
                    yield member
                    count += 1
                    vars(tar)["members"].clear()  # else it keeps them all
                end = tar.offset
            # `next` takes garbage, and a file that was cut off, for the end; the true end is a block of zeros
            with self._file.open("rb") as file:
                file.seek(end)
                block = file.read(_BLOCK)
            if len(block) < _BLOCK or any(block):
                raise tarfile.ReadError("its end is missing")
        except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, struct.error) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            if isinstance(error, tarfile.TarError):
                reason = (
                    "a compressed tar: uncompress it first" if self._is_compressed() else f"damaged or cut: {reason}"
                )
            after = f" after {count} members" if count else ""
            raise DetrkitError(f"{self.name}: not a tar that can be read{after} ({reason})") from error

    def _is_compressed(self) -> bool:
        try:
            with self._file.open("rb") as file:
                start = file.read(6)
        except OSError:
            return False
        return start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))

    def signature(self) -> str:
        """Return a digest of the tar's size and of samples of its content; errors as of `Source.signature`."""
        try:
            require_regular(self._file)
            size = self._file.stat().st_size
            digest = hashlib.sha256(str(size).encode())
            with self._file.open("rb") as file:
                for number in range(_SAMPLES):
                    file.seek(max(0, size - _SAMPLE) * number // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE))
        except OSError as error:
            raise DetrkitError(f"{self.name}: cannot be read ({error.strerror or error})") from error
        return digest.hexdigest()

    def image(self, ref: Any) -> bytes:
        """Return the bytes of an image; arguments and errors as of `Source.image`."""
        try:
            if self._handle is None:
                self._handle = os.open(self._file, os.O_RDONLY)
                self._size = os.fstat(self._handle).st_size
            valid = isinstance(ref, list) and len(ref) == 2 and all(isinstance(part, int) for part in ref)
            if not valid or not 0 <= ref[0] <= ref[0] + ref[1] <= self._size:
                raise bad_reference(self.name, ref)
            if ref[1] > MAX_IMAGE_BYTES:
                raise DetrkitError(f"the image has more than {MAX_IMAGE_BYTES / 2**30:g} GiB")
            return _read_at(self._handle, ref[0], ref[1])
        except OSError as error:
            raise SourceError(
                f"{self.name} cannot be read ({error.strerror or error}): what is done is kept"
            ) from error

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _read_at(handle: int, offset: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.pread(handle, size, offset)
        if not part:
            raise OSError(5, "it has become shorter")
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
