"""What is done of a prediction that is not finished: one record for each image, kept until the command has ended.

A folder beside the results holds the settings of the prediction and, of each process and start, a file to which records
are appended: a line of JSON and the image's part of predictions.json as it will be written. A record that a killed
process has half written is not read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from annotated_types import Ge
from typing_extensions import TypedDict  # pydantic needs it below Python 3.12, and brings it

from detrkit.utils.atomic import locked_temporary, make_folder, write_atomic, write_errors
from detrkit.utils.documents import parse_json, read_bytes
from detrkit.utils.errors import DetrkitError, SettingError

if TYPE_CHECKING:
    from detrkit.detector import Detector

FOLDER = "predictions-unfinished"
_SETTINGS, _RECORDS = "settings.json", ".records"
_SAMPLES = 64  # values of a tensor that its digest is made of


class Record(NamedTuple):
    """An image that is done.

    Attributes:
        stem: name of its results without suffix.
        names: files that were written for it, in the output folder.
        identity: size in bytes and time of change in ns of the image, as it was read.
        objects: class of each object or segment.
        near_miss: fields of the `NearMiss` where there are none, or None.
        file, offset, length: where its part of predictions.json is.
    """

    stem: str
    names: list[str]
    identity: list[int] | None
    objects: list[str]
    near_miss: tuple[Any, ...] | None
    file: Path
    offset: int
    length: int

    @property
    def start(self) -> int:
        """Which start of the prediction has made it."""
        return _numbers(self.file)[0]

    def text(self) -> bytes:
        """Return its part of predictions.json."""
        with self.file.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


class _Head(TypedDict):
    """The line before an image's part of predictions.json, as it is read: a file may hold anything."""

    image: str
    length: Annotated[int, Ge(0)]
    stem: str
    names: list[str]
    identity: list[int] | None
    objects: list[str]
    near_miss: tuple[str, float, float, int, list[float] | None] | None


class Journal:
    """The records of a prediction in an output folder.

    Args:
        out: the output folder.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / FOLDER
        self._handle: int | None = None
        self._path = self.folder

    def settings(self) -> Any:
        """Return the settings of an unfinished prediction, or None if there is none.

        Raises:
            DetrkitError: the folder is not detrkit's.
        """
        if not os.path.lexists(self.folder):
            return None
        file = self.folder / _SETTINGS
        content = parse_json(read_bytes(file), str(file)) if file.is_file() else None
        if not isinstance(content, dict) or content.get("written by") != "detrkit":
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                return None
            raise DetrkitError(f"{self.folder} is there and was not written by detrkit: rename it")
        return content.get("settings")

    def begin(self, settings: Any) -> None:
        """Make the folder with the settings.

        Raises:
            DetrkitError: it cannot be written.
        """
        make_folder(self.folder)
        text = json.dumps({"written by": "detrkit", "settings": settings}, indent=1)
        write_atomic(self.folder / _SETTINGS, text + "\n")

    def starts(self) -> int:
        """Return how many times processes have begun to write records."""
        return max((_numbers(file)[0] for file in self.folder.glob(f"*{_RECORDS}")), default=0)

    def open(self, start: int, rank: int) -> None:
        """Make this process's file of records.

        Raises:
            WriteError: it cannot be made.
        """
        self._path = self.folder / f"{start}-{rank}{_RECORDS}"
        with write_errors(self._path):
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)

    def add(self, image: str, text: bytes, fields: Mapping[str, Any]) -> None:
        """Append a record.

        Raises:
            WriteError: it cannot be written.
        """
        if self._handle is None:
            raise RuntimeError("call open() first")
        head = json.dumps({"image": image, "length": len(text), **fields}).encode()
        rest = memoryview(head + b"\n" + text + b"\n")
        with write_errors(self._path):
            while rest:
                rest = rest[os.write(self._handle, rest) :]

    def records(self) -> dict[str, Record]:
        """Read the complete records by image; of several of one image the latest start's."""
        found: dict[str, Record] = {}
        for file in sorted(self.folder.glob(f"*{_RECORDS}"), key=_numbers):
            found.update(_records_of(file))
        return found

    def close(self) -> None:
        """Close this process's file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def remove(self) -> None:
        """Remove the folder in one step: the prediction is finished, or begins anew.

        A kill in the middle must not leave records without their settings, which the next command would take for
        another program's.

        Raises:
            WriteError: it cannot be removed.
        """
        self.close()
        if not os.path.lexists(self.folder):
            return
        with write_errors(self.folder), locked_temporary(self.folder, folder=True) as place:
            self.folder.rename(place / self.folder.name)


def _numbers(file: Path) -> tuple[int, int]:
    """Return start and rank, which a file of records is named by."""
    start, _, rank = file.stem.partition("-")
    return (int(start), int(rank)) if start.isdecimal() and rank.isdecimal() else (0, 0)


def _records_of(file: Path) -> Iterable[tuple[str, Record]]:
    """Yield the complete records of a file; what a killed process half wrote, and what follows it, is left out."""
    from detrkit.utils.schema import validated_as  # imported late: pydantic takes half a second

    with file.open("rb") as lines:
        size = lines.seek(0, os.SEEK_END)
        lines.seek(0)
        while line := lines.readline():
            offset = lines.tell()
            try:
                head: _Head = validated_as(_Head, json.loads(line))
            except (ValueError, RecursionError, SettingError):
                return
            end = offset + head["length"] + 1  # after `offset`, as the length is checked: each turn reads further
            if end > size:
                return
            lines.seek(end)
            yield (
                head["image"],
                Record(
                    head["stem"],
                    head["names"],
                    head["identity"],
                    head["objects"],
                    head["near_miss"],
                    file,
                    offset,
                    head["length"],
                ),
            )


def identity(file: Path) -> list[int] | None:
    """Return size and time of change of an image, or None if it is gone."""
    with suppress(OSError):
        status = file.stat()
        return [status.st_size, status.st_mtime_ns]
    return None


def digest(detector: Detector) -> str:
    """Return a digest of a model: its description, and samples of each of its tensors."""
    content = hashlib.sha256(detector.spec.to_json().encode())
    for name, tensor in detector.model.state_dict().items():
        flat = tensor.flatten()
        sample = flat[:: max(1, len(flat) // _SAMPLES)].cpu()
        content.update(f"{name} {tuple(tensor.shape)} {sample.tolist()}".encode())
    return content.hexdigest()
