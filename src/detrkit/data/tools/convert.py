"""`convert`: a dataset of one layout written as another, read back and compared before it appears.

What a layout cannot hold is refused, reported in the result, or is one of these: VOC, YOLO and CSV keep neither image
ids nor category ids (the order of the classes stays); VOC and YOLO no segment areas; none but COCO keeps masks; YOLO
has no crowd regions. The segments of a panoptic dataset become objects, with masks (RLE) in COCO; what is a thing is
not kept. Fields that detrkit does not read (captions, licenses, poses) are not kept. Boxes keep every digit, in YOLO
ten digits relative to the image; VOC, YOLO and CSV get them clamped to the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detrkit.data.dataset import Dataset
from detrkit.data.readers import READERS, Findings, find_layout, match_split
from detrkit.data.sample import Record
from detrkit.data.tools.placing import ImagePlacer, Transfer
from detrkit.data.tools.targets import TARGETS, Target, WrittenImage
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.utils.folders import check_replaceable, new_directory
from detrkit.utils.layouts import Layout, TargetLayout
from detrkit.utils.names import checked_name, full_path


@dataclass(frozen=True)
class ConvertedSplit:
    """Content of a split of the result, as its reader finds it, and what was left out.

    Attributes:
        name: of the split in the source.
        images: their number.
        objects: their number, crowd included.
        dropped: boxes without area, which are left out.
        lost_crowd: crowd regions that the layout cannot hold.
        clamped: boxes that left their image and end at its border now.
        turned: images with EXIF orientation whose boxes were on the stored image, and are on the upright one now.
        reencoded: images of a format that the layout's reader does not know, written as PNG.
    """

    name: str
    images: int
    objects: int
    dropped: int
    lost_crowd: int
    clamped: int = 0
    turned: int = 0
    reencoded: int = 0


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: TargetLayout,
    split: str | None = None,
    images: Transfer = "copy",
    force: bool = False,
    layout: Layout | None = None,
    things_only: bool = False,
) -> list[ConvertedSplit]:
    """Write `source` at `destination` in the layout `to`; it appears when it is complete and its reader agrees.

    COCO: annotations/instances_{split}.json and {split}/; VOC: JPEGImages, Annotations, ImageSets/Main/{split}.txt and
    classes.txt; YOLO: images/{split}, labels/{split} and data.yaml; parquet: data/{split}-00000-of-00001.parquet; CSV:
    {split}.csv, images/{split} and classes.txt.

    An image that the source lists twice (two ids of one file) is written twice, under two names. Names that are taken
    get _2, _3, ... at their end, also where only the case differs.

    Args:
        source: a dataset of any layout that has a reader.
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
        DetrkitError: `source` has an error or is not what `to` can hold, a file of it is no image, `destination`
            exists, or the splits have different classes (which only COCO and parquet can hold).
    """
    source, destination = full_path(source), full_path(destination)
    if to not in TARGETS:
        raise DetrkitError(f"layout {to!r} is not known; choose {', '.join(TARGETS)}")
    if images not in ("copy", "hardlink", "symlink"):
        raise DetrkitError(f"images={images!r}: choose copy, hardlink or symlink")
    if source.resolve().is_relative_to(destination.resolve()):
        raise DetrkitError(f"{destination} would replace the source {source}; choose another output folder")
    check_replaceable(destination, force=force)
    target = TARGETS[to]
    datasets, findings = _read(source, split, layout, masks=to == "coco", things_only=things_only)
    _refuse(datasets, target, to, source)
    with new_directory(destination, force=force) as root:
        placer = ImagePlacer(images, listed=target.listed)
        written: dict[str, list[WrittenImage]] = {}
        reencoded = {}
        for name, dataset in datasets.items():
            before = placer.reencoded
            if dataset.records or target.empty_splits:
                written[name] = target.write(root, name, dataset, placer)
            reencoded[name] = placer.reencoded - before
        target.finish(root, list(written), next(iter(datasets.values())).classes)
        done = []
        for name, dataset in datasets.items():
            try:
                records = _read_back(root, to, name, dataset.classes, written[name]) if name in written else []
            except DetrkitError as error:
                reason = str(error).replace(str(root), str(destination))
                raise DetrkitError(f"{source}: {to} cannot hold split {name}, nothing is written: {reason}") from error
            objects = sum(len(record.labels) for record in records)
            split_done = ConvertedSplit(
                name=name,
                images=len(records),
                objects=objects,
                dropped=findings[name].dropped,
                lost_crowd=sum(len(record.labels) for record in dataset.records) - objects,
                clamped=findings[name].clamped if target.clamps else 0,
                turned=sum(image.turned for image in written.get(name, [])),
                reencoded=reencoded[name],
            )
            done.append(split_done)
    return done


def _read(
    source: Path, split: str | None, layout: Layout | None, *, masks: bool, things_only: bool
) -> tuple[dict[str, Dataset], dict[str, Findings]]:
    """Read the chosen splits by name, and what was found in them.

    Raises:
        DetrkitError: an error in the source.
    """
    layout = find_layout(source, layout)
    reader = READERS[layout]
    names = reader.splits(source)
    datasets, findings = {}, {}
    for name in names if split is None else [match_split(split, names, source)]:
        checked_name(name, f"{source}: name of a split")
        keep = None if masks or layout == "coco-panoptic" else False
        classes, records, findings[name] = reader.read(source, name, masks=keep)
        dataset = Dataset(records, classes, layout=layout, with_masks=masks and layout == "coco-panoptic")
        datasets[name] = dataset.things() if things_only else dataset
    return datasets, findings


def _refuse(datasets: dict[str, Dataset], target: Target, to: str, source: Path) -> None:
    """Check that a layout can hold the datasets.

    Raises:
        DetrkitError: it cannot.
    """
    if not any(dataset.records for dataset in datasets.values()):
        raise DetrkitError(f"{source}: there is no image in it")
    first = next(iter(datasets))
    classes = [dataset.classes for dataset in datasets.values()]
    for name, dataset in datasets.items():
        if not target.own_classes and dataset.classes != classes[0]:
            raise DetrkitError(f"{source}: split {name} has other classes than {first}; convert them one by one")
    lowered: dict[str, str] = {}
    for name in datasets:
        other = lowered.setdefault(name.casefold(), name)
        if other != name:
            raise DetrkitError(f"{source}: splits {other} and {name} differ in case only; convert them one by one")
    target.refuse(list(datasets), classes, str(source))


def _read_back(root: Path, to: str, split: str, classes: ClassList, written: Sequence[WrittenImage]) -> list[Record]:
    """Read the records of a split that was written, as its reader finds them.

    Raises:
        DetrkitError: they are not what was written; the message names the first difference.
    """
    reader = READERS[find_layout(root)]
    name = TARGETS[to].split(split)
    if reader is not READERS[to] or name not in reader.splits(root):
        raise DetrkitError(f"its reader does not find split {name} again")
    read_classes, records, _ = reader.read(root, name, masks=False)
    if read_classes.names != classes.names or (to == "coco" and read_classes.ids != classes.ids):
        raise DetrkitError(f"its reader finds the classes {list(read_classes.names)} instead of {list(classes.names)}")
    by_name = {record.file.name: record for record in records}
    for image in written:
        if image.name not in by_name:
            raise DetrkitError(f"its reader does not find image {image.name} again")
        _compare(image, by_name[image.name], TARGETS[to].tolerance)
    if len(records) != len(written):
        raise DetrkitError(f"its reader finds {len(records)} images instead of {len(written)}")
    return list(records)


def _compare(image: WrittenImage, record: Record, tolerance: float) -> None:
    """Check that a record is what was written.

    Raises:
        DetrkitError: it is not; the message names the first difference.
    """
    size, expected = (record.width, record.height), (image.width, image.height)
    if size != expected:
        raise DetrkitError(f"image {image.name} is read back with the size {size} instead of {expected}")
    if len(record.labels) != len(image.labels):
        raise DetrkitError(
            f"image {image.name} is read back with {len(record.labels)} objects instead of {len(image.labels)}"
        )
    for kind in ("labels", "crowd"):
        values, others = getattr(record, kind).tolist(), getattr(image, kind).tolist()
        if values != others:
            raise DetrkitError(f"image {image.name} is read back with the {kind} {values} instead of {others}")
    away = np.abs(record.boxes - image.boxes) / np.array([*expected, *expected])  # (N, 4)
    if away.max(initial=0) > tolerance:
        k = int(away.max(1).argmax())
        boxes = record.boxes[k].tolist(), image.boxes[k].tolist()
        raise DetrkitError(f"a box of image {image.name} is read back as {boxes[0]} instead of {boxes[1]} (xyxy)")
