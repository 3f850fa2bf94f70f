"""Places of the images of a COCO json: its file names are relative to one of the usual folders, or nearly.

File names come from the json: none of them may lead out of the dataset. Links inside it may point anywhere, so paths
are compared as they are written. Names that do not lead to a file as they stand (absolute paths of another machine,
names encoded as in a URL, upper case for lower case, folders left out or repeated) are looked up by their last part
among the images of the dataset, and used if exactly one fits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from detrkit.data.images import is_image_file
from detrkit.data.readers.common import Findings
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import NAME_BYTES, relative_path

_TRIED = 20  # file names; a dataset with more than a few missing images is reported image by image
_MOST_FILES = 200_000  # listed at most to look a name up
# Plain names of folders and a file: they lead to no other place, and need no closer look (10 times faster).
_PLAIN = re.compile(r"(?:[\w ()-][\w .()-]*/){0,8}[\w ()-][\w .()-]*", re.ASCII)


class Place(NamedTuple):
    """Folder that file names may be relative to.

    Attributes:
        folder: the folder.
        root: the folder that no file name may leave.
    """

    folder: Path
    root: Path

    def file(self, name: str) -> Path | None:
        """Return the path of a file name, or None where it leaves the root or cannot be read."""
        if len(name) <= NAME_BYTES and _PLAIN.fullmatch(name):
            return self.folder / name
        try:
            relative = relative_path(name, "", up=True)
        except DetrkitError:
            return None
        file = Path(os.path.normpath(self.folder / relative)) if ".." in relative.parts else self.folder / relative
        return file if file.is_relative_to(self.root) else None

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        file = self.file(name)
        try:
            return file is not None and file.is_file()
        except OSError:  # a path that is too long, or a folder that may not be read
            return False


def dataset_root(file: Path) -> Path:
    """Return the folder of the dataset that an annotation file belongs to."""
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def usual_places(file: Path, split: str, also: Sequence[Path] = ()) -> list[Place]:
    """List the places to look for images in, in this order; `also`: places to look at after the usual ones."""
    here, root = file.parent, dataset_root(file)
    above = root.parent
    inside = [
        root / split,
        root / "images" / split,
        root / split / "images",
        root / "images",
        root / "JPEGImages",
        here,
    ]
    beside = [above / split, above / "images" / split, above / "images", above / "JPEGImages"]
    places = [Place(folder, root) for folder in inside]
    places += [Place(folder, folder) for folder in beside]
    places += [Place(root, root), Place(above, above)]
    return places + [Place(folder, folder) for folder in also]


def image_files(
    file: Path,
    split: str,
    names: Mapping[int, str],
    findings: Findings,
    also: Sequence[Path] = (),
    *,
    called: Path | None = None,
    where: Callable[[int], str] = "image {}".format,
) -> dict[int, Path]:
    """Map image ids to files, for the images whose file names lead to one.

    Only some of the files are looked for on disk: a network disk takes a millisecond for each.

    Args:
        file: the json.
        split: its split.
        names: image id -> file_name as the json has it.
        findings: takes the file names that lead nowhere.
        also: places to look at after the usual ones.
        called: what messages call the json, where it is no file; by default `file`.
        where: names an image by its id, as messages do.

    Raises:
        DetrkitError: with strict findings, a name that leads nowhere or that fits several files, or no image at all.
    """
    places = usual_places(file, split, also)
    file = called or file
    sample = list(names.values())[:_TRIED]
    chosen = next((place for place in places if any(map(place.has, sample))), None)
    files: dict[int, Path] = {}
    others: dict[int, str] = {}
    for image_id, name in names.items():
        path = None if chosen is None else chosen.file(name)
        # as in a URL; there may be such files, too
        if path is None or ("%" in name and chosen is not None and not chosen.has(name)):
            others[image_id] = name
        else:
            files[image_id] = path
    if not others:
        return files
    matched, problems = _look_up(others, places, split, set(files.values()))
    if chosen is None and not matched and all(place.file(n) for n in sample for place in places[:1]):
        tried = ", ".join(str(place.folder) for place in places[:5])
        reason = (
            f"images such as {sample[0]:.200} were found in none of {tried}, under any folder; put them in the first"
        )
        findings.add("error", file, "", reason)
        existing = next((place for place in places[:6] if place.folder.is_dir()), places[5])
        files = {image_id: existing.folder / PurePosixPath(name.replace("\\", "/")) for image_id, name in names.items()}
        findings.missing.update(files.values())
        return files
    for image_id, problem in problems.items():
        findings.add("error", file, where(image_id), problem)
    if matched:
        first = next(iter(matched))
        text = f"{len(matched)} file names do not lead to their images: taken by their last part, such as"
        findings.note("info", file, "", f"{text} {matched[first]} for {others[first]!r:.200}")
    return {image_id: (files | matched)[image_id] for image_id in names if image_id in files or image_id in matched}


def _look_up(
    names: Mapping[int, str], places: Sequence[Place], split: str, taken: set[Path]
) -> tuple[dict[int, Path], dict[int, str]]:
    """Match names by their last part: image id -> the one file that fits, and image id -> why there is none."""
    by_name: dict[str, list[Path]] = {}
    for path in _images_of(places):
        by_name.setdefault(path.name.casefold(), []).append(path)
    matched: dict[int, Path] = {}
    problems: dict[int, str] = {}
    users: dict[Path, list[int]] = {}
    for image_id, name in names.items():
        fits = _best_fits(name, by_name, split)
        if len(fits) == 1:
            users.setdefault(fits[0], []).append(image_id)
        else:
            problems[image_id] = _problem(name, places[0].root, fits)
    for path, ids in users.items():
        if len(ids) == 1 and path not in taken:
            matched[ids[0]] = path
            continue
        for image_id in ids:
            reason = f"file_name {names[image_id]!r:.200} fits only {path}, which another image has: correct the names"
            problems[image_id] = reason
    return matched, problems


def _best_fits(name: str, by_name: Mapping[str, Sequence[Path]], split: str) -> list[Path]:
    """Find the files whose path ends most like a name: first by its last part, then by the folders before it."""
    fits: list[tuple[tuple[int, int, bool], Path]] = []
    for text in dict.fromkeys((name, unquote(name))):
        parts = [part for part in re.split(r"[/\\]", text) if part]
        for path in by_name.get(parts[-1].casefold(), ()) if parts else ():
            alike = 0
            for ours, theirs in zip(path.parts[::-1], parts[::-1], strict=False):
                if ours.casefold() != theirs.casefold():
                    break
                alike += 1
            fits.append(((alike, path.name == parts[-1], split in path.parts), path))
    best = max((rank for rank, _ in fits), default=None)
    return list(dict.fromkeys(path for rank, path in fits if rank == best))


def _problem(name: str, root: Path, fits: Sequence[Path]) -> str:
    """Say why a name leads to no image."""
    text = f"file_name {name!r:.200}"
    if fits:
        return f"{text} fits {' and '.join(map(str, fits[:3]))}: write the path relative to the dataset's folder"
    try:
        relative_path(name, "", up=True)
    except DetrkitError as error:
        reason = str(error).split(repr(name[:80]), 1)[-1].strip()
    else:
        up = ".." in re.split(r"[/\\]", name)
        reason = f"leads out of the dataset's folder {root}" if up else "leads to no image"
    return f"{text} {reason}; no image in {root} has that name"


def _images_of(places: Sequence[Place]) -> Iterator[Path]:
    """Yield the images in the dataset and in the usual folders beside it; none if there are too many files."""
    root, above = places[0].root, places[0].root.parent
    # a link in the root is not followed, but the usual folders may be links
    linked = [p.folder for p in places if p.folder.is_symlink() or not p.folder.is_relative_to(root)]
    tops = [root, *(folder for folder in linked if folder != above)]
    images: dict[Path, None] = {}
    listed = 0
    for top in dict.fromkeys(tops):
        for folder, folders, files in os.walk(top):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            listed += len(files) + len(folders)
            if listed > _MOST_FILES:
                return
            images.update(dict.fromkeys(filter(is_image_file, (Path(folder, name) for name in sorted(files)))))
    yield from images
