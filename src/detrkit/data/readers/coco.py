"""COCO instances json: the official layout, a bare json beside its images, and Roboflow's exports.

Boxes are [x, y, width, height] in pixels, without any shift. Images come in the order of their ids. Crowd regions
(iscrowd=1) stay in the record, marked.
"""

from __future__ import annotations

import gc
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detrkit.classes import ClassList
from detrkit.data.readers.common import Findings, Objects, corners_of, is_int, is_one_of, make_record
from detrkit.data.sample import Record
from detrkit.errors import DetrkitError

_ROBOFLOW = "_annotations.coco.json"
_OTHER_TASKS = ("panoptic_", "captions_", "person_keypoints_", "stuff_")


def recognise(path: Path) -> bool:
    """Whether `path` is a COCO json file or a folder of the COCO or Roboflow layout."""
    if path.is_file():
        return path.suffix == ".json"
    return path.is_dir() and bool(_files(path))


def _files(path: Path) -> dict[str, Path]:
    """Split -> annotation file."""
    roboflow = sorted(path.glob(f"*/{_ROBOFLOW}"))
    if roboflow:
        return {file.parent.name: file for file in roboflow}
    if (path / _ROBOFLOW).is_file():
        return {path.name: path / _ROBOFLOW}
    folder = path / "annotations" if next(path.glob("annotations/*.json"), None) else path
    found = sorted(folder.glob("instances_*.json"))
    if not found and folder != path:
        found = [f for f in sorted(folder.glob("*.json")) if not f.name.startswith(_OTHER_TASKS)]
    return {_split_of(file, path): file for file in found}


def _split_of(file: Path, root: Path) -> str:
    """The split's name: what follows "instances_", or the image folder whose name ends the file's name."""
    if file.name == _ROBOFLOW:
        return file.parent.name
    stem = file.stem
    if stem.startswith("instances_"):
        return stem.removeprefix("instances_")
    folders = [d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith("panoptic_")]
    return max((name for name in folders if stem.endswith(name)), key=len, default=stem)


def splits(path: Path) -> list[str]:
    """The names of the splits."""
    if path.is_file():
        return [_split_of(path, path.parent.parent if path.parent.name == "annotations" else path.parent)]
    return list(_files(path))


def annotation_file(path: Path, split: str) -> Path:
    """The json file of a split."""
    return path if path.is_file() else _files(path)[split]


def load_json(file: Path) -> dict[str, Any]:
    """The json object in `file`.

    Raises:
        DetrkitError: not readable, malformed, or not an object with `images` and `categories`.
    """
    try:
        value = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise DetrkitError(
            f"{file}: malformed JSON in line {error.lineno}, column {error.colno} ({error.msg})"
        ) from error
    except UnicodeDecodeError as error:
        raise DetrkitError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DetrkitError(f"{file}: cannot be read ({error.strerror})") from error
    keys = ("images", "categories")
    if not isinstance(value, dict) or not all(isinstance(value.get(k), list) for k in keys):
        raise DetrkitError(
            f"{file}: not a COCO json: expected an object with the lists images, annotations, categories"
        )
    if not isinstance(value.get("annotations", []), list):
        raise DetrkitError(f"{file}: field annotations is not a list")
    return value


def read(
    path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None
) -> tuple[ClassList, list[Record], Findings]:
    """Reads one split.

    Args:
        path: the dataset's folder or a json file.
        split: one of `splits(path)`.
        masks: keep the segmentations (they take several times the memory of the boxes); None: those that there are.
        findings: where faults go; by default the first error raises.

    Returns:
        The classes, one record per image and the findings.

    Raises:
        DetrkitError: a file that is no COCO instances json, no image folder, or (strict findings) any error in it.
    """
    findings = findings if findings is not None else Findings()
    with no_garbage_collection():
        return _read(annotation_file(path, split), split, masks, findings)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Millions of small objects are made and none in a cycle: looking for cycles would take 40 % of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(file: Path, split: str, masks: bool | None, findings: Findings) -> tuple[ClassList, list[Record], Findings]:
    """What `read` does, for one json file."""
    data = load_json(file)
    annotations = data.get("annotations", [])  # image_info_test-dev2017.json has none
    if annotations and isinstance(annotations[0], dict) and "segments_info" in annotations[0]:
        raise DetrkitError(
            f'{file} is a COCO panoptic file: name it panoptic_{split}.json, or open it with layout="coco-panoptic"'
        )
    categories = read_categories(data["categories"], file, findings)
    classes = ClassList.contiguous(categories)
    images = read_images(data["images"], file, findings)
    folder = image_folder(file, split, [str(i["file_name"]) for i in images.values()])
    per_image = _objects(annotations, classes.label_of, images, file, masks, findings)
    records = []
    for image_id in sorted(images):
        image = images[image_id]
        name = folder / image["file_name"].replace("\\", "/")
        size = image["height"], image["width"]
        records.append(make_record(image_id, name, size, per_image.get(image_id, Objects()), file, findings))
    return classes, records, findings


