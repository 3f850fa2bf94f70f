"""COCO panoptic: a json of segments_info and a PNG for each image whose colors are the ids of the segments.

- Annotations are found by image_id, never by their position: the official files list images and annotations in
  different orders. Images come in the order of their ids.
- Boxes are the `bbox` of segments_info, whose edges enclose the segment's pixels: [x, y, width, height], x + width one
  past the last column. (The published code computes them from the masks, with the last column as edge: its boxes are
  one pixel narrower and lower, and a segment of one column has no area.) Areas are those of segments_info.
- Masks are decoded from the PNG when a sample is requested; pixels of no segment are void.
- The `isthing` of a category says whether it is a thing or stuff.
- Segment ids are unique within an image only; annotation ids number all segments of the split, from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detrkit.data.panoptic import LARGEST_ID
from detrkit.data.readers.base import Reader, Reading, register_reader
from detrkit.data.readers.class_names import check_class_names
from detrkit.data.readers.coco import CocoReader, no_garbage_collection
from detrkit.data.readers.coco_lists import Listed, load_json, read_categories, read_images
from detrkit.data.readers.coco_places import Place, dataset_root, image_files
from detrkit.data.readers.common import Findings, Objects, corners_of, finite, is_int, is_one_of, make_record
from detrkit.structures.classes import ClassList
from detrkit.utils.documents import shown
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import checked_name

_PREFIX = "panoptic_"


@register_reader
class CocoPanopticReader(Reader):
    """Reader of COCO panoptic."""

    name = "coco-panoptic"
    expects = "COCO panoptic (annotations/panoptic_*.json and their PNGs)"
    no_objects_cause = CocoReader.no_objects_cause

    def recognize(self, path: Path) -> bool:
        """Tell whether `path` is a json file or a folder with panoptic_*.json, in it or in its annotations/."""
        if path.is_file():
            return path.suffix == ".json"
        return path.is_dir() and bool(_annotation_files(path))

    def splits(self, path: Path) -> list[str]:
        """Return the names of the splits.

        Raises:
            DetrkitError: a file name that gives no name of a split.
        """
        return [_split_of(path)] if path.is_file() else list(_files(path))

    def read(
        self,
        path: Path,
        split: str,
        *,
        masks: bool | None = False,
        findings: Findings | None = None,
        more_images: Sequence[Path] = (),
    ) -> Reading:
        """Read one split, as `Reader.read`.

        The records name the PNGs whatever `masks` is; no PNG is read yet. The images are also looked for in the folders
        `more_images`, after the usual ones.

        Raises:
            DetrkitError: a file that is no COCO panoptic json, no folder of images or PNGs, or (strict findings) any
                error in it.
        """
        findings = findings if findings is not None else Findings()
        file = path if path.is_file() else _files(path)[split]
        with no_garbage_collection():
            data = load_json(file)
            _refuse_instances(data, file)
            categories = read_categories(data["categories"], file, findings)
            check_class_names(((f"category {i}", name) for i, name in sorted(categories.items())), file, findings)
            classes = ClassList.contiguous(categories, _things(data["categories"], categories, file, findings))
            images = read_images(data["images"], file, findings)
            annotations = _annotations(data.get("annotations", []), images, file, findings)
            pngs = _png_folder(file, [a["file_name"] for a in annotations.values()])
            names = {i: images.entries[i]["file_name"] for i in annotations}
            files = image_files(file, split, names, findings, [*_more_folders(file, split, pngs.folder), *more_images])
            records = []
            count = 0
            for image_id in sorted(files):
                image, annotation = images.entries[image_id], annotations[image_id]
                png = pngs.file(annotation["file_name"])
                if png is None:
                    reason = f"file_name {shown(annotation['file_name'])} (of the PNG) leads out of {pngs.root}"
                    findings.add("error", file, f"image {image_id}", reason)
                    continue
                objects = _objects(annotation["segments_info"], classes.label_of, image_id, count, file, findings)
                count += len(annotation["segments_info"])
                size = image["height"], image["width"]
                # nested segments may have the same box: no duplicates are looked for
                record = make_record(image_id, files[image_id], size, objects, file, findings, duplicates=False)
                records.append(replace(record, panoptic_file=png))
        return Reading(classes, records, findings)


def _annotation_files(path: Path) -> list[Path]:
    """Return the annotation files of a folder."""
    folder = path / "annotations" if next(path.glob(f"annotations/{_PREFIX}*.json"), None) else path
    # panoptic_coco_categories.json is panopticapi's list of categories
    return [f for f in sorted(folder.glob(f"{_PREFIX}*.json")) if not f.stem.endswith("_categories")]


def _files(path: Path) -> dict[str, Path]:
    """Map each split to its annotation file."""
    return {_split_of(file): file for file in _annotation_files(path)}


def _split_of(file: Path) -> str:
    return checked_name(file.stem.removeprefix(_PREFIX), f"{file}: the split")


def _refuse_instances(data: dict[str, Any], file: Path) -> None:
    """Check that the annotations are of images, not of single objects.

    Raises:
        DetrkitError: they are of single objects.
    """
    first = next(iter(data.get("annotations", [])), None)
    if isinstance(first, dict) and "bbox" in first and "segments_info" not in first:
        raise DetrkitError(f'{file} is no COCO panoptic file but one of instances: open it with layout="coco"')


def _things(entries: list[Any], categories: dict[int, str], file: Path, findings: Findings) -> dict[int, bool]:
    """Map each category id to whether it is a thing."""
    things = {}
    for entry in entries:
        if isinstance(entry, dict) and is_one_of(entry.get("id"), categories):
            if entry.get("isthing") not in (0, 1):
                findings.add("error", file, f"category {entry['id']}", "needs isthing: 1 for a thing, 0 for stuff")
            things[entry["id"]] = bool(entry.get("isthing"))
    return things


def _annotations(
    entries: list[Any], images: Listed[dict[str, Any]], file: Path, findings: Findings
) -> dict[int, dict[str, Any]]:
    """Map each image id to its annotation, which has a file_name and a list segments_info."""
    annotations: dict[int, dict[str, Any]] = {}
    for k, entry in enumerate(entries):
        where = f"annotations[{k}]"
        image_id: Any = entry.get("image_id") if isinstance(entry, dict) else None
        if is_one_of(image_id, images.refused):
            continue
        if not is_one_of(image_id, images.entries):
            findings.add("warning", file, where, f"image {shown(image_id)} is not in the list of images: left out")
        elif not isinstance(entry.get("file_name"), str) or not isinstance(entry.get("segments_info"), list):
            findings.add("error", file, where, "needs a file_name (of the PNG) and a list segments_info")
        elif image_id in annotations:
            findings.add("error", file, where, f"a second annotation of image {image_id}")
        else:
            annotations[image_id] = entry
    if entries and images.entries and not annotations:
        reason = f"none belongs to an image: the images have ids such as {next(iter(images.entries))}"
        findings.add("error", file, "annotations", reason)
    for image_id in images.entries.keys() - annotations.keys():
        findings.add("warning", file, f"image {image_id}", "has no annotation: left out")
    if list(annotations) != [image_id for image_id in images.entries if image_id in annotations]:
        findings.add("info", file, "", "images and annotations are in different orders: paired by image_id")
    return annotations


def _objects(
    segments: list[Any], label_of: dict[int, int], image_id: int, count: int, file: Path, findings: Findings
) -> Objects:
    """Collect the segments of one image; their annotation ids count on from `count`."""
    objects = Objects()
    for k, segment in enumerate(segments):
        name = f"image {image_id}, segments_info[{k}]"
        if not isinstance(segment, dict) or not is_int(segment.get("id")) or not 1 <= segment["id"] <= LARGEST_ID:
            findings.add("error", file, name, f"needs an integer id of 1 to {LARGEST_ID} (0 is void)")
            continue
        name = f"image {image_id}, segment {segment['id']}"
        corners = corners_of(segment.get("bbox"))
        if segment["id"] in objects.segment_ids:
            findings.add("error", file, name, "id is used twice in the image")
        elif not is_one_of(segment.get("category_id"), label_of):
            reason = f"category {shown(segment.get('category_id'))} is not in the list of categories"
            findings.add("error", file, name, reason)
        elif corners is None:
            reason = f"bbox {shown(segment.get('bbox'))} is not [x, y, width, height] in pixels"
            findings.add("error", file, name, reason)
        elif (finite(segment.get("area")) or 0) <= 0:
            findings.add("error", file, name, f"area {shown(segment.get('area'))} is not a positive number of pixels")
        else:
            objects.boxes.append(corners)
            objects.annotated.append(segment["bbox"])
            objects.labels.append(label_of[segment["category_id"]])
            objects.crowd.append(bool(segment.get("iscrowd", 0)))
            objects.areas.append(segment["area"])
            objects.annotation_ids.append(count + k + 1)
            objects.segment_ids.append(segment["id"])
            objects.names.append(name)
    return objects


def _png_folder(file: Path, names: list[str]) -> Place:
    """Find the place of the PNGs: named as the json, beside it or beside its folder; else any called panoptic.

    Raises:
        DetrkitError: none holds one of the first PNGs.
    """
    root = dataset_root(file)
    usual = [root / file.stem, file.parent / file.stem]
    others = sorted(d for d in root.glob("*panoptic*") if d.is_dir())
    # The first names suffice: a dataset with more than a few missing PNGs is reported file by file.
    for folder in dict.fromkeys([*usual, *others]):
        if any(Place(folder, root).has(name) for name in names[:20]):
            return Place(folder, root)
    if not names:
        return Place(usual[0], root)
    archive = next((f.with_suffix(".zip") for f in usual if f.with_suffix(".zip").is_file()), None)
    if archive is not None:
        raise DetrkitError(f"{archive} is an archive: unpack it there, it holds the panoptic PNGs")
    tried = " or ".join(str(folder) for folder in dict.fromkeys(usual))
    raise DetrkitError(f"{file}: panoptic PNGs such as {names[0]:.200} were not found: put them in {tried}")


def _more_folders(file: Path, split: str, pngs: Path) -> list[Path]:
    """List the folders of images besides the usual ones of COCO.

    They are the folders beside that of the PNGs, and the dataset of the same name without "panoptic" (coco/val2017
    for coco_panoptic/panoptic_val2017).
    """
    root = dataset_root(file)
    plain = root.name.replace("panoptic", "").strip("_-. ")
    return [*sorted(d for d in root.iterdir() if d.is_dir() and d != pngs), root.parent / plain / split]
