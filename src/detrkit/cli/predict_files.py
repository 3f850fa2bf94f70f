"""The files of `detrkit predict`: its input images, and its results, which overwrite no other file."""

from __future__ import annotations

import glob
import os
import stat
import time
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from detrkit.cli.predict_journal import Journal, Record, identity
from detrkit.utils.atomic import write_atomic
from detrkit.utils.errors import DetrkitError
from detrkit.utils.existing import missing
from detrkit.utils.folders import MANIFEST, is_as_noted, note_files, noted_files
from detrkit.utils.json_stream import JsonStream, entry_text
from detrkit.utils.names import NAME_BYTES, expanded_path

if TYPE_CHECKING:
    from PIL import Image

MAPS = "panoptic"  # the folder of the id maps in the output folder
PREDICTIONS = "predictions.json"
JPEG_MAX_SIDE = 65_500  # pixels
_SECONDS_BETWEEN_SAVES = 30.0  # of predictions.json


class Inputs(NamedTuple):
    """Image files of the inputs: files, folders and patterns.

    Attributes:
        files: each once, in the order given.
        left_out: files in the folders, or of the patterns, that are no images by their names.
    """

    files: list[Path]
    left_out: list[Path]


def find_images(inputs: tuple[str, ...]) -> Inputs:
    """Find the image files of the inputs: files, folders and patterns.

    Hidden files of folders and patterns are neither taken nor counted.

    Raises:
        DetrkitError: an input without any image.
    """
    files: dict[Path, None] = {}
    left_out: dict[Path, None] = {}
    for text in inputs:
        try:
            matches = _matching_images(text)
        except (OSError, RuntimeError, ValueError) as error:  # no rights, an unknown ~user, a null byte
            reason = getattr(error, "strerror", None) or error
            raise DetrkitError(f"{text}: cannot be looked into ({reason})") from error
        files.update(dict.fromkeys(matches.files))
        left_out.update(dict.fromkeys(matches.left_out))
    if not files:
        raise DetrkitError("no images given: name files, folders or patterns")
    return Inputs(list(files), list(left_out))


def _matching_images(text: str) -> Inputs:
    """Find the images of one input."""
    from detrkit.utils.image_names import SUFFIXES, is_image_file  # imports Pillow, which knows the formats

    path = expanded_path(text)
    if path.is_file():
        return Inputs([path], [])
    if path.is_dir():
        candidates = sorted(path.iterdir())
        nothing = f"no images in this folder (known: {', '.join(sorted(SUFFIXES))})"
    elif path.exists():
        raise DetrkitError(f"{text}: not a regular file")  # reading a pipe or a device would block
    else:
        candidates = sorted(Path(hit) for hit in glob.glob(os.fspath(path), recursive=True))
        nothing = "no such file or folder, and no image matches it as a pattern"
        if not glob.has_magic(text):
            raise missing(text)
    candidates = [file for file in candidates if not file.name.startswith(".") and file.is_file()]
    images = [file for file in candidates if is_image_file(file)]
    if not images:
        raise DetrkitError(f"{text}: {nothing}")
    return Inputs(images, [file for file in candidates if not is_image_file(file)])


def output_stems(files: list[Path]) -> dict[Path, str]:
    """Return the name of each image's results without suffix: its own, numbered if another image has it.

    Names that differ only in upper and lower case, or in how an accent is written, are equal: on some file systems they
    are one file. The first of the images that share a name keeps it, the others become name-2, name-3, ...; this
    depends only on the list.
    """
    stems: dict[Path, str] = {}
    taken: set[str] = set()
    repeated = []
    for file in files:
        stem = _cut(file.stem)
        if _key(stem) in taken:
            repeated.append(file)
        else:
            taken.add(_key(stem))
            stems[file] = stem
    numbers: dict[str, int] = {}
    for file in repeated:
        first = _key(file.stem)
        while _key(stem := _cut(file.stem, f"-{numbers.setdefault(first, 2)}")) in taken:
            numbers[first] += 1
        taken.add(_key(stem))
        stems[file] = stem
    return {file: stems[file] for file in files}