def read_categories(entries: list[Any], file: Path, findings: Findings) -> dict[int, str]:
    """Id -> name."""
    categories: dict[int, str] = {}
    for k, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_int(entry.get("id")) or not isinstance(entry.get("name"), str):
            findings.add("error", file, f"categories[{k}]", "needs an integer id and a name")
        elif entry["id"] in categories:
            findings.add("error", file, f"category {entry['id']}", "id is used twice")
        else:
            categories[entry["id"]] = entry["name"]
    if not categories:
        raise DetrkitError(f"{file}: field categories lists no class")
    return categories


def read_images(entries: list[Any], file: Path, findings: Findings) -> dict[int, dict[str, Any]]:
    """Id -> entry, the entries having file_name, height and width."""
    images: dict[int, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    for k, entry in enumerate(entries):
        where = f"images[{k}]"
        if not isinstance(entry, dict) or not is_int(entry.get("id")):
            findings.add("error", file, where, "needs an integer id")
            continue
        where = f"image {entry['id']}"
        if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
            findings.add("error", file, where, "needs a file_name")
        elif not all(is_int(entry.get(key)) and entry[key] > 0 for key in ("height", "width")):
            findings.add("error", file, where, "height and width must be positive integers (pixels)")
        elif entry["id"] in images:
            findings.add("error", file, where, "image id is used twice")
        else:
            images[entry["id"]] = entry
            other = seen.setdefault(entry["file_name"], entry["id"])
            if other != entry["id"]:
                findings.add("warning", file, where, f"same file_name {entry['file_name']} as image {other}")
    return images


def _objects(
    annotations: list[Any],
    label_of: dict[int, int],
    images: dict[int, dict[str, Any]],
    file: Path,
    masks: bool | None,
    findings: Findings,
) -> dict[int, Objects]:
    """Image id -> its objects."""
    per_image: dict[int, Objects] = defaultdict(Objects)
    seen: set[int] = set()
    for k, a in enumerate(annotations):
        if not isinstance(a, dict):
            findings.add("error", file, f"annotations[{k}]", "is not an object")
            continue
        annotation_id = a.get("id", k + 1)
        name = f"annotation {annotation_id}"
        corners = corners_of(a.get("bbox"))
        if not is_int(annotation_id) or annotation_id in seen:
            findings.add("error", file, name, "annotation id must be an integer that is used once")
        elif not is_one_of(a.get("image_id"), images):
            findings.add("warning", file, name, f"image {a.get('image_id')} is not in the list of images: left out")
        elif not is_one_of(a.get("category_id"), label_of):
            findings.add("error", file, name, f"category {a.get('category_id')} is not in the list of categories")
        elif corners is None:
            findings.add("error", file, name, f"bbox {a.get('bbox')} is not [x, y, width, height] in pixels")
        elif masks and not a.get("iscrowd") and not a.get("segmentation"):
            findings.add("error", file, name, "has no segmentation: open the dataset without masks")
        else:
            seen.add(annotation_id)
            objects = per_image[a["image_id"]]
            objects.boxes.append(corners)
            objects.annotated.append(a["bbox"])
            objects.labels.append(label_of[a["category_id"]])
            objects.crowd.append(bool(a.get("iscrowd", 0)))
            objects.areas.append(a["area"] if isinstance(a.get("area"), int | float) else None)
            objects.annotation_ids.append(annotation_id)
            objects.names.append(name)
            if masks is not False:
                objects.segmentations.append(a.get("segmentation"))
    return per_image


def image_folder(file: Path, split: str, names: list[str], also: Sequence[Path] = ()) -> Path:
    """The folder that the json's file names are relative to: the first usual place that holds one of the images.

    Args:
        file: the json.
        split: its split.
        names: file names of the images.
        also: places to look at after the usual ones.

    Raises:
        DetrkitError: none does.
    """
    here = file.parent
    root = here.parent if here.name == "annotations" else here
    usual = [root / split, root / "images" / split, root / split / "images", root / "images", root / "JPEGImages", here]
    usual += [root.parent / split, root.parent / "images" / split, root.parent / "images", root.parent / "JPEGImages"]
    usual += [root, root.parent, *also]
    # The first names suffice: a dataset with more than a few missing images is reported image by image.
    for folder in usual:
        if any((folder / name.replace("\\", "/")).is_file() for name in names[:20]):
            return folder
    existing = [folder for folder in usual[:6] if folder.is_dir()]
    if not names:
        return (existing or [here])[0]
    tried = ", ".join(str(folder) for folder in dict.fromkeys(usual[:5]))
    raise DetrkitError(f"{file}: images such as {names[0]} were found in none of {tried}; put them in the first")
