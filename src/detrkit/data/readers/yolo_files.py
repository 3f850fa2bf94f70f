"""Places of the splits, classes, images and labels of a YOLO dataset.

- Texts of the data.yaml are taken as they stand: a class called `no` is not "False".
- A path in it is looked for as it stands, below the yaml's `path`, beside the yaml, and, if it is one of another
  machine, with as much of its end as there is beside the yaml.
- A folder is searched through symbolic links. Lines of a list are relative to the list, to `path` or to the yaml; an
  image that is listed again is read once.
- Labels: in the path of the image the last folder called images becomes labels, else an earlier one, else they are
  beside the image.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from detrkit.data.images import SUFFIXES
from detrkit.data.readers._search import find_files
from detrkit.data.readers.class_names import check_class_names, read_class_file
from detrkit.data.readers.common import Findings
from detrkit.structures.classes import ClassList
from detrkit.utils.documents import parse_yaml, read_text
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import checked_name, not_hidden

_USUAL_SPLITS = ("train", "val", "valid", "test")
_NO_SPLITS = (*_USUAL_SPLITS, "path", "names", "nc", "download", "kpt_shape", "flip_idx")
_NOTHING = ("", "~", "null", "Null", "NULL")  # YAML's words for no value
_MAX_CLASS_DIGITS = 6
_MAX_TAIL = 8  # last parts that are tried of a path of another machine


def yaml_file(path: Path) -> Path | None:
    """Find the data.yaml of a dataset: that name, or else the only yaml of the folder."""
    if path.is_file():
        return path
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (path / name).is_file():
            return path / name
    others = [*not_hidden(path, "*.yaml"), *not_hidden(path, "*.yml")]
    return others[0] if len(others) == 1 and (path / "images").is_dir() else None


def classes_file(path: Path) -> Path | None:
    """Find the list of classes of a dataset without data.yaml."""
    names = ("classes.txt", "labels.txt", "labels/classes.txt", "obj.names")
    return next((path / n for n in names if (path / n).is_file()), None)


def has_labels(path: Path) -> bool:
    """Tell whether a dataset has a data.yaml, or label files in labels/ or beside the images."""
    if yaml_file(path) is not None or (path / "labels").is_dir():
        return True
    return bool(find_files(path / "images", frozenset({".txt"})).files)


def load_config(path: Path) -> tuple[Path, dict[str, Any]]:
    """Read the data.yaml of a dataset: its path and content, every scalar a text; or the folder and {} without one.

    Raises:
        DetrkitError: malformed, or without names.
    """
    file = yaml_file(path)
    if file is None:
        return path, {}
    value = parse_yaml(read_text(file), str(file), scalars=False)
    if not isinstance(value, dict) or not isinstance(value.get("names"), list | dict) or not value["names"]:
        raise DetrkitError(f"{file}: field names must list the classes")
    return file, {key: entry for key, entry in value.items() if entry not in _NOTHING}


def splits(path: Path) -> list[str]:
    """List the splits named in the yaml; without one, the folders in images/, or "all".

    Raises:
        DetrkitError: a bad yaml, or a name of a split that cannot be used.
    """
    file, config = load_config(path)
    if config:
        names = [s for s in _USUAL_SPLITS if config.get(s)]
        names += [k for k in config if k not in _NO_SPLITS and _names_images(file, config, config[k])]
    else:
        inside = (path / "images").iterdir() if (path / "images").is_dir() else ()
        names = sorted(d.name for d in inside if d.is_dir() and not d.name.startswith("."))
    return [checked_name(str(name), f"{file}: name of a split") for name in names] or ["all"]


def _names_images(file: Path, config: dict[str, Any], entry: Any) -> bool:
    """Tell whether an entry of the yaml beyond the usual ones names images ("trainval: images/trainval")."""
    first = entry[0] if isinstance(entry, list) and entry else entry
    place = _resolve(file, config, first) if isinstance(first, str) else None
    return place is not None and (place.is_dir() or place.suffix == ".txt")


def read_classes(path: Path, file: Path, config: dict[str, Any], findings: Findings) -> ClassList:
    """Read the classes; ids are the class numbers of the label files.

    Raises:
        DetrkitError: names that are not a list or a mapping of numbers 0, 1, ..., or (strict findings) a name that
            cannot be used.
    """
    if not config:
        listed = read_class_file(classes_file(path) or path / "classes.txt", findings, numbered=True)
        return ClassList(tuple(listed), tuple(range(len(listed))), unused=frozenset())
    names = config["names"]
    numbered: dict[int, str] = {}
    for key, name in names.items() if isinstance(names, dict) else enumerate(names):
        if not isinstance(name, str) or not re.fullmatch(f"[0-9]{{1,{_MAX_CLASS_DIGITS}}}", str(key)):
            raise DetrkitError(
                f"{file}: field names must map class numbers to names, not {_short(key)}: {_short(name)}"
            )
        if int(key) in numbered:
            findings.add("error", file, f"class {int(key)}", "is named twice in the field names")
        numbered[int(key)] = name.strip()
    check_class_names(((f"class {number}", name) for number, name in numbered.items()), file, findings)
    count = config.get("nc")
    if count is not None and count not in (str(len(numbered)), str(max(numbered) + 1)):
        reason = f"is {_short(count)}, but names lists {len(numbered)} classes: names counts"
        findings.add("warning", file, "field nc", reason)
    return ClassList.contiguous(numbered)


def _short(value: Any) -> str:
    """Format a value of a file for a message."""
    return repr(value)[:80]


def images_of(path: Path, split: str, file: Path, config: dict[str, Any], findings: Findings) -> list[Path]:
    """List the image files of a split, sorted.

    Raises:
        DetrkitError: none found, an entry that is not there, or (strict findings) any error in a list.
    """
    images: set[Path] = set()
    if not config:
        name = () if split == "all" else (checked_name(split, f"{path}: split"),)
        place = path.joinpath("images", *name)
        images.update(_folder(place, findings))
        if name and not findings.strict:
            loose = sum(f.parent == path / "images" for f in find_files(path / "images", SUFFIXES).files)
            if loose:
                reason = f"{loose} images are in no split: they are beside the folders of the splits"
                findings.add("warning", path / "images", "", reason)
        where = str(place)
    else:
        entries = config.get(split) or "images"
        for entry in entries if isinstance(entries, list) else [entries]:
            if not isinstance(entry, str):
                raise DetrkitError(f"{file}, field {split}: {_short(entry)} is not the path of a folder or a list")
            images.update(_images_at(_place(file, config, entry, split, findings), file, config, split, findings))
        where = f"{file}, field {split}: {_short(entries)}"
    if not images:
        raise DetrkitError(f"{where}: no image found")
    return sorted(images)


def _place(file: Path, config: dict[str, Any], entry: str, split: str, findings: Findings) -> Path:
    """Find the folder or file that an entry of the yaml means.

    Raises:
        DetrkitError: it is nowhere.
    """
    place = _resolve(file, config, entry)
    as_written = Path(_base(config)) / entry
    if place is None:
        looked = as_written if as_written.is_absolute() else file.parent / as_written
        raise DetrkitError(
            f"{file}, field {split}: {entry[:200]} does not exist (looked for {str(looked)[:200]}, and beside the "
            "yaml); correct the yaml"
        )
    if as_written.is_absolute() and place != as_written:
        findings.add("info", file, f"field {split}", f"{entry[:200]} is not on this machine: {place} is read")
    return place


def _base(config: dict[str, Any]) -> str:
    """Return the yaml's `path`."""
    base = config.get("path", "")
    return base if isinstance(base, str) else ""


