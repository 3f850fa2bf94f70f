"""Placing of images in a dataset that is being written: each is checked before, and gets a name that is free there."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Hashable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from detrkit.data.images import COMMON_SUFFIXES, SUFFIX_OF, SUFFIXES, checked_format, read_rgb
from detrkit.data.sample import Record
from detrkit.data.sources import ImageSource, TableImage
from detrkit.utils.errors import DetrkitError
from detrkit.utils.image_files import image_bytes
from detrkit.utils.names import checked_name

Transfer = Literal["copy", "hardlink", "symlink"]

# Lists and XML cannot hold these: line breaks of every kind, control characters, halves of characters.
UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_NAME_BYTES = 240  # longest name; file systems take 255, and the files beside an image may have longer suffixes


class ImagePlacer:
    """Placer of images in folders, each under a name that is free there, also where case does not count.

    Attributes:
        reencoded: number of images that were written anew, as PNG.
    """

    def __init__(self, how: Transfer, *, listed: bool) -> None:
        """Choose how to place images; nothing is written yet.

        Args:
            how: "copy", "hardlink" or "symlink" the files.
            listed: whether the reader finds images by listing folders: it then knows some suffixes only, and files
                beside an image have its stem.
        """
        self.how = how
        self.listed = listed
        self.reencoded = 0
        self._taken: set[tuple[Path, str]] = set()
        self._next: dict[tuple[Path, str], int] = {}
        self._shared: dict[Hashable, dict[str, str]] = {}

    def place(self, record: Record, folder: Path, *, split: str = "", content: Hashable = None) -> str:
        """Place the image of `record` in `folder`.

        Args:
            record: the image; its size says how its pixels lie, should they be written anew.
            folder: made if it is not there.
            split: that the image is for.
            content: what will be written about the image; another split with the same image and content shares the
                file. None: nothing is shared.

        Returns:
            Its name there; a name that is taken gets _2, _3, ... at its end.

        Raises:
            DetrkitError: no image, a name that cannot be used, or it cannot be linked.
            OSError: it cannot be written.
        """
        file = record.file
        shared = self._shared.setdefault((folder, file, content), {}) if content is not None else {}
        name = next((name for name, user in shared.items() if user != split), None)
        if name is None:
            name = self._bring(record, folder)
        shared[name] = split
        return name

    def name(self, file: ImageSource, folder: Path) -> tuple[str, str]:
        """Reserve a free name for an image in a folder; return it with the format of the image.

        Raises:
            DetrkitError: no image, or a name that cannot be used.
        """
        form = checked_format(file)
        where = UNWRITABLE.sub("?", f"{file}: name of the image")
        name = checked_name(re.split(r"[/\\]", file.name)[-1], where)
        stem, suffix = self._parts(UNWRITABLE.sub("_", name), form)
        return self._free(folder, stem, suffix), form

    def _parts(self, name: str, form: str) -> tuple[str, str]:
        """Return stem and suffix in the new dataset, for an image of a name and a format."""
        suffix = Path(name).suffix
        stem = name.removesuffix(suffix)
        usual = SUFFIX_OF.get(form, ".png" if self.listed else f".{form.lower()}")
        image_suffixes = Image.registered_extensions()
        if suffix.lower() not in (COMMON_SUFFIXES if self.listed else image_suffixes):
            # "a.jfif" becomes a.jpg, but "IMG.2020" is a name without suffix
            stem, suffix = (stem if suffix.lower() in image_suffixes else name), usual
        if self.listed:
            stem = stem.strip()
            if stem.startswith("."):
                stem = "_" + stem[1:]  # hidden files are no images
            if Path(stem).suffix.lower() in SUFFIXES:  # a list may name "a.jpg.png" as a.jpg or as a
                stem = "_".join(stem.rsplit(".", 1))
        return stem or "image", suffix

    def _free(self, folder: Path, stem: str, suffix: str) -> str:
        """Reserve the first of stem, stem_2, stem_3, ... that is not taken, with its suffix."""
        stem = os.fsencode(stem)[: _NAME_BYTES - len(os.fsencode(suffix))].decode("utf-8", "ignore")
        first = stem
        while True:
            key = (folder, (stem if self.listed else stem + suffix).casefold())
            if key not in self._taken:
                self._taken.add(key)
                return stem + suffix
            number = self._next.get((folder, first), 1) + 1
            self._next[folder, first] = number
            stem = f"{first}_{number}"

    def _bring(self, record: Record, folder: Path) -> str:
        """Copy, link or rewrite the image; return its name."""
        file = record.file
        name, form = self.name(file, folder)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / name
        anew = self.listed and form not in SUFFIX_OF and Path(file.name).suffix.lower() not in COMMON_SUFFIXES
        if self.how != "copy" and (anew or isinstance(file, TableImage)):
            kind = f"a {form} image, which has to be written as PNG," if anew else "a row of a parquet file"
            raise DetrkitError(f"{file}: {kind} cannot be linked: use --images copy")
        if anew:
            pixels = np.asarray(read_rgb(file, (record.height, record.width)))
            target.write_bytes(image_bytes(pixels))  # from the pixels alone: no EXIF turns them again
            self.reencoded += 1
        elif isinstance(file, TableImage):
            target.write_bytes(file.read())
        elif self.how == "copy":
            shutil.copyfile(file, target)
        else:
            try:
                if self.how == "hardlink":
                    os.link(file.resolve(), target)
                else:
                    target.symlink_to(file.resolve())
            except OSError as error:
                raise DetrkitError(
                    f"{file}: cannot {self.how} the image ({error.strerror}); try another --images"
                ) from error
        return name
