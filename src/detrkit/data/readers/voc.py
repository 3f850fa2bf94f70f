"""Pascal VOC: JPEGImages/, Annotations/*.xml and ImageSets/Main/{split}.txt.

- Coordinates are taken as they stand, as x and y of the box's edges, without VOC's shift by one: so boxes written by
  today's tools, and the same dataset as COCO json, come out alike.
- Class order: `classes.txt` or `labels.txt` in the root, one name a line; else all names found in Annotations/, of
  whatever split, in alphabetical order. Category ids count from 1.
- An image's id is its position in the list of its split, from 1; annotations are numbered in the same order.
- Objects marked difficult are treated as crowd: neither object nor background, as VOC's own evaluation does.
- Without ImageSets/Main all images form the one split "all".
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from detrkit.classes import ClassList
from detrkit.data.images import SUFFIXES, image_size
from detrkit.data.readers.common import Findings, Objects, make_record, read_text
from detrkit.data.sample import Record
from detrkit.errors import DetrkitError

_CLASS_FILES = ("classes.txt", "labels.txt")
_NAME = re.compile(r"<object>.*?<name>\s*(.*?)\s*</name>", re.DOTALL)


def recognise(path: Path) -> bool:
    """Whether `path` is a folder with Annotations/*.xml."""
    return path.is_dir() and next((path / "Annotations").glob("*.xml"), None) is not None


def splits(path: Path) -> list[str]:
    """The lists in ImageSets/Main that name images only (VOC also has lists per class, "aeroplane_train")."""
    names = []
    for file in sorted((path / "ImageSets" / "Main").glob("*.txt")):
        first = read_text(file).strip().split("\n", 1)[0].strip()
        # "2008_000008 -1" is of a list per class, unless an image has that name ("scan 1").
        if not re.search(r"\s(-1|0|1)$", first) or (path / "Annotations" / f"{first}.xml").is_file():
            names.append(file.stem)
    return names or ["all"]


def read(
    path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None
) -> tuple[ClassList, list[Record], Findings]:
    """Reads one split; see `detrkit.data.readers.coco.read` for arguments and returns.

    Raises:
        DetrkitError: masks were asked for (VOC has none per object), or (strict findings) any error in the files.
    """
    if masks:
        raise DetrkitError(f"{path}: Pascal VOC has no masks of its objects; open it without masks")
    findings = findings if findings is not None else Findings()
    classes = read_classes(path)
    label_of = {name: label for label, name in enumerate(classes.names)}
    images = _images(path)
    records: list[Record] = []
    next_id = 1
    for position, stem in enumerate(_stems(path, split, findings), 1):
        xml = path / "Annotations" / f"{stem}.xml"
        root = _parse(xml, findings)
        file = images.get(Path(stem).name)
        if file is None:
            findings.add("error", xml, f"image {stem}", f"no such image in {_image_folder(path)}")
            continue
        if root is None:
            continue
        objects = _objects(root, xml, label_of, next_id, findings)
        next_id += len(root.findall("object"))
        size = _size(root, xml, file, findings)
        if size is not None:
            records.append(make_record(position, file, size, objects, xml, findings))
    return classes, records, findings


def read_classes(path: Path) -> ClassList:
    """The classes by the rule at the top of this file.

    Raises:
        DetrkitError: no class at all.
    """
    for name in _CLASS_FILES:
        if (path / name).is_file():
            names = [line.strip() for line in read_text(path / name).splitlines() if line.strip()]
            break
    else:
        found: set[str] = set()
        for xml in (path / "Annotations").glob("*.xml"):
            # A pattern instead of a parser: every xml of every split is looked at, and VOC 2012 has 17,000.
            found |= set(_NAME.findall(xml.read_text(encoding="utf-8-sig", errors="replace")))
        names = sorted(found)
    if not names:
        raise DetrkitError(f"{path}: no object in Annotations/ and no classes.txt: there is no class to learn")
    if len(set(names)) != len(names):
        raise DetrkitError(f"{path}: a class is listed twice in {' or '.join(_CLASS_FILES)}")
    return ClassList(tuple(names), tuple(range(1, len(names) + 1)))


def _image_folder(path: Path) -> Path:
    return next((path / n for n in ("JPEGImages", "images", "Images") if (path / n).is_dir()), path / "JPEGImages")


def _images(path: Path) -> dict[str, Path]:
    """Stem -> image file, from one listing of the folder."""
    folder = _image_folder(path)
    if not folder.is_dir():
        raise DetrkitError(f"{folder}: the image folder is missing")
    return {f.stem: f for f in sorted(folder.iterdir()) if f.suffix.lower() in SUFFIXES}


def _stems(path: Path, split: str, findings: Findings) -> list[str]:
    """The images of a split, as its list names them."""
    file = path / "ImageSets" / "Main" / f"{split}.txt"
    if split == "all" and not file.is_file():
        return sorted(f.stem for f in (path / "Annotations").glob("*.xml"))
    stems: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(read_text(file).splitlines(), 1):
        stem = line.strip()
        stem = stem[: -len(Path(stem).suffix)] if Path(stem).suffix.lower() in SUFFIXES else stem
        if not stem:
            continue
        if stem in seen:
            findings.add("error", file, f"line {number}", f"image {stem} is listed twice")
            continue
        seen.add(stem)
        stems.append(stem)
    return stems


def _parse(xml: Path, findings: Findings) -> ElementTree.Element | None:
    """The root of an xml file, or None after noting what is wrong with it."""
    try:
        return ElementTree.fromstring(xml.read_bytes())
    except FileNotFoundError:
        findings.add("error", xml, "", "annotation file is missing (for an image without objects, write one with none)")
    except ElementTree.ParseError as error:
        findings.add("error", xml, f"line {error.position[0]}", f"malformed XML ({error})")
    except OSError as error:
        findings.add("error", xml, "", f"cannot be read ({error.strerror})")
    return None


def _size(root: ElementTree.Element, xml: Path, file: Path, findings: Findings) -> tuple[int, int] | None:
    """(height, width) from the xml, or from the image's header where the xml has none (some tools write 0)."""
    try:
        height, width = (int(float(root.findtext(f"size/{key}") or 0)) for key in ("height", "width"))
    except (ValueError, OverflowError):
        height = width = 0
        findings.add("warning", xml, "size", "width or height is not a number: taken from the image file")
    if height > 0 and width > 0:
        return height, width
    try:
        return image_size(file)
    except DetrkitError as error:
        findings.add("error", xml, "size", f"no size, and {error}")
        return None


def _objects(
    root: ElementTree.Element, xml: Path, label_of: dict[str, int], first_id: int, findings: Findings
) -> Objects:
    """The objects of one xml; ids count all of them, so that they do not depend on which are valid."""
    objects = Objects()
    for k, element in enumerate(root.findall("object")):
        name = f"object {k + 1}"
        label = (element.findtext("name") or "").strip()
        if label not in label_of:
            findings.add("error", xml, name, f"class {label!r} is not in the list of classes")
            continue
        try:
            box = [float(element.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            findings.add("error", xml, name, "bndbox needs the numbers xmin, ymin, xmax, ymax (pixels)")
            continue
        objects.boxes.append(box)
        objects.annotated.append((box[0], box[1], box[2] - box[0], box[3] - box[1]))
        objects.labels.append(label_of[label])
        objects.crowd.append((element.findtext("difficult") or "0").strip() == "1")
        objects.annotation_ids.append(first_id + k)
        objects.names.append(name)
    return objects
