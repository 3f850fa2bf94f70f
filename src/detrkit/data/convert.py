"""`convert`: a dataset of one layout written as another.

What the layouts cannot hold is said in the result or here: VOC and YOLO keep neither image ids nor category ids (the
order of the classes stays) nor segment areas nor masks; YOLO has no crowd regions. The segments of a panoptic dataset
become objects with masks (RLE) in COCO, what is a thing is not kept. Boxes keep every digit in COCO and
VOC and ten digits, relative to the image, in YOLO.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from detrkit.classes import ClassList
from detrkit.data.dataset import Dataset
from detrkit.data.images import image_size, image_suffix
from detrkit.data.readers import READERS, find_layout, match_split
from detrkit.data.sample import Record
from detrkit.data.sources import ImageSource, ParquetImage
from detrkit.errors import DetrkitError
from detrkit.utils.folders import check_replaceable, new_directory
from detrkit.utils.names import full_path

Layout = Literal["coco", "voc", "yolo"]
Transfer = Literal["copy", "hardlink", "symlink"]


@dataclass(frozen=True)
class ConvertedSplit:
    """What was written of a split: images, objects (crowd included) and what was left out."""

    name: str
    images: int
    objects: int
    dropped: int
    lost_crowd: int


@dataclass
class _Placer:
    """Brings image files into the new dataset, each once, under a name that is free."""

    how: Transfer
    names: dict[tuple[Path, ImageSource], str] = field(default_factory=dict)
    stems: set[tuple[Path, str]] = field(default_factory=set)

    def place(self, file: ImageSource, folder: Path) -> str:
        """The name of `file` in `folder`; an image of the same stem from elsewhere makes it end in _2, _3, ...

        Raises:
            DetrkitError: the image is missing or cannot be copied or linked.
        """
        key = (folder, file)
        if key in self.names:
            return self.names[key]
        stem, number = file.stem, 1
        while (folder, stem) in self.stems:
            number += 1
            stem = f"{file.stem}_{number}"
        self.stems.add((folder, stem))
        self.names[key] = stem + (file.suffix or image_suffix(file))
        folder.mkdir(parents=True, exist_ok=True)
        try:
            target = folder / self.names[key]
            if isinstance(file, ParquetImage):
                if self.how != "copy":
                    raise DetrkitError(f"{file}: a row of a parquet file cannot be linked: use --images copy")
                target.write_bytes(file.read())
            elif not file.is_file():
                raise DetrkitError(f"{file}: image file is missing")
            elif self.how == "copy":
                shutil.copyfile(file, target)
            elif self.how == "hardlink":
                os.link(file.resolve(), target)
            else:
                target.symlink_to(file.resolve())
        except OSError as error:
            raise DetrkitError(
                f"{file}: cannot {self.how} the image ({error.strerror}); try another --images"
            ) from error
        return self.names[key]


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: Layout,
    split: str | None = None,
    images: Transfer = "copy",
    force: bool = False,
    layout: str | None = None,
    things_only: bool = False,
) -> list[ConvertedSplit]:
    """Writes `source` at `destination` in the layout `to`, which appears only when it is complete.

    COCO: annotations/instances_{split}.json and {split}/; VOC: JPEGImages, Annotations, ImageSets/Main/{split}.txt and
    classes.txt; YOLO: images/{split}, labels/{split} and data.yaml. Boxes without area are left out and counted.

    Args:
        source: a dataset of any known layout.
        destination: the folder to make.
        to: its layout.
        split: the one to convert; by default all.
        images: "copy" the image files, or "hardlink" (same disk) or "symlink" them.
        force: replace a dataset that detrkit wrote at `destination` and nobody has changed.
        layout: of the source; by default the one that its files have, instances before panoptic.
        things_only: leave out stuff, which a panoptic source has besides things.

    Returns:
        What was written, split by split.

    Raises:
        DetrkitError: `source` has an error, `destination` exists, or the splits have different classes (which only
            COCO can hold).
    """
    source, destination = full_path(source), full_path(destination)
    if to not in _WRITERS:
        raise DetrkitError(f"layout {to!r} is not known; choose {', '.join(_WRITERS)}")
    if images not in ("copy", "hardlink", "symlink"):
        raise DetrkitError(f"images={images!r}: choose copy, hardlink or symlink")
    if source.resolve().is_relative_to(destination.resolve()):
        raise DetrkitError(f"{destination} would replace the source {source}; choose another output folder")
    check_replaceable(destination, force=force)
    source_layout = find_layout(source, layout)
    reader = READERS[source_layout]
    names = reader.splits(source)
    chosen = names if split is None else [match_split(split, names, source)]
    done: list[ConvertedSplit] = []
    with new_directory(destination, force=force) as root:
        placer = _Placer(images)
        first: ClassList | None = None
        for name in chosen:
            classes, records, findings = reader.read(source, name, masks=None)
            dataset = Dataset(records, classes, layout=source_layout, with_masks=source_layout == "coco-panoptic")
            if things_only:
                dataset = dataset.things()
                classes, records = dataset.classes, dataset.records
            first = first or classes
            if to != "coco" and classes != first:
                raise DetrkitError(
                    f"{source}: split {name} has other classes than {chosen[0]}; convert them one by one"
                )
            lost = _WRITERS[to](root, name, dataset, placer)
            objects = sum(len(r.labels) for r in records)
            done.append(ConvertedSplit(name, len(records), objects - lost, findings.dropped, lost))
        if first is not None and to == "voc":
            (root / "classes.txt").write_text("".join(f"{n}\n" for n in first.names), encoding="utf-8")
        if first is not None and to == "yolo":
            entries = {_yolo_key(n): f"images/{n}" for n in chosen}
            if len(entries) < len(chosen):
                raise DetrkitError(
                    f"{source}: splits {', '.join(chosen)} are the same to YOLO; convert them one by one"
                )
            text = yaml.safe_dump(
                {**entries, "names": dict(enumerate(first.names))}, sort_keys=False, allow_unicode=True
            )
            (root / "data.yaml").write_text(text, encoding="utf-8")
    return done


def _yolo_key(split: str) -> str:
    """The key of a split in data.yaml: Ultralytics knows train, val and test."""
    plain = re.sub(r"[-_]?\d{4}$", "", split)
    return {"valid": "val", "validation": "val", "training": "train", "testing": "test"}.get(plain, plain)


def _write_coco(root: Path, split: str, dataset: Dataset, placer: _Placer) -> int:
    """Everything is kept."""
    value = dataset.ground_truth()
    for image, record in zip(value["images"], dataset.records, strict=True):
        image["file_name"] = placer.place(record.file, root / split)
    (root / split).mkdir(exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    (root / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    return 0


def _write_voc(root: Path, split: str, dataset: Dataset, placer: _Placer) -> int:
    """Crowd becomes difficult."""
    (root / "Annotations").mkdir(exist_ok=True)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    stems = []
    for record in dataset.records:
        name = placer.place(record.file, root / "JPEGImages")
        stems.append(Path(name).stem)
        tree = _voc_xml(name, record, dataset.classes)
        ElementTree.indent(tree)
        ElementTree.ElementTree(tree).write(root / "Annotations" / f"{stems[-1]}.xml", encoding="utf-8")
    (lists / f"{split}.txt").write_text("".join(f"{s}\n" for s in stems), encoding="utf-8")
    return 0


def _voc_xml(name: str, record: Record, classes: ClassList) -> ElementTree.Element:
    """The annotation element of an image."""
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


def _write_yolo(root: Path, split: str, dataset: Dataset, placer: _Placer) -> int:
    """Crowd is left out: YOLO would take it for an object. Returns how much of it there was."""
    (root / "labels" / split).mkdir(parents=True, exist_ok=True)
    for record in dataset.records:
        name = placer.place(record.file, root / "images" / split)
        size = record.height, record.width
        if image_size(record.file) != size:  # YOLO's coordinates are relative to the size of the file
            raise DetrkitError(f"{record.file}: image size differs from its annotations; see `detrkit data check`")
        keep = ~record.crowd
        x0, y0, x1, y1 = (record.boxes[keep] / np.array([size[1], size[0]] * 2)).T
        rows = zip(record.labels[keep].tolist(), (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, strict=True)
        text = "".join(f"{label} {cx:.10g} {cy:.10g} {w:.10g} {h:.10g}\n" for label, cx, cy, w, h in rows)
        (root / "labels" / split / f"{Path(name).stem}.txt").write_text(text, encoding="utf-8")
    return int(sum(r.crowd.sum() for r in dataset.records))


_WRITERS = {"coco": _write_coco, "voc": _write_voc, "yolo": _write_yolo}
