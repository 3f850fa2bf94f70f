"""`download_coco`: COCO 2017 with boxes and masks, or panoptic too, from its official archives (Lin et al. 2014).

One archive after the other is downloaded, verified and unpacked. A split's folder appears when it is complete, and a
command that was stopped, however it ended, goes on where it was when it is run again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from detrkit.utils.atomic import locked_temporary, make_folder, sweep, write_atomic, write_errors
from detrkit.utils.console import Terminal
from detrkit.utils.documents import parse_json, read_bytes
from detrkit.utils.download import download, sha256
from detrkit.utils.errors import DetrkitError
from detrkit.utils.lock import FolderLock
from detrkit.utils.names import full_path

Split = Literal["train", "val"]
URL = "http://images.cocodataset.org"  # the address on cocodataset.org/#download
URL_VARIABLE = "DETRKIT_COCO_URL"  # of a mirror with the same paths
STATE = "detrkit-download.json"  # in the folder: the parts that are complete
ARCHIVES_FOLDER = "archives"
_CHUNK = 1 << 20  # bytes


class Part(NamedTuple):
    """A file or folder of the dataset that an archive holds.

    Attributes:
        target: its path in the dataset's folder.
        split: which it belongs to.
        members: pattern of the names in the archive that are unpacked; no other name is written anywhere.
        files: number of these names.
        inner: the archive inside the archive that holds them.
    """

    target: str
    split: Split
    members: str
    files: int = 1
    inner: str | None = None


class Archive(NamedTuple):
    """An official archive.

    Attributes:
        path: of its address.
        size: bytes.
        sha256: as TensorFlow Datasets lists it.
        unpacked: bytes of its parts for each split, rounded up.
        parts: what is taken from it.
    """

    path: str
    size: int
    sha256: str
    unpacked: dict[Split, int]
    parts: tuple[Part, ...]

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.path.rsplit("/", 1)[1]


_IMAGES: dict[Split, int] = {"train": 118_287, "val": 5_000}
_INSTANCES = tuple(
    Part(f"annotations/instances_{split}2017.json", split, rf"annotations/instances_{split}2017\.json")
    for split in _IMAGES
)
_SEGMENTS = tuple(
    part
    for split, count in _IMAGES.items()
    for part in (
        Part(f"annotations/panoptic_{split}2017.json", split, rf"annotations/panoptic_{split}2017\.json"),
        Part(
            f"panoptic_{split}2017",
            split,
            rf"panoptic_{split}2017/\d{{12}}\.png",
            count,
            f"annotations/panoptic_{split}2017.zip",
        ),
    )
)
ARCHIVES: dict[str, Archive] = {
    "annotations": Archive(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        {"train": 480_000_000, "val": 30_000_000},
        _INSTANCES,
    ),
    "panoptic": Archive(
        "annotations/panoptic_annotations_trainval2017.zip",
        860_725_834,
        "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
        {"train": 2_200_000_000, "val": 120_000_000},
        _SEGMENTS,
    ),
    "val": Archive(
        "zips/val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        {"val": 840_000_000},
        (Part("val2017", "val", r"val2017/\d{12}\.jpg", _IMAGES["val"]),),
    ),
    "train": Archive(
        "zips/train2017.zip",
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        {"train": 19_900_000_000},
        (Part("train2017", "train", r"train2017/\d{12}\.jpg", _IMAGES["train"]),),
    ),
}


def download_coco(
    to: str | Path,
    *,
    panoptic: bool = False,
    splits: Sequence[Split] = ("train", "val"),
    archives: str | Path | None = None,
    keep_archives: bool = False,
    url: str | None = None,
) -> Path:
    """Make a folder with COCO 2017: train2017/, val2017/, annotations/instances_*.json; panoptic too.

    Parts that the folder has from an earlier call are not downloaded again; so a call with `panoptic` adds the panoptic
    annotations to a folder that has the images.

    Args:
        to: the folder.
        panoptic: also annotations/panoptic_*.json and their PNGs in panoptic_train2017/ and panoptic_val2017/.
        splits: which; their annotations are in one archive.
        archives: a folder with the official zip files, if they have been fetched by other means; they stay there.
        keep_archives: keep the downloaded archives in `to`/archives; otherwise each is removed once it is unpacked.
        url: address of a mirror with the same paths; by default $DETRKIT_COCO_URL, or the official one.

    Returns:
        The folder.

    Raises:
        DetrkitError: too little disk space, a part's place is taken by something else, an archive is not the official
            one or damaged, or another process writes the folder. What is complete stays, and the next call goes on.
        DownloadError: no connection; likewise.
    """
    to = full_path(to)
    given = None if archives is None else full_path(archives)
    if given is not None and not given.is_dir():
        raise DetrkitError(f"{given}: the folder with COCO's zip files expected; it is none")
    if to.exists() and not to.is_dir():
        raise DetrkitError(f"{to} is a file; choose another output folder")
    names = ["annotations", *(["panoptic"] if panoptic else []), *(s for s in ("val", "train") if s in splits)]
    done = _complete(to)
    todo = [(archive, parts) for name in names if (parts := _missing(to, archive := ARCHIVES[name], splits, done))]
    if todo:
        _check_space(to, todo, splits, keep=keep_archives, given=given)
        with FolderLock(to):
            sweep(to)
            for archive, parts in todo:
                file = _archive_file(archive, to, given, url)
                for part in parts:
                    _unpack(file, part, to)
                    if hasattr(
                        os, "sync"
                    ):  # else a power cut could leave empty files in a part that counts as complete
                        os.sync()
                    done[part.target] = part.files
                    write_atomic(to / STATE, json.dumps({"written by": "detrkit", "parts": done}, indent=1) + "\n")
                if given is None and not keep_archives:
                    file.unlink(missing_ok=True)
            _remove_if_empty(to / ARCHIVES_FOLDER)
    return to


def _complete(to: Path) -> dict[str, int]:
    """Read which parts an earlier call has completed, with the number of their files.

    Raises:
        DetrkitError: the file that says so is damaged.
    """
    file = to / STATE
    if not file.exists():
        return {}
    content = parse_json(read_bytes(file), str(file))
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, dict):
        raise DetrkitError(f"{file}: damaged, or not written by detrkit: remove it, or choose another folder")
    return {str(name): count for name, count in parts.items() if isinstance(count, int)}


def _missing(to: Path, archive: Archive, splits: Sequence[Split], done: dict[str, int]) -> list[Part]:
    """Return the parts of an archive that the folder lacks.

    Raises:
        DetrkitError: something else has the place of one.
    """
    missing = []
    for part in archive.parts:
        place = to / part.target
        if part.split not in splits or (part.target in done and _holds(place, done[part.target])):
            continue
        if os.path.lexists(place):
            whose = "is no longer complete" if part.target in done else "was not made by this command"
            raise DetrkitError(f"{place} is there and {whose}: remove or rename it, or choose another folder with --to")
        missing.append(part)
    return missing


def _holds(place: Path, count: int) -> bool:
    """Return whether a part is there with all of its files."""
    return sum(1 for _ in os.scandir(place)) == count if place.is_dir() else place.is_file()


def _check_space(
    to: Path,
    todo: Sequence[tuple[Archive, list[Part]]],
    splits: Sequence[Split],
    *,
    keep: bool,
    given: Path | None,
) -> None:
    """Print how much will be downloaded and how much disk it takes.

    Raises:
        DetrkitError: the disk has less.
    """
    sizes = [archive.size for archive, _ in todo]
    partly = [_size(to / ARCHIVES_FOLDER / f"{a.file}{end}") for a, _ in todo for end in ("", ".part")]
    unpacked = sum(archive.unpacked.get(split, 0) for archive, _ in todo for split in splits)
    zips = 0 if given is not None else sum(sizes) if keep else max(sizes)
    need = max(unpacked + zips - sum(partly), 0)
    console = Terminal(stderr=True)
    for archive, _ in todo:
        console.print(f"{archive.file}: {_gigabytes(archive.size)}", highlight=False)
    console.print(f"needs up to {_gigabytes(need)} of disk, {_gigabytes(unpacked)} of it for good", highlight=False)
    above = next(folder for folder in (to, *to.parents) if folder.exists())
    free = shutil.disk_usage(above).free
    if free < need:
        raise DetrkitError(
            f"{to}: {_gigabytes(free)} are free there, {_gigabytes(need)} are needed: choose another folder with --to, "
            "or only the validation split with --only val"
        )


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _archive_file(archive: Archive, to: Path, given: Path | None, url: str | None) -> Path:
    """Return an archive, downloaded or given, whose SHA-256 is the official one's.

    Raises:
        DetrkitError: it is not there, or another file.
    """
    if given is None:
        base = url or os.environ.get(URL_VARIABLE) or URL
        return download(
            f"{base.rstrip('/')}/{archive.path}",
            sha256_prefix=archive.sha256,
            folder=to / ARCHIVES_FOLDER,
            size=archive.size,
        )
    file = given / archive.file
    if not file.is_file():
        raise DetrkitError(f"{file}: not there; get it from {URL}/{archive.path}")
    if file.stat().st_size != archive.size:
        raise DetrkitError(f"{file} has {file.stat().st_size:,} bytes, the official one {archive.size:,}: get it again")
    if sha256(file) != archive.sha256:
        raise DetrkitError(f"{file} is not the official archive: it has another SHA-256; get it again")
    return file


def _unpack(file: Path, part: Part, to: Path) -> None:
    """Unpack a part of an archive; it appears in its place when it is complete.

    Raises:
        DetrkitError: a damaged archive, or one that does not hold the part; or the disk cannot be written.
    """
    target = to / part.target
    Terminal(stderr=True).print(f"unpacking {part.target}", highlight=False, soft_wrap=True)
    make_folder(target.parent)
    try:
        with write_errors(target), locked_temporary(target, folder=True) as temporary:
            made = temporary / target.name
            with zipfile.ZipFile(file) as outer:
                if part.inner is None:
                    count = _extract(outer, part, made)
                else:
                    nested = temporary / "inner.zip"
                    _copy(outer, outer.getinfo(part.inner), nested)
                    with zipfile.ZipFile(nested) as inner:
                        count = _extract(inner, part, made)
            if count != part.files:
                raise DetrkitError(f"{file}: {count:,} files of {part.target} in it, {part.files:,} expected")
            made.rename(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise DetrkitError(f"{file}: damaged archive ({error}): remove it, and it is downloaded again") from error


def _extract(archive: zipfile.ZipFile, part: Part, made: Path) -> int:
    """Write the members of a part below `made` by the last part of their names; return their number."""
    members = [info for info in archive.infolist() if re.fullmatch(part.members, info.filename, re.ASCII)]
    folder = part.target.rpartition("/")[2]
    if not members or not members[0].filename.startswith(f"{folder}/"):  # a file
        for info in members:
            _copy(archive, info, made)
        return len(members)
    made.mkdir()
    for info in members:
        _copy(archive, info, made / info.filename.rpartition("/")[2])
    return len(members)


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, to: Path) -> None:
    """Write a member of an archive to a new file; its checksum is compared on the way."""
    with archive.open(info) as source, to.open("xb") as target:
        shutil.copyfileobj(source, target, _CHUNK)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