def _resolve(file: Path, config: dict[str, Any], entry: str) -> Path | None:
    """Find the entry of a yaml, or the line of a list, by the rule at the top of this file; None: it is nowhere."""
    here, base = file.parent, Path(_base(config))
    tried = [base / entry, here / base / entry, here / entry, here / base.name / entry]
    if not _is_absolute(entry) and _posix(entry):
        tried.append(here.joinpath(*_posix(entry)))  # Roboflow writes one "../" too many
    if _is_absolute(entry) or _is_absolute(str(base)) or entry.startswith(".."):
        whole = _posix(entry if _is_absolute(entry) else f"{base}/{entry}")
        tried += [here.joinpath(*whole[k:]) for k in range(max(0, len(whole) - _MAX_TAIL), len(whole))]
    return next((p for p in tried if p.is_absolute() and os.path.exists(p)), None)


def _is_absolute(text: str) -> bool:
    """Tell whether a path starts at the root of this or of another machine."""
    return text.startswith("/") or bool(PureWindowsPath(text).drive)


def _posix(text: str) -> list[str]:
    """Split a path of any machine into parts without root, drive and leading ".."; none if another ".." follows."""
    parts = [p for p in PurePosixPath(text.replace("\\", "/")).parts if p != "/" and not p.endswith(":")]
    while parts and parts[0] == "..":
        parts.pop(0)
    return parts if ".." not in parts else []


