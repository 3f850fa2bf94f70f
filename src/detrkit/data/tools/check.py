"""`check`: every fault of a dataset, and a summary of its content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.data.images import is_image_file
from detrkit.data.opening import find_reader, nothing_left
from detrkit.data.readers import READERS, Fault, Findings, find_layout, match_split
from detrkit.data.readers.base import Reader
from detrkit.data.readers.csv_columns import Form
from detrkit.data.sample import Record
from detrkit.data.sources import ImageSource
from detrkit.data.tools.check_duplicates import find_duplicates
from detrkit.data.tools.check_images import check_images
from detrkit.data.tools.check_objects import BoxFaults, check_convention, check_names, learning_hints
from detrkit.data.tools.check_panoptic import check_panoptic
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.utils.layouts import Layout
from detrkit.utils.messages import first_names

# COCO's limits between small, medium and large objects, square pixels.
SMALL_AREA, LARGE_AREA = 32**2, 96**2


@dataclass(frozen=True)
class ClassCount:
    """Number of objects and images of a class in a split, crowd left out.

    Attributes:
        name: of the class.
        id: the dataset's category id.
        objects: their number.
        images: number of images with at least one.
        small, medium, large: objects by area as annotated: below 32 x 32, up to 96 x 96, and more square pixels.
        thing: whether its objects can be counted; False: stuff.
    """

    name: str
    id: int
    objects: int
    images: int
    small: int
    medium: int
    large: int
    thing: bool = True


@dataclass(frozen=True)
class SplitSummary:
    """Content of a split, in numbers.

    Attributes:
        name: of the split.
        images: their number.
        objects: number of objects, crowd left out.
        crowd: number of crowd regions.
        empty: number of images without objects.
        dropped: boxes without area.
        clamped: boxes that leave their image.
        classes: per class, in label order.
    """

    name: str
    images: int
    objects: int
    crowd: int
    empty: int
    dropped: int
    clamped: int
    classes: tuple[ClassCount, ...]


@dataclass
class Report:
    """The result of `check`.

    Attributes:
        path: what was checked.
        layout: name of its format, such as "coco".
        splits: a summary of each split that could be read.
        faults: what is wrong, each thing once.
        hints: what is hard to learn for a model, one line each; nothing of it is wrong.
    """

    path: Path
    layout: Layout
    splits: list[SplitSummary] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def of(self, severity: str) -> list[Fault]:
        """Return the faults of one severity."""
        return [f for f in self.faults if f.severity == severity]

    @property
    def ok(self) -> bool:
        """True if there is no error (warnings are handled when the dataset is opened)."""
        return not self.of("error")


def check(
    path: str | Path | Any,
    split: str | None = None,
    *,
    decode: bool = False,
    layout: Layout | None = None,
    root: str | Path | None = None,
    box_format: Form | None = None,
) -> Report:
    """Look for every fault in a dataset's files.

    Errors, at which opening or training ends: missing or unreadable images, sizes that differ from the annotations,
    boxes that are not numbers, unknown classes, two classes of one name, ids used twice, segmentations that mean no
    mask (opened with masks), malformed files and lines, splits of which no object is left, a training split without
    objects, classes that the training split does not have.
    Warnings, each handled when the dataset is opened: boxes without area, boxes that leave the image, areas that are no
    numbers or do not fit the box, the same box twice, annotations and label files without image, an image in the lists
    of both training and evaluation.
    Warnings that only you can handle: images that are byte for byte another one, of their split or of another; boxes
    that look like another convention; boxes drawn on an image before EXIF turned it; class names that differ by case.
    Infos: images without objects, crowd, classes without objects, files that nothing refers to, EXIF orientations that
    the sizes do not show. Hints: small objects, classes with few examples.
    Every PNG of a panoptic dataset is compared with its json, see `check_panoptic`.

    Args:
        path: the dataset's folder or file, or a DataFrame or Dataset in memory.
        split: the one to check; by default all.
        decode: decode every image instead of reading its header: finds truncated files, takes some 3 ms per image.
        layout: which reader to use; by default the one that recognizes the files, instances before panoptic.
        root: of data in memory, as in `open_dataset`.
        box_format: likewise.

    Raises:
        DetrkitError: no dataset there, or no such split. Everything else is a fault in the report.
    """
    reader, path = find_reader(path, layout, root=root, box_format=box_format)
    chosen_layout = reader.name
    report = Report(path, chosen_layout)
    findings = Findings(strict=False)
    try:
        names = reader.splits(path)
    except DetrkitError as error:
        report.faults.append(_fault_of(error, path))
        return report
    chosen = names if split is None else [match_split(split, names, path)]
    records_of: dict[str, list[Record]] = {}
    classes_of: dict[str, ClassList] = {}
    for name in chosen:
        try:
            classes_of[name], records_of[name] = _check_split(reader, report, name, findings, decode=decode)
        except DetrkitError as error:
            findings.faults.append(_fault_of(error, path))
    files = {name: [record.file for record in records] for name, records in records_of.items()}
    _check_overlap(files, path, findings)
    find_duplicates(records_of, path, findings)
    _check_classes(classes_of, path, findings)
    check_names(classes_of, path, findings)
    if split is None and path.is_dir() and files:
        _check_unused(path, reader, [f for listed in files.values() for f in listed if isinstance(f, Path)], findings)
    if layout is None and chosen_layout in READERS and find_layout(path, masks=True) != chosen_layout:
        reason = "panoptic annotations are here too: check them with --layout coco-panoptic"
        findings.add("info", path, "", reason)
    report.faults = list(dict.fromkeys(findings.faults))  # VOC's trainval repeats what train and val had
    return report


def _check_split(
    reader: Reader, report: Report, name: str, findings: Findings, *, decode: bool
) -> tuple[ClassList, list[Record]]:
    """Check one split, and add its summary to the report.

    Raises:
        DetrkitError: it cannot be read.
    """
    path, before = report.path, BoxFaults(findings.dropped, findings.negative, findings.clamped)
    classes, records, _ = reader.read(path, name, masks=None, findings=findings)
    after = BoxFaults(findings.dropped, findings.negative, findings.clamped)
    faults = BoxFaults(*(now - then for now, then in zip(after, before, strict=True)))
    summary = _summary(name, classes, records, faults.dropped, faults.clamped)
    report.splits.append(summary)
    _note_infos(summary, records, path, findings)
    check_convention(records, faults, path, name, findings)
    if is_for_training(name) or not any(is_for_training(split) for split in reader.splits(path)):
        report.hints += learning_hints(records, classes, name)
    present = [record for record in records if record.file not in findings.missing]
    check_images(present, path, name, findings, decode=decode)
    if report.layout == "coco-panoptic":
        check_panoptic(records, path, name, findings)
    return classes, records


def is_for_training(split: str) -> bool:
    """Tell whether a split is one to train on, by its name."""
    return split.startswith("train") and not split.startswith("trainval")


def _fault_of(error: DetrkitError, path: Path) -> Fault:
    """Turn an error that ended the reading of a split into a fault."""
    text = str(error)
    return Fault(
        "error", path, "", text.removeprefix(f"{path}: ").removesuffix("; `detrkit data check` lists every fault")
    )


def _summary(name: str, classes: ClassList, records: list[Record], dropped: int, clamped: int) -> SplitSummary:
    """Count what is in a split."""
    none = np.zeros(0, np.int64)
    keep = [~r.crowd for r in records]
    labels = np.concatenate([none, *(r.labels[k] for r, k in zip(records, keep, strict=True))])
    areas = np.concatenate([none.astype(float), *(r.areas[k] for r, k in zip(records, keep, strict=True))])
    count = len(classes)
    total = np.bincount(labels, minlength=count)
    small = np.bincount(labels[areas < SMALL_AREA], minlength=count)
    large = np.bincount(labels[areas >= LARGE_AREA], minlength=count)
    present = [np.unique(r.labels[k]) for r, k in zip(records, keep, strict=True)]
    images = np.bincount(np.concatenate([none, *present]), minlength=count)
    rows = tuple(
        ClassCount(
            n,
            classes.ids[i],
            int(total[i]),
            int(images[i]),
            int(small[i]),
            int(total[i] - small[i] - large[i]),
            int(large[i]),
            classes.is_thing(i),
        )
        for i, n in enumerate(classes.names)
    )
    return SplitSummary(
        name=name,
        images=len(records),
        objects=len(labels),
        crowd=int(sum(r.crowd.sum() for r in records)),
        empty=sum(not k.any() for k in keep),
        dropped=dropped,
        clamped=clamped,
        classes=rows,
    )


def _note_infos(summary: SplitSummary, records: list[Record], path: Path, findings: Findings) -> None:
    """Note what is worth knowing about a split, one line each."""
    where = f"split {summary.name}"
    if not records and not any(fault.severity == "error" for fault in findings.faults):  # one that says why
        findings.add("error", path, where, "has no image")
    for reason in nothing_left(records, summary.dropped):
        findings.add("error", path, where, reason)
    wrong = any(fault.severity == "error" for fault in findings.faults)  # which may be the reason
    if records and not wrong and not summary.objects + summary.crowd + summary.dropped:
        if is_for_training(summary.name):
            findings.add("error", path, where, "has no object: there is nothing to learn")
        else:
            findings.add("warning", path, where, "has no object: every image is background, and AP says nothing")
    if summary.empty:
        names = [r.file.name for r in records if r.crowd.all()]
        findings.add("info", path, where, f"{summary.empty} images without objects: {first_names(names)}")
    if summary.crowd:
        findings.add("info", path, where, f"{summary.crowd} crowd regions: left out of training, ignored in evaluation")
    absent = [c.name for c in summary.classes if not c.objects]
    if absent:
        findings.add("info", path, where, f"{len(absent)} classes without objects: {first_names(absent)}")


def _check_overlap(files: dict[str, list[ImageSource]], path: Path, findings: Findings) -> None:
    """Note images that are in a split for training and in one for evaluation."""
    for train in filter(is_for_training, files):
        for other in (n for n in files if n.startswith(("val", "test"))):
            common = sorted({f.name for f in set(files[train]) & set(files[other])})
            if common:
                reason = f"{len(common)} images are also in {other}: {first_names(common)}"
                findings.add("warning", path, f"split {train}", reason)


def _check_classes(classes: dict[str, ClassList], path: Path, findings: Findings) -> None:
    """Note splits whose classes are not those of the training split."""
    train = next((name for name in classes if name.startswith("train")), None)
    if train is None:
        return
    ids = dict(zip(classes[train].ids, classes[train].names, strict=True))
    for split, other in classes.items():
        extra = sorted(set(other.names) - set(ids.values()))
        if extra:
            reason = f"has classes that {train} has not: {first_names(extra)}: training with both refuses them"
            findings.add("error", path, f"split {split}", reason)
        for category_id, name in zip(other.ids, other.names, strict=True):
            train_name = ids.get(category_id, name)
            if train_name != name:
                reason = f"category {category_id} is {name!r} here and {train_name!r} in {train}: matched by name"
                findings.add("warning", path, f"split {split}", reason)


def _check_unused(path: Path, reader: Reader, files: list[Path], findings: Findings) -> None:
    """Note annotation files without image, and images that no annotation file lists."""
    used = set(files)
    reader.find_unused(path, files, findings)
    for folder in sorted({f.parent for f in files}):
        unused = sorted(f.name for f in _images_in(folder) if f not in used)
        if unused:
            findings.add("info", folder, "", f"{len(unused)} images are in no split: {first_names(unused)}")


def _images_in(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from filter(is_image_file, folder.iterdir())