def _key(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


def _cut(stem: str, number: str = "") -> str:
    """Return the stem with its number, shortened so that a suffix of four characters fits behind it."""
    return os.fsdecode(os.fsencode(stem)[: NAME_BYTES - 4 - len(number)]) + number


class Results:
    """Writer of the output folder: drawn images, id maps and predictions.json; it overwrites no other file.

    An input image, or a file that detrkit did not write, is never written to. The manifest of the folder lists what
    detrkit wrote. What is done is recorded image by image (`Journal`) until predictions.json has all of it, so that a
    command that was stopped, however it ended, goes on where it was; several processes write records side by side.

    Args:
        out: the folder.
        files: the input images.
        images: whether drawn images will be written.

    Attributes:
        stems: see `output_stems`.
        restarted: whether an unfinished prediction with other settings was left behind.
    """

    def __init__(self, out: Path, files: list[Path], *, images: bool = True) -> None:
        self.out = out
        self.files = files
        self.images = images
        self.stems = output_stems(files)
        self._inputs = {identity for file in files if (identity := _identity(file)) is not None}
        self._noted = noted_files(out)
        self._coming: set[str] = set()  # names that were checked
        self._written: set[str] = set()  # by this command; also what was about to be written when it was stopped
        self._journal = Journal(out)
        self._names: dict[Path, list[str]] = {}  # written for an image
        self._start = 0  # which start of the prediction this is
        self._kept: set[str] = set()  # images that an earlier start has done
        self.restarted = False
        self._next_save = time.monotonic() + _SECONDS_BETWEEN_SAVES

    def check(self, *, maps: bool = False) -> None:
        """Check before anything is done that all results may be written.

        Args:
            maps: check the id maps, too, which only panoptic models write.

        Raises:
            DetrkitError: a result may not be written; names the first such file, and the fix.
        """
        if self.out.exists() and not self.out.is_dir():
            raise DetrkitError(f"{self.out} is a file: choose another output folder")
        self._refuse(MANIFEST, unnoted=True)
        names = [PREDICTIONS]
        if self.images:
            names += [stem + _suffix(file) for file, stem in self.stems.items()]
        if maps:
            names += [f"{MAPS}/{stem}.png" for stem in self.stems.values()]
        for name in names:
            self._refuse(name)
        self._coming = set(names)
        self._journal.settings()

    def begin(self, settings: Mapping[str, Any] | None = None) -> list[Path]:
        """Begin, or go on with an unfinished prediction of the same settings.

        What was checked and will be written is noted in the manifest, in case the command is killed.

        Args:
            settings: whatever changes the results.

        Returns:
            The images that are not done yet; one that was changed since is not done.

        Raises:
            DetrkitError: something cannot be written.
        """
        wanted = dict(settings or {})
        unfinished = self._journal.settings()
        note_files(self.out, (), coming=self._coming)
        self.restarted = unfinished not in (None, wanted)
        if self.restarted:
            self._journal.remove()
        if unfinished != wanted:
            self._journal.begin(wanted)
        self._kept = {
            str(file)
            for file, record in self.records(self._journal.records()).items()
            if record.identity == identity(file) and all((self.out / name).is_file() for name in record.names)
        }
        self._start = self._journal.starts() + 1
        self._journal.open(self._start, 0)
        return [file for file in self.files if str(file) not in self._kept]

    @property
    def start(self) -> int:
        """Which start of the prediction this is, for `join`."""
        return self._start

    def join(self, start: int, rank: int) -> None:
        """Write records beside those of the first process, which has begun.

        Raises:
            DetrkitError: they cannot be written.
        """
        self._start = start
        self._journal.open(start, rank)

    def records(self, found: Mapping[str, Record] | None = None) -> dict[Path, Record]:
        """Return what is done, by all processes and earlier starts, in the order of the images."""
        done: dict[Path, Record] = {}
        records = self._journal.records() if found is None else found
        for file in self.files:
            record = records.get(str(file))
            if record is None or record.stem != self.stems[file]:
                continue
            if found is not None or record.start == self._start or str(file) in self._kept:
                done[file] = record
        return done

    def forget(self) -> None:
        """Remove from the manifest the files that were not written, and the records.

        Raises:
            DetrkitError: it cannot be written.
        """
        self._journal.remove()
        note_files(self.out, self._written)

    def close(self) -> None:
        """Close the records of this process."""
        self._journal.close()

    def _refuse(self, name: str, *, unnoted: bool = False) -> None:
        """Check that writing a file of the folder does not overwrite one that detrkit did not write.

        Raises:
            DetrkitError: it would, or the path is no file; names the fix.
        """
        path = self.out / name
        fix = "choose another folder with --out"
        try:
            status = path.stat()
        except FileNotFoundError:
            if path.is_symlink():
                raise DetrkitError(f"{path} is a link to nowhere: {fix}") from None
            return
        except OSError as error:
            raise DetrkitError(f"{path}: cannot be looked into ({error.strerror}): {fix}") from error
        if (status.st_dev, status.st_ino) in self._inputs:
            raise DetrkitError(f"{path} is one of the input images and would be overwritten: {fix}")
        if stat.S_ISDIR(status.st_mode):
            raise DetrkitError(f"{path} is a folder: {fix}")
        if not unnoted and name not in self._written and not is_as_noted(self.out, name, self._noted):
            raise DetrkitError(f"{path} is there and was not written by detrkit, or was changed since: {fix}")

    def write_image(self, file: Path, image: Image.Image) -> None:
        """Write a drawn image: as PNG if the file is one or the image is too large for a JPEG, else as JPEG.

        Raises:
            DetrkitError: it cannot be written.
        """
        suffix = _suffix(file) if max(image.size) <= JPEG_MAX_SIDE else ".png"
        self._write(file, self.stems[file] + suffix, image)

    def id_map(self, file: Path, ids: Image.Image) -> str:
        """Write the PNG of segment ids; return its name in the folder.

        Raises:
            DetrkitError: it cannot be written.
        """
        name = f"{MAPS}/{self.stems[file]}.png"
        self._write(file, name, ids)
        return name

    def _write(self, file: Path, name: str, image: Image.Image) -> None:
        from detrkit.utils.image_files import image_bytes

        self._refuse(name)
        image.info.pop("transparency", None)  # of the input image: it would make one color transparent
        try:
            content = image_bytes(image, Path(name).suffix, quality=92)
        except (OSError, ValueError) as error:
            raise DetrkitError(f"cannot write {self.out / name}: {error}") from error
        self._written.add(name)
        self._names.setdefault(file, []).append(name)
        write_atomic(self.out / name, content, durable=False)

    def add(self, file: Path, entry: Any, objects: Sequence[str] = (), near_miss: Sequence[Any] | None = None) -> None:
        """Record the predictions of an image; memory does not grow with their size.

        Args:
            file: the image, whose pictures are written.
            entry: of predictions.json.
            objects: class of each object or segment, for the summary.
            near_miss: likewise, of an image without any.

        Raises:
            DetrkitError: it cannot be written.
        """
        fields = {
            "stem": self.stems[file],
            "names": self._names.pop(file, []),
            "identity": identity(file),
            "objects": list(objects),
            "near_miss": None if near_miss is None else list(near_miss),
        }
        self._journal.add(str(file), entry_text(str(file), entry), fields)

    def save(self, *, finished: bool = True) -> None:
        """Write predictions.json and the manifest.

        Args:
            finished: there is nothing to go on with; the records are removed.

        Raises:
            DetrkitError: they cannot be written.
        """
        self._refuse(PREDICTIONS)
        self._written.add(PREDICTIONS)
        done = self.records()
        with JsonStream(self.out / PREDICTIONS) as stream:
            for record in done.values():
                stream.add_text(record.text())
            stream.finish()
        written = self._written.union(*(record.names for record in done.values()))
        if finished:
            self._journal.remove()
            note_files(self.out, written)
        else:  # it will be written again: a kill after that, and before the manifest is, must not leave another's file
            note_files(self.out, written - {PREDICTIONS}, coming=(self._coming - written) | {PREDICTIONS})

    def save_sometimes(self) -> None:
        """Write predictions.json so far if some time has passed since the last one, in case of a kill -9.

        Raises:
            DetrkitError: it cannot be written.
        """
        began = time.monotonic()
        if began < self._next_save:
            return
        self.save(finished=False)
        ended = time.monotonic()
        self._next_save = ended + max(_SECONDS_BETWEEN_SAVES, 50 * (ended - began))  # 2 % of the time, at most


def _suffix(file: Path) -> str:
    return ".png" if file.suffix.lower() == ".png" else ".jpg"


def _identity(file: Path) -> tuple[int, int] | None:
    """Return device and inode, which links, hard links and names in another case share; None if the file is gone."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
