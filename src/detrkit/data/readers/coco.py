"""COCO instances json: the official layout, a bare json beside its images, and Roboflow's exports.

Boxes are [x, y, width, height] in pixels, without any shift. Images come in the order of their ids. Crowd regions
(iscrowd=1) stay in the record, marked.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detrkit.data.readers.base import Reader, Reading, register_reader
from detrkit.data.readers.coco_lists import Listed, distinct_categories, load_json, read_categories, read_images
from detrkit.data.readers.coco_places import dataset_root, image_files
from detrkit.data.readers.common import Findings, Objects, corners_of, finite, is_int, is_one_of, make_record
from detrkit.data.segmentations import segmentation_fault
from detrkit.structures.classes import ClassList
from detrkit.utils.documents import shown
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import checked_name, not_hidden

_ROBOFLOW = "_annotations.coco.json"
_CROWD = (None, 0, 1)
_LARGEST_AREA = 1e18  # square pixels, far more than an image has
_NO_SEGMENTATION = "has no segmentation: give it one, or open the dataset without masks (leave out --masks)"
_OTHER_TASKS = ("panoptic_", "captions_", "person_keypoints_", "stuff_")


@register_reader
class CocoReader(Reader):
    """Reader of COCO instances."""

    name = "coco"
    expects = "COCO (annotations/instances_*.json, _annotations.coco.json or a json file)"
    no_objects_cause = "the annotations' image_id is that of none of the images"
    divided_by = "instances_train.json and instances_val.json in annotations/"

    def recognize(self, path: Path) -> bool:
        """Tell whether `path` is a COCO json file or a folder of the COCO or Roboflow layout."""
        if path.is_file():
            return path.suffix == ".json"
        return path.is_dir() and bool(_annotation_files(path))

    def splits(self, path: Path) -> list[str]:
        """Return the names of the splits.

        Raises:
            DetrkitError: a file name that gives no name of a split.
        """
        if path.is_file():
            return [checked_name(_split_of(path, dataset_root(path)), f"{path}: the split")]
        return list(_files(path))

    def read(self, path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None) -> Reading:
        """Read one split, as `Reader.read`.

        Raises:
            DetrkitError: a file that is no COCO instances json, no image folder, or (strict findings) any error in it.
        """
        findings = findings if findings is not None else Findings()
        with no_garbage_collection():
            return _read(path if path.is_file() else _files(path)[split], split, masks, findings)


def _annotation_files(path: Path) -> list[Path]:
    """Return the annotation files of a folder."""
    roboflow = sorted(not_hidden(path, f"*/{_ROBOFLOW}"))
    if roboflow:
        return roboflow
    if (path / _ROBOFLOW).is_file():
        return [path / _ROBOFLOW]
    folder = path / "annotations" if next(not_hidden(path, "annotations/*.json"), None) else path
    files = sorted(folder.glob("instances_*.json"))
    if not files and folder != path:
        files = [f for f in sorted(not_hidden(folder, "*.json")) if not f.name.startswith(_OTHER_TASKS)]
    return files


def _files(path: Path) -> dict[str, Path]:
    """Map each split to its annotation file.

    Raises:
        DetrkitError: a file name that gives no name of a split, such as "instances_...json".
    """
    files = _annotation_files(path)
    names = [_split_of(file, path) for file in files]
    # two files for one folder of images are two splits
    names = [name if names.count(name) == 1 else file.stem for name, file in zip(names, files, strict=True)]
    return {checked_name(name, f"{file}: the split"): file for name, file in zip(names, files, strict=True)}


def _split_of(file: Path, root: Path) -> str:
    """Return the split's name: what follows "instances_", or the image folder whose name ends the file's name."""
    if file.name == _ROBOFLOW:
        return file.parent.name
    stem = file.stem
    if stem.startswith("instances_"):
        return stem.removeprefix("instances_")
    folders = [d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith("panoptic_")]
    return max((name for name in folders if stem.endswith(name)), key=len, default=stem)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch garbage collection off.

    Millions of small objects are made and none in a cycle: looking for cycles would take 40 % of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(file: Path, split: str, masks: bool | None, findings: Findings) -> Reading:
    """Read one json file, as `CocoReader.read` does."""
    data = load_json(file)
    annotations = data.get("annotations", [])  # image_info_test-dev2017.json has none
    if annotations and isinstance(annotations[0], dict) and "segments_info" in annotations[0]:
        raise DetrkitError(
            f'{file} is a COCO panoptic file: name it panoptic_{split}.json, or open it with layout="coco-panoptic"'
        )
    categories = read_categories(data["categories"], file, findings)
    names = distinct_categories(categories, data["categories"], annotations, file, findings)
    classes = ClassList.contiguous(names)
    images = read_images(data["images"], file, findings)
    files = image_files(file, split, {i: e["file_name"] for i, e in images.entries.items()}, findings)
    images.refused.update(images.entries.keys() - files.keys())
    usable = Listed({i: images.entries[i] for i in files}, images.refused)
    per_image = _objects(annotations, classes.label_of, usable, file, masks, findings)
    records = []
    for image_id in sorted(files):
        image = usable.entries[image_id]
        size = image["height"], image["width"]
        objects = per_image.get(image_id, Objects())
        records.append(make_record(image_id, files[image_id], size, objects, file, findings))
    return Reading(classes, records, findings)


def _objects(
    annotations: list[Any],
    label_of: dict[int, int],
    images: Listed[dict[str, Any]],
    file: Path,
    masks: bool | None,
    findings: Findings,
) -> dict[int, Objects]:
    """Map each image id to its objects."""
    per_image: dict[int, Objects] = defaultdict(Objects)
    seen: set[int] = set()
    unplaced: list[Any] = []  # image ids that no image has
    without: list[str] = []  # annotations that have an empty segmentation
    examine = masks or (masks is None and not findings.strict)
    for k, a in enumerate(annotations):
        if not isinstance(a, dict):
            findings.add("error", file, f"annotations[{k}]", "is not an object")
            continue
        annotation_id = a.get("id", k + 1)
        name = f"annotation {annotation_id}" if is_int(annotation_id) else f"annotation {shown(annotation_id)}"
        image_id, category_id = a.get("image_id"), a.get("category_id")
        corners = corners_of(a.get("bbox"))
        crowd = a.get("iscrowd")
        segmentation = a.get("segmentation") if masks is not False else None
        if not is_int(annotation_id) or annotation_id in seen:
            findings.add("error", file, name, "annotation id must be an integer that is used once")
        elif not is_one_of(image_id, images.entries):
            if not is_one_of(image_id, images.refused):
                unplaced.append(image_id)
                reason = f"image {shown(image_id)} is not in the list of images: left out"
                findings.add("warning", file, name, reason)
        elif not is_one_of(category_id, label_of):
            findings.add("error", file, name, f"category {shown(category_id)} is not in the list of categories")
        elif corners is None:
            reason = f"bbox {shown(a.get('bbox'))} is not [x, y, width, height] in pixels"
            findings.add("error", file, name, reason)
        elif crowd not in _CROWD:
            findings.add("error", file, name, f"iscrowd {shown(crowd)} is neither 0 nor 1")
        else:
            if examine:
                if segmentation:
                    entry = images.entries[image_id]
                    fault = segmentation_fault(segmentation, (entry["height"], entry["width"]))
                    if fault is not None:
                        findings.add("error", file, name, fault)
                        segmentation = None
                elif not crowd:
                    if masks:
                        findings.add("error", file, name, _NO_SEGMENTATION)
                    without += [name] * ("segmentation" in a)
            area = a.get("area")
            if area is not None and (type(area) is not float or not 0 < area < _LARGEST_AREA):
                number = finite(area)
                if number is None or not 0 < number < _LARGEST_AREA:
                    if corners[2] > corners[0] and corners[3] > corners[1]:  # else the box is the fault
                        reason = f"area {shown(area)} is not a positive number of square pixels: taken from the box"
                        findings.add("warning", file, name, reason)
                    area = None
            seen.add(annotation_id)
            objects = per_image[image_id]
            objects.boxes.append(corners)
            objects.annotated.append(a["bbox"])
            objects.labels.append(label_of[category_id])
            objects.crowd.append(bool(crowd))
            objects.areas.append(area)
            objects.annotation_ids.append(annotation_id)
            objects.names.append(name)
            if masks is not False:
                objects.segmentations.append(segmentation)
    _note_unplaced(unplaced, len(seen), images, file, findings)
    if len(without) == len(seen) and without:
        findings.add("info", file, "", "no object has a segmentation: the dataset is one of boxes, not of masks")
    else:
        for name in without:
            findings.add("warning", file, name, _NO_SEGMENTATION)
    return per_image


def _note_unplaced(
    unplaced: list[Any], placed: int, images: Listed[dict[str, Any]], file: Path, findings: Findings
) -> None:
    """Report annotations that belong to no image: an error if none belongs to one."""
    if not unplaced:
        return
    if placed or not images.entries:
        text = (
            f"{len(unplaced)} annotations belong to no image of the list, such as image {shown(unplaced[0])}: left out"
        )
        findings.notes.append(f"{file}: {text}")
        return
    example = next(iter(images.entries))
    kinds = type(unplaced[0]).__name__, type(example).__name__
    reason = f"none of the {len(unplaced)} annotations belongs to an image: they have image_id {shown(unplaced[0])}"
    reason += f" ({kinds[0]}), the images have ids such as {example} ({kinds[1]}): write both alike"
    findings.add("error", file, "annotations", reason)