def _folder(place: Path, findings: Findings) -> list[Path]:
    """List the images below a folder."""
    search = find_files(place, SUFFIXES)
    for fault, reason in search.faults:
        findings.add("warning", fault, "", reason)
    return search.files


def _images_at(place: Path, file: Path, config: dict[str, Any], split: str, findings: Findings) -> list[Path]:
    """List the images in a folder and its subfolders, or named in a text file, or the one image that `place` is."""
    if place.is_dir():
        return _folder(place, findings)
    if place.suffix.lower() in SUFFIXES:
        return [place]
    if place.suffix != ".txt":
        raise DetrkitError(f"{file}, field {split}: {place} is neither a folder nor a list (.txt) nor an image")
    return list(_listed(place, file, config, findings))


def _listed(list_file: Path, file: Path, config: dict[str, Any], findings: Findings) -> Iterator[Path]:
    """Yield the images that a list names."""
    first: dict[Path, int] = {}
    again: list[tuple[int, Path]] = []
    for number, line in enumerate(read_text(list_file).split("\n"), 1):
        name = line.strip()
        if not name:
            continue
        image = list_file.parent / name
        if not os.path.isfile(image):
            image = _resolve(file, config, name) or image
        if not os.path.isfile(image):
            reason = f"image {name[:200]!r} is not there (looked in {list_file.parent} and {file.parent})"
            findings.add("error", list_file, f"line {number}", reason)
            continue
        if image in first:
            again.append((number, image))
            continue
        first[image] = number
        yield image
    if again:
        number, image = again[0]
        reason = (
            f"{len(again)} lines name an image that a line before names, first {image.name} (line {first[image]}): "
            "each image is read once"
        )
        findings.add("warning", list_file, f"line {number}", reason)


class Labels:
    """Finder of label files; each folder of labels is listed once."""

    def __init__(self) -> None:
        self._listings: dict[str, frozenset[str]] = {}
        self._places: dict[Path, list[tuple[str, frozenset[str]]]] = {}

    def places(self, folder: Path) -> list[str]:
        """List the folders where the labels of images in `folder` may be, the likeliest first."""
        return [place for place, _ in self._of_folder(folder)]

    def _of_folder(self, folder: Path) -> list[tuple[str, frozenset[str]]]:
        """List the folders of `places`, each with the names of the files there."""
        if folder not in self._places:
            parts = folder.parts
            moved = [
                str(Path(*parts[:k], label, *parts[k + 1 :]))
                for k in reversed(range(len(parts)))
                if parts[k].lower() == "images"
                for label in (("labels",) if parts[k] == "images" else ("labels", "Labels", "LABELS"))
            ]
            self._places[folder] = [(place, self._names(place)) for place in [*moved, str(folder)]]
        return self._places[folder]

    def _names(self, place: str) -> frozenset[str]:
        """Return the names in a folder; none if there is no such folder."""
        if place not in self._listings:
            try:
                self._listings[place] = frozenset(os.listdir(place))
            except OSError:
                self._listings[place] = frozenset()
        return self._listings[place]

    def of(self, image: Path) -> Path | None:
        """Return the label file of an image, or None if it has none."""
        name = os.path.splitext(image.name)[0] + ".txt"
        return next((Path(place, name) for place, names in self._of_folder(image.parent) if name in names), None)

    def expected(self, image: Path) -> Path:
        """Return where the label file of an image is, or would be."""
        return self.of(image) or Path(self.places(image.parent)[0], image.stem + ".txt")


def where_labels_are(root: Path, images: Sequence[Path]) -> str:
    """Name, for a message, the folder below `root` with the most text files that are called as the images are."""
    stems = {image.stem for image in images}
    counts = Counter(f.parent for f in find_files(root, frozenset({".txt"})).files if f.stem in stems)
    if not counts:
        return f"no text file below {root} is called as an image is"
    folder = max(counts, key=lambda f: (counts[f], f.name == images[0].parent.name))
    return f"{counts[folder]} text files called as the images are in {folder}: name the folders images/ and labels/"
