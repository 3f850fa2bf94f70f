"""Pascal VOC: JPEGImages/, Annotations/*.xml and ImageSets/Main/{split}.txt.

- Coordinates are taken as they stand, as x and y of the box's edges, without VOC's shift by one: so boxes written by
  today's tools, and the same dataset as COCO json, come out alike.
- Class order: `classes.txt` or `labels.txt` in the root, one name a line; else all names found in Annotations/, of
  whatever split, in alphabetical order. Category ids count from 1.
- An image's id is its position in the list of its split, from 1; annotations are numbered in the same order.
- Objects marked difficult are treated as crowd: neither object nor background, as VOC's own evaluation does.
- Without ImageSets/Main all images form the one split "all".
- Files may be in any encoding that their XML declaration names. Hidden files are ignored.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from detrkit.data.images import SUFFIXES, image_size
from detrkit.data.readers.base import Reader, Reading, register_reader
from detrkit.data.readers.class_names import check_class_names, read_class_file
from detrkit.data.readers.common import Findings, Objects, make_record
from detrkit.data.sample import Record
from detrkit.structures.classes import ClassList
from detrkit.utils.documents import parse_xml, read_bytes, read_text
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import first_names
from detrkit.utils.names import checked_name, not_hidden, relative_path

_CLASS_FILES = ("classes.txt", "labels.txt")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_MAX_SIDE = 1 << 31  # pixels; a larger number is a mistake


class _Object(NamedTuple):
    """Object as an xml describes it.

    Attributes:
        name: of its class; empty if it has none.
        corners: the texts of xmin, ymin, xmax and ymax in its first bndbox; empty where there is none.
        boxes: the number of its boxes.
        difficult: whether it is marked so.
    """

    name: str
    corners: tuple[str, ...]
    boxes: int
    difficult: bool


class _Annotation(NamedTuple):
    """Needed parts of an xml: the texts of (height, width), and the objects."""

    size: tuple[str, str]
    objects: list[_Object]


@register_reader
class VocReader(Reader):
    """Reader of Pascal VOC."""

    name = "voc"
    expects = "Pascal VOC (Annotations/*.xml and JPEGImages/)"
    no_objects_cause = "the xml files have no <object>"
    divided_by = "lists of image names, ImageSets/Main/train.txt and val.txt"

    def recognize(self, path: Path) -> bool:
        """Tell whether `path` is a folder with Annotations/*.xml."""
        return path.is_dir() and any(True for _ in _files(path / "Annotations", ".xml"))

    def splits(self, path: Path) -> list[str]:
        """Return the lists in ImageSets/Main that name images only (VOC also has lists per class, "aeroplane_train").

        Raises:
            DetrkitError: a list whose name cannot be used.
        """
        names = []
        for name, file in sorted(_files(path / "ImageSets" / "Main", ".txt")):
            try:
                first = read_text(Path(file)).strip().split("\n", 1)[0].strip()
            except DetrkitError:
                first = ""  # reported when the split is read
            # "2008_000008 -1" is of a list per class, unless an image has that name ("scan 1").
            if not first.endswith((" -1", " 0", " 1", "\t-1", "\t0", "\t1")) or _is_file(path, first):
                names.append(checked_name(name.removesuffix(".txt"), f"{path / 'ImageSets' / 'Main'}: name of a list"))
        return names or ["all"]

    def read(self, path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None) -> Reading:
        """Read one split, as `Reader.read`.

        Raises:
            DetrkitError: masks were requested (VOC has none per object), there is no class, or (strict findings) any
                error in the files.
        """
        if masks:
            raise DetrkitError(f"{path}: Pascal VOC has no masks of its objects; open it without masks")
        findings = findings if findings is not None else Findings()
        folder = path / "Annotations"
        images = _images(path, findings)
        stems = _stems(path, split, findings)
        classes, annotations = _read_annotations(path, [stem for _, stem in stems], findings)
        label_of = {name: label for label, name in enumerate(classes.names)}
        records: list[Record] = []
        next_id = 1
        for position, stem in stems:
            xml = folder / f"{stem}.xml"
            annotation = annotations.get(stem)
            file = images.get(stem.rpartition("/")[2])
            if file is None:
                findings.add("error", xml, f"image {stem}", f"no such image in {_image_folder(path)}")
                continue
            if annotation is None:  # reported already
                continue
            objects = _objects(annotation.objects, xml, label_of, next_id, findings)
            next_id += len(annotation.objects)
            size = _size(annotation.size, xml, file, findings)
            if size is not None:
                records.append(make_record(position, file, size, objects, xml, findings))
        return Reading(classes, records, findings)

    def find_unused(self, path: Path, images: Sequence[Path], findings: Findings) -> None:
        """Note annotation files that are in no split."""
        stems = {file.stem for file in images}
        extra = sorted(xml.name for xml in not_hidden(path / "Annotations", "*.xml") if xml.stem not in stems)
        if extra:
            reason = f"{len(extra)} annotation files are in no split: {first_names(extra)}"
            findings.add("info", path / "Annotations", "", reason)


def _files(folder: Path, *suffixes: str) -> Iterator[tuple[str, str]]:
    """Yield name and path of the files in a folder with one of the suffixes, but for hidden ones (._name on macOS).

    Paths are texts: making 17,000 Path objects takes longer than listing them.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(suffixes) and not entry.name.startswith(".") and entry.is_file():
                    yield entry.name, entry.path
    except OSError:  # there is no folder, or it cannot be read
        return


def _is_file(path: Path, stem: str) -> bool:
    """Tell whether an image of this name is annotated."""
    try:
        return (path / "Annotations" / f"{stem}.xml").is_file()
    except OSError:  # too long for a name
        return False


def _image_folder(path: Path) -> Path:
    return next((path / n for n in ("JPEGImages", "images", "Images") if (path / n).is_dir()), path / "JPEGImages")


def _images(path: Path, findings: Findings) -> dict[str, Path]:
    """Map each stem to its image file, from one listing of the folder."""
    folder = _image_folder(path)
    if not folder.is_dir():
        raise DetrkitError(f"{folder}: the image folder is missing")
    images: dict[str, Path] = {}
    for name, file in sorted(_files(folder, "")):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in SUFFIXES:
            continue
        if stem in images:
            findings.add("warning", folder, name, f"{images[stem].name} has the same name: only {name} is used")
        images[stem] = Path(file)
    return images


def _stems(path: Path, split: str, findings: Findings) -> list[tuple[int, str]]:
    """Return the images of a split with their positions, as its list names them."""
    file = path / "ImageSets" / "Main" / f"{checked_name(split, f'{path}: split')}.txt"
    if split == "all" and not file.is_file():
        names = sorted(name.removesuffix(".xml") for name, _ in _files(path / "Annotations", ".xml"))
        return list(enumerate(names, 1))
    stems: dict[str, None] = {}
    for number, line in enumerate(read_text(file).split("\n"), 1):
        stem = line.strip()
        if not stem:
            continue
        try:
            stem = str(relative_path(stem, f"{file}: line {number}"))
        except DetrkitError as error:
            findings.add("error", file, f"line {number}", str(error).removeprefix(f"{file}: line {number}: "))
            continue
        bare, suffix = os.path.splitext(stem)
        stem = bare if suffix.lower() in SUFFIXES else stem
        if stem in stems:
            findings.add("error", file, f"line {number}", f"image {stem} is listed twice")
            continue
        stems[stem] = None
    return list(enumerate(stems, 1))


def _read_annotations(
    path: Path, stems: list[str], findings: Findings
) -> tuple[ClassList, dict[str, _Annotation | None]]:
    """Read the classes by the rule at the top of this file, and the annotations by stem; read every file once.

    Raises:
        DetrkitError: no class at all, or (strict findings) a file that cannot be read.
    """
    folder = path / "Annotations"
    class_file = next((path / n for n in _CLASS_FILES if (path / n).is_file()), None)
    names = read_class_file(class_file, findings, numbered=False) if class_file is not None else []
    annotations: dict[str, _Annotation | None] = dict.fromkeys(stems)
    listed = {name.removesuffix(".xml") for name, _ in _files(folder, ".xml")}
    object_names: set[str] = set()
    others = sorted(listed - annotations.keys()) if class_file is None else []
    for stem in [*annotations, *others]:
        root = _parse(folder / f"{stem}.xml", stem in listed, findings)
        if root is None:
            continue
        if stem in annotations:
            annotation = annotations[stem] = _annotation(root)
            object_names.update(each.name for each in annotation.objects)
        else:  # of another split: its class names count, too
            object_names.update((name.text or "").strip() for name in root.iterfind("object/name"))
    if class_file is None:
        names = sorted(object_names - {""})  # objects without a name are reported one by one
        check_class_names((("name of an object", name) for name in names), folder, findings)
        if not names:
            raise DetrkitError(f"{path}: no object in Annotations/ and no classes.txt: there is no class to learn")
    return ClassList(tuple(names), tuple(range(1, len(names) + 1)), unused=frozenset()), annotations


def _parse(xml: Path, listed: bool, findings: Findings) -> ElementTree.Element | None:
    """Return the root of an xml file, or None after noting what is wrong with it; `listed`: whether it is there."""
    if not listed and not os.path.lexists(xml):
        reason = "annotation file is missing (for an image without objects, write one with none)"
        findings.add("error", xml, "", reason)
        return None
    try:
        return parse_xml(read_bytes(xml), str(xml))
    except DetrkitError as error:
        line, colon, reason = str(error).removeprefix(f"{xml}: ").partition(": malformed")
        findings.add("error", xml, line if colon else "", f"malformed{reason}" if colon else line)
    return None


def _annotation(root: ElementTree.Element) -> _Annotation:
    """Collect the needed parts of an xml, in one pass over its elements."""
    size = ("", "")
    objects = []
    for element in root:
        if element.tag == "object":
            objects.append(_object(element))
        elif element.tag == "size":
            size = element.findtext("height") or "", element.findtext("width") or ""
    return _Annotation(size, objects)


def _object(element: ElementTree.Element) -> _Object:
    """Read one object."""
    name: str | None = None
    difficult, boxes = "0", 0
    corners: tuple[str, ...] = ()
    for child in element:
        if child.tag == "name" and name is None:
            name = (child.text or "").strip()
        elif child.tag == "difficult":
            difficult = (child.text or "").strip()
        elif child.tag == "bndbox":
            if not boxes:
                texts = {corner.tag: corner.text or "" for corner in reversed(child)}  # the first of each counts
                corners = tuple(texts.get(key, "") for key in _CORNERS)
            boxes += 1
    return _Object(name or "", corners, boxes, difficult == "1")


def _size(texts: tuple[str, str], xml: Path, file: Path, findings: Findings) -> tuple[int, int] | None:
    """Return (height, width) from the xml, or from the image's header where the xml has none (some tools write 0)."""
    try:
        height, width = (int(float(text or 0)) for text in texts)
    except (ValueError, OverflowError):
        height = width = 0
        findings.add("warning", xml, "size", "width or height is not a number: taken from the image file")
    if 0 < height < _MAX_SIDE and 0 < width < _MAX_SIDE:
        return height, width
    try:
        return image_size(file)
    except DetrkitError as error:
        findings.add("error", xml, "size", f"no size, and {error}")
        return None


def _objects(listed: list[_Object], xml: Path, label_of: dict[str, int], first_id: int, findings: Findings) -> Objects:
    """Collect the objects of one xml; ids count all of them, so that they do not depend on which are valid."""
    objects = Objects()
    for k, one in enumerate(listed):
        name = f"object {k + 1}"
        if not one.name:
            findings.add("error", xml, name, "has no name of a class")
            continue
        if one.name not in label_of:
            findings.add("error", xml, name, f"class {one.name[:80]!r} is not in the list of classes")
            continue
        try:
            box = [float(text) for text in one.corners]
        except ValueError:
            box = []
        if not box:
            findings.add("error", xml, name, "bndbox needs the numbers xmin, ymin, xmax, ymax (pixels)")
            continue
        if one.boxes > 1:
            findings.add("warning", xml, name, f"has {one.boxes} bndbox: only the first is read")
        objects.boxes.append(box)
        objects.annotated.append((box[0], box[1], box[2] - box[0], box[3] - box[1]))
        objects.labels.append(label_of[one.name])
        objects.crowd.append(one.difficult)
        objects.annotation_ids.append(first_id + k)
        objects.names.append(name)
    return objects
