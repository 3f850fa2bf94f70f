"""YOLO: images/ and labels/*.txt with a data.yaml as Ultralytics writes it, or with a classes.txt.

- A label line is `class cx cy w h`, relative to the image (after EXIF orientation); with more numbers it is a polygon
  `class x1 y1 x2 y2 ...`, whose bounds are the box.
- The labels of `.../images/.../name.jpg` are `.../labels/.../name.txt` (the last "images" of the path), else
  `name.txt` beside the image. An image without label file is one without objects.
- Labels and category ids are the class numbers of the files. An image's id is its position in the sorted list of
  files, from 1; annotations are numbered in the same order.
- Image sizes come from the headers of the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from detrkit.classes import ClassList
from detrkit.data.images import SUFFIXES
from detrkit.data.readers.common import Findings, Objects, make_record, read_text, size_or_error
from detrkit.data.sample import Record
from detrkit.errors import DetrkitError

_YAML_SPLITS = ("train", "val", "valid", "test")
# Relative coordinates a little above 1 are boxes that leave the image; far above, they are pixels.
_PIXELS_ABOVE = 2.0


def recognise(path: Path) -> bool:
    """Whether `path` is a data.yaml, a folder with one, or a folder with images/, labels/ and classes.txt."""
    if path.is_file():
        return path.suffix in (".yaml", ".yml")
    if not path.is_dir():
        return False
    return _yaml_file(path) is not None or ((path / "images").is_dir() and _classes_file(path) is not None)


def _yaml_file(path: Path) -> Path | None:
    """The data.yaml of a dataset: that name, or else the only yaml of the folder."""
    if path.is_file():
        return path
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (path / name).is_file():
            return path / name
    others = [*path.glob("*.yaml"), *path.glob("*.yml")]
    return others[0] if len(others) == 1 and (path / "images").is_dir() else None


def _classes_file(path: Path) -> Path | None:
    names = ("classes.txt", "labels.txt", "labels/classes.txt", "obj.names")
    return next((path / n for n in names if (path / n).is_file()), None)


def _config(file: Path) -> dict[str, Any]:
    """The content of a data.yaml.

    Raises:
        DetrkitError: malformed, or without names.
    """
    try:
        value = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise DetrkitError(f"{file}{line}: malformed YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(value, dict) or not isinstance(value.get("names"), list | dict) or not value["names"]:
        raise DetrkitError(f"{file}: field names must list the classes")
    return value


def splits(path: Path) -> list[str]:
    """The splits named in the yaml; without one, the folders in images/, or "all"."""
    file = _yaml_file(path)
    if file is not None:
        config = _config(file)
        usual = [s for s in _YAML_SPLITS if config.get(s)]
        return usual + [k for k in config if _is_further_split(file, config, k)] or ["all"]
    return sorted(d.name for d in (path / "images").iterdir() if d.is_dir()) or ["all"]


def _is_further_split(file: Path, config: dict[str, Any], key: str) -> bool:
    """Whether an entry of the yaml beyond the usual ones names images ("trainval: images/trainval")."""
    if key in (*_YAML_SPLITS, "path", "names") or not isinstance(config[key], str):
        return False
    try:
        found = _resolve(file, config, config[key], key)
    except DetrkitError:
        return False
    return found.is_dir() or found.suffix == ".txt"


def read_classes(path: Path) -> ClassList:
    """The classes; ids are the class numbers of the label files.

    Raises:
        DetrkitError: names that are not a list or a mapping of numbers 0, 1, ...
    """
    file = _yaml_file(path)
    if file is None:
        text = read_text(_classes_file(path) or path / "classes.txt")
        names: Any = [line.strip() for line in text.splitlines() if line.strip()]
        file = path
    else:
        names = _config(file)["names"]
    if isinstance(names, dict):
        try:
            numbered = {int(k): str(v) for k, v in names.items()}
        except (TypeError, ValueError) as error:
            raise DetrkitError(f"{file}: field names must map class numbers to names") from error
        return ClassList.contiguous(numbered)
    return ClassList(tuple(str(n) for n in names), tuple(range(len(names))))


def images_of(path: Path, split: str) -> list[Path]:
    """The sorted image files of a split.

    Raises:
        DetrkitError: none found.
    """
    file = _yaml_file(path)
    found: set[Path] = set()
    if file is None:
        found |= set(_listing(path / "images" if split == "all" else path / "images" / split))
        where = str(path / "images")
    else:
        config = _config(file)
        entries = config.get(split) or "images"
        for entry in entries if isinstance(entries, list) else [entries]:
            found |= set(_listing(_resolve(file, config, str(entry), split)))
        where = f"{file}, field {split}: {entries}"
    if not found:
        raise DetrkitError(f"{where}: no image found")
    return sorted(found)


def _resolve(file: Path, config: dict[str, Any], entry: str, split: str) -> Path:
    """The folder or list that an entry of the yaml means.

    The paths in data.yaml files are often those of the machine that wrote them; so are tried in turn the yaml's own
    `path`, the folder of the yaml, and that with leading "../" removed (Roboflow writes one too many).
    """
    here = file.parent
    base = Path(str(config.get("path") or ""))
    trimmed = entry
    while trimmed.startswith("../"):
        trimmed = trimmed[3:]
    tried = [base / entry, here / base / entry, here / entry, here / trimmed, here / base.name / entry]
    tried = [p for p in tried if p.is_absolute()]
    for candidate in tried:
        if candidate.exists():
            return candidate
    raise DetrkitError(f"{file}, field {split}: {entry} does not exist (looked for {tried[0]}); correct the yaml")


def _listing(place: Path) -> Iterator[Path]:
    """The images in a folder and its subfolders, or named in a txt file (relative to that file)."""
    if place.is_dir():
        yield from (f for f in place.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    elif place.suffix == ".txt":
        for line in read_text(place).splitlines():
            if line.strip():
                yield place.parent / line.strip()
    elif place.suffix.lower() in SUFFIXES:
        yield place


def label_file(image: Path) -> Path:
    """Where the labels of an image are: the last folder called images becomes labels, else beside it."""
    parts = list(image.parts)
    for k in range(len(parts) - 2, -1, -1):
        if parts[k] == "images":
            moved = Path(*parts[:k], "labels", *parts[k + 1 :]).with_suffix(".txt")
            beside = image.with_suffix(".txt")
            return beside if not moved.is_file() and beside.is_file() else moved
    return image.with_suffix(".txt")


def read(
    path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None
) -> tuple[ClassList, list[Record], Findings]:
    """Reads one split; see `detrkit.data.readers.coco.read` for arguments and returns.

    Raises:
        DetrkitError: malformed yaml, no images, or (strict findings) any error in the label files.
    """
    findings = findings if findings is not None else Findings()
    path = path.absolute()
    classes = read_classes(path)
    label_of = classes.label_of
    files = images_of(path, split)
    with ThreadPoolExecutor(8) as pool:  # headers of thousands of files, often on a network disk
        sizes = list(pool.map(size_or_error, files))
    records: list[Record] = []
    next_id = 1
    for position, (file, size) in enumerate(zip(files, sizes, strict=True), 1):
        if isinstance(size, DetrkitError):
            findings.add("error", file, "", str(size).removeprefix(f"{file}: "))
            continue
        label = label_file(file)
        objects = _objects(label, size, label_of, next_id, masks, findings) if label.is_file() else Objects()
        next_id += len(objects.boxes)
        records.append(make_record(position, file, size, objects, label, findings))
    return classes, records, findings


def _objects(
    file: Path, size: tuple[int, int], label_of: dict[int, int], first_id: int, masks: bool | None, findings: Findings
) -> Objects:
    """The objects of one label file."""
    height, width = size
    objects = Objects()
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        name = f"line {number}"
        try:
            values = [float(v) for v in line.split()]
        except ValueError:
            findings.add("error", file, name, f"not numbers: {line.strip()[:60]!r}")
            continue
        polygon = len(values) >= 7 and len(values) % 2 == 1
        if len(values) != 5 and not polygon:
            findings.add(
                "error", file, name, f"{len(values)} numbers; expected class cx cy w h, or class and a polygon"
            )
            continue
        if values[0] not in label_of:
            findings.add("error", file, name, f"class {values[0]:g} is not one of the {len(label_of)} classes")
            continue
        if max(map(abs, values[1:])) > _PIXELS_ABOVE and all(map(math.isfinite, values)):
            findings.add("error", file, name, f"{line.strip()[:60]!r} looks like pixels; expected values in [0, 1]")
            continue
        if masks and not polygon:
            findings.add("error", file, name, "is a box, not a polygon: open the dataset without masks")
            continue
        if polygon:
            xs, ys = [v * width for v in values[1::2]], [v * height for v in values[2::2]]
            objects.boxes.append((min(xs), min(ys), max(xs), max(ys)))
        else:
            cx, cy, w, h = values[1:]
            objects.boxes.append(
                ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
            )
        if masks is not False:
            objects.segmentations.append([[v for xy in zip(xs, ys, strict=True) for v in xy]] if polygon else None)
        objects.labels.append(label_of[int(values[0])])
        objects.annotation_ids.append(first_id + len(objects.annotation_ids))
        objects.names.append(name)
    return objects
