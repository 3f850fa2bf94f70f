"""Writers of splits in the layouts of `convert`; each returns what the layout's reader must find."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from detrkit.data.dataset import Dataset
from detrkit.data.images import read_header
from detrkit.data.sample import Record
from detrkit.data.tools.csv_target import finish_csv, refuse_csv, write_csv
from detrkit.data.tools.parquet_target import write_parquet
from detrkit.data.tools.placing import UNWRITABLE, ImagePlacer
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import below

# Keys of data.yaml that are no splits.
_YAML_FIELDS = frozenset({"path", "names", "nc", "download", "kpt_shape", "flip_idx", "channels", "yaml_file"})


@dataclass(frozen=True)
class WrittenImage:
    """Written image as the reader of the layout must find it.

    Attributes:
        name: of the file.
        height, width: pixels.
        boxes: (N, 4) float64 xyxy pixels, clamped to the image.
        labels: (N,) int64.
        crowd: (N,) bool.
        turned: whether the boxes were turned with the image.
    """

    name: str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    turned: bool = False


@dataclass(frozen=True)
class Target:
    """Layout to write.

    Attributes:
        write: writes a split below a folder.
        finish: writes what belongs to all splits: folder, splits, classes.
        refuse: raises DetrkitError for splits, or their classes, that the layout cannot hold; the last argument is
            the source, for the message.
        split: the split's name in the layout.
        listed: whether its reader finds images by listing folders.
        own_classes: whether every split can have classes of its own.
        empty_splits: whether its reader opens a split without images; else they are left out.
        clamps: whether boxes are written as they are clamped to the image, instead of as annotated.
        tolerance: how far boxes may be from what they were, relative to the sides of the image.
    """

    write: Callable[[Path, str, Dataset, ImagePlacer], list[WrittenImage]]
    finish: Callable[[Path, Sequence[str], ClassList], None]
    refuse: Callable[[Sequence[str], Sequence[ClassList], str], None]
    split: Callable[[str], str] = str
    listed: bool = True
    own_classes: bool = False
    empty_splits: bool = True
    clamps: bool = True
    tolerance: float = 1e-12


def _write_coco(root: Path, split: str, dataset: Dataset, placer: ImagePlacer) -> list[WrittenImage]:
    """Write ids, boxes and areas as annotated, crowd, segmentations."""
    folder = below(root, split, where="name of a split")
    folder.mkdir(exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    value = dataset.ground_truth()
    written = []
    for image, record in zip(value["images"], dataset.records, strict=True):
        image["file_name"] = placer.place(record, folder)
        written.append(_as_it_is(image["file_name"], record))
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    file = below(root / "annotations", f"instances_{split}.json", where="name of a split")
    file.write_text(text, encoding="utf-8")
    return written


def _as_it_is(name: str, record: Record) -> WrittenImage:
    """Describe a written image with all objects of its record, unchanged."""
    return WrittenImage(name, record.height, record.width, record.boxes, record.labels, record.crowd)


def _refuse_coco(splits: Sequence[str], classes: Sequence[ClassList], source: str) -> None:
    if "annotations" in splits:
        raise DetrkitError(f"{source}: a split cannot be called annotations in COCO; rename it")


def _write_voc(root: Path, split: str, dataset: Dataset, placer: ImagePlacer) -> list[WrittenImage]:
    """Write crowd as difficult, and an image that another split has with the same objects only once."""
    (root / "Annotations").mkdir(exist_ok=True)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    written = []
    for record in dataset.records:
        content = (record.height, record.width, *(a.tobytes() for a in (record.boxes, record.labels, record.crowd)))
        name = placer.place(record, root / "JPEGImages", split=split, content=content)
        written.append(_as_it_is(name, record))
        tree = _voc_xml(name, record, dataset.classes)
        ElementTree.indent(tree)
        file = root / "Annotations" / f"{Path(name).stem}.xml"
        ElementTree.ElementTree(tree).write(file, encoding="utf-8")
    text = "".join(f"{Path(image.name).stem}\n" for image in written)
    below(lists, f"{split}.txt", where="name of a split").write_text(text, encoding="utf-8")
    return written


def _voc_xml(name: str, record: Record, classes: ClassList) -> ElementTree.Element:
    """Make the annotation element of an image."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = "JPEGImages"
    ElementTree.SubElement(root, "filename").text = name
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", record.width), ("height", record.height), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for box, label, crowd in zip(record.boxes.tolist(), record.labels.tolist(), record.crowd.tolist(), strict=True):
        element = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(element, "name").text = classes.names[label]
        ElementTree.SubElement(element, "difficult").text = str(int(crowd))
        corners = ElementTree.SubElement(element, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(corners, key).text = str(int(value)) if value == int(value) else repr(value)
    return root


def _finish_voc(root: Path, splits: Sequence[str], classes: ClassList) -> None:
    (root / "classes.txt").write_text("".join(f"{n}\n" for n in classes.names), encoding="utf-8")


def _refuse_voc(splits: Sequence[str], classes: Sequence[ClassList], source: str) -> None:
    _refuse_blanks(classes, source)
    for some in classes:
        for category, name in zip(some.ids, some.names, strict=True):
            if UNWRITABLE.search(name):
                raise DetrkitError(
                    f"{source}: the name {name[:80]!r} of category {category} holds a line break or a character that "
                    "XML does not allow; rename the class"
                )


def _refuse_blanks(classes: Sequence[ClassList], source: str) -> None:
    """Check that no name has blanks around it: readers of lists strip them.

    Raises:
        DetrkitError: a name that has.
    """
    for some in classes:
        for category, name in zip(some.ids, some.names, strict=True):
            if name != name.strip():
                raise DetrkitError(
                    f"{source}: the name {name[:80]!r} of category {category} begins or ends with a blank, which only "
                    "COCO and parquet can hold; rename the class"
                )


def _write_yolo(root: Path, split: str, dataset: Dataset, placer: ImagePlacer) -> list[WrittenImage]:
    """Write all but crowd, which YOLO would take for objects; boxes are those on the upright image."""
    images = below(root / "images", split, where="name of a split")
    labels = below(root / "labels", split, where="name of a split")
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    written = []
    for record in dataset.records:
        name = placer.place(record, images)
        image = _upright(name, images / name, record)
        written.append(image)
        x0, y0, x1, y1 = (image.boxes / np.array([image.width, image.height] * 2)).T
        rows = zip(image.labels.tolist(), (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, strict=True)
        text = "".join(f"{label} {cx:.10g} {cy:.10g} {w:.10g} {h:.10g}\n" for label, cx, cy, w, h in rows)
        (labels / f"{Path(name).stem}.txt").write_text(text, encoding="utf-8")
    return written


def _upright(name: str, file: Path, record: Record) -> WrittenImage:
    """Return the objects of a record but crowd, on the upright image: YOLO knows no other size.

    Raises:
        DetrkitError: the image has neither the size that its annotations say, nor that before EXIF turns it.
    """
    keep = ~record.crowd
    boxes, labels, crowd = record.boxes[keep], record.labels[keep], record.crowd[keep]
    size = record.height, record.width
    stored, upright, orientation = read_header(file)
    turned = upright != size
    if turned:
        if stored != size:
            raise DetrkitError(
                f"{record.file}: the image is {upright[1]}x{upright[0]} pixels but its annotations say "
                f"{size[1]}x{size[0]} (width x height), and coordinates of YOLO are relative to the size of the image; "
                "see `detrkit data check`"
            )
        boxes = upright_boxes(boxes, size, orientation)
    return WrittenImage(name, *upright, boxes, labels, crowd, turned)


def upright_boxes(boxes: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Convert boxes on a stored image to boxes on the upright one.

    Args:
        boxes: (N, 4) xyxy pixels.
        size: (height, width) of the stored image.
        orientation: of EXIF, 1 to 8.

    Returns:
        (N, 4) xyxy pixels of the image after its pixels are turned upright.
    """
    height, width = size
    x0, y0, x1, y1 = boxes.T
    mirrored_x, mirrored_y = (width - x1, width - x0), (height - y1, height - y0)
    (left, right), (top, bottom) = {
        1: ((x0, x1), (y0, y1)),
        2: (mirrored_x, (y0, y1)),
        3: (mirrored_x, mirrored_y),
        4: ((x0, x1), mirrored_y),
        5: ((y0, y1), (x0, x1)),
        6: (mirrored_y, (x0, x1)),
        7: (mirrored_y, mirrored_x),
        8: ((y0, y1), mirrored_x),
    }[orientation]
    return np.stack([left, top, right, bottom], 1)


def _yolo_key(split: str) -> str:
    """Return the key of a split in data.yaml: Ultralytics knows train, val and test."""
    plain = re.sub(r"[-_]?\d{4}$", "", split)
    return {"valid": "val", "validation": "val", "training": "train", "testing": "test"}.get(plain, plain) or split


def _finish_yolo(root: Path, splits: Sequence[str], classes: ClassList) -> None:
    entries = {_yolo_key(n): f"images/{n}" for n in splits}
    value = {**entries, "names": dict(enumerate(classes.names))}
    (root / "data.yaml").write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _refuse_yolo(splits: Sequence[str], classes: Sequence[ClassList], source: str) -> None:
    keys = {_yolo_key(n) for n in splits}
    if len(keys) < len(splits):
        raise DetrkitError(f"{source}: splits {', '.join(splits)} are the same to YOLO; convert them one by one")
    taken = sorted(keys & _YAML_FIELDS | {"images", "labels"} & set(splits))
    if taken:
        raise DetrkitError(f"{source}: a split cannot be called {taken[0]} in YOLO; rename it")
    _refuse_blanks(classes, source)


def _write_parquet(root: Path, split: str, dataset: Dataset, placer: ImagePlacer) -> list[WrittenImage]:
    """Write ids, boxes and areas as annotated, crowd; no segmentations."""
    names = write_parquet(root, split, dataset, placer)
    return [_as_it_is(name, record) for name, record in zip(names, dataset.records, strict=True)]


def _write_csv(root: Path, split: str, dataset: Dataset, placer: ImagePlacer) -> list[WrittenImage]:
    """Write crowd, and areas as annotated."""
    names = write_csv(root, split, dataset, placer)
    return [_as_it_is(name, record) for name, record in zip(names, dataset.records, strict=True)]


def _refuse_csv(splits: Sequence[str], classes: Sequence[ClassList], source: str) -> None:
    _refuse_blanks(classes, source)
    refuse_csv(splits, classes, source)


def _nothing(*_: object) -> None:
    """Do nothing: the layout has no file for all splits, or refuses nothing."""


TARGETS = {
    "coco": Target(_write_coco, _nothing, _refuse_coco, listed=False, own_classes=True, clamps=False),
    "voc": Target(_write_voc, _finish_voc, _refuse_voc),
    "yolo": Target(_write_yolo, _finish_yolo, _refuse_yolo, split=_yolo_key, empty_splits=False, tolerance=1e-6),
    "parquet": Target(_write_parquet, _nothing, _nothing, listed=False, own_classes=True, clamps=False),
    "csv": Target(_write_csv, finish_csv, _refuse_csv),
}
