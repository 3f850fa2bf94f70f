"""Counts of the objects that a run will learn from, by class, and of what was left out of the files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detrkit.data import Dataset
from detrkit.data.readers import READERS, Reader
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import counted, names_and_more

FEW_CLASSES = 8  # up to this number a line names every class; above it, the rarest and the most frequent
_EXTREMES = 3


@dataclass(frozen=True)
class ObjectCounts:
    """Counts of the objects of a dataset.

    Attributes:
        images: number of images.
        with_objects: number of images with an object that is no crowd region.
        per_class: name of a class -> its number of objects; without unused labels.
        crowd: number of crowd regions, which are not learned.
        dropped, clamped, skipped: as in `Dataset`.
    """

    images: int
    with_objects: int
    per_class: dict[str, int]
    crowd: int
    dropped: int
    clamped: int
    skipped: int

    @property
    def objects(self) -> int:
        """Number of objects to learn."""
        return sum(self.per_class.values())

    @property
    def without(self) -> list[str]:
        """Names of the classes without objects."""
        return [name for name, count in self.per_class.items() if not count]

    def classes_in_words(self) -> str:
        """Format the number of objects of each class, most frequent first; of many classes, only the extremes."""
        ranked = sorted(((n, c) for n, c in self.per_class.items() if c), key=lambda pair: -pair[1])
        if len(ranked) <= FEW_CLASSES:
            return ", ".join(f"{name} {count}" for name, count in ranked)
        often, rare = (
            [f"{name} {count}" for name, count in part] for part in (ranked[:_EXTREMES], ranked[-_EXTREMES:])
        )
        return f"most of {', '.join(often)}; fewest of {', '.join(rare)}"

    def left_out_in_words(self) -> str:
        """Format the numbers of boxes and images that are left out or changed; empty if there are none."""
        parts = (
            (self.dropped, "box(es) without area left out"),
            (self.clamped, "box(es) cut at the border of their image"),
            (self.crowd, "crowd region(s) not learned"),
            (self.skipped, "unusable image(s) left out"),
        )
        return ", ".join(f"{count} {what}" for count, what in parts if count)

    def lines(self) -> list[str]:
        """Return the lines for the terminal."""
        empty = self.images - self.with_objects
        lines = [
            f"{counted(self.objects, 'object')} in {counted(self.with_objects, 'image')}"
            + (f", {counted(empty, 'image')} without any" if empty else "")
            + f": {self.classes_in_words()}"
        ]
        if left_out := self.left_out_in_words():
            lines.append(f"{left_out}: `detrkit data check` lists them")
        if self.without:
            names = names_and_more(self.without, FEW_CLASSES)
            lines.append(f"warning: no object of {len(self.without)} of {len(self.per_class)} classes: {names}")
        return lines

    def rows(self) -> dict[str, str]:
        """Return the rows for the report."""
        rows = {
            "training images": f"{self.images}, {self.images - self.with_objects} without objects",
            "training objects": f"{self.objects}: {self.classes_in_words()}",
        }
        if left_out := self.left_out_in_words():
            rows["left out"] = left_out
        if self.without:
            rows["classes without objects"] = f"{len(self.without)} of {len(self.per_class)}"
        return rows


def count_objects(dataset: Dataset) -> ObjectCounts:
    """Count the objects in the records of a dataset; no image is opened."""
    learned = [record.labels[~record.crowd] for record in dataset.records]
    labels = np.concatenate([np.zeros(0, np.int64), *learned])
    counts = np.bincount(labels, minlength=len(dataset.classes)).tolist()
    per_class: dict[str, int] = {}
    for label, (name, count) in enumerate(zip(dataset.classes.names, counts, strict=True)):
        if count or not dataset.classes.is_unused(label):
            per_class[name] = per_class.get(name, 0) + count
    return ObjectCounts(
        images=len(dataset),
        with_objects=sum(len(image_labels) > 0 for image_labels in learned),
        per_class=per_class,
        crowd=sum(int(record.crowd.sum()) for record in dataset.records),
        dropped=dataset.dropped,
        clamped=dataset.clamped,
        skipped=dataset.skipped,
    )


def check_objects(dataset: Dataset) -> ObjectCounts:
    """Count the objects of a training dataset and check that there are any.

    Raises:
        DetrkitError: there is none; names the probable cause.
    """
    counts = count_objects(dataset)
    if counts.objects:
        return counts
    if counts.crowd:
        cause = f"all {counts.crowd} annotations are crowd regions (iscrowd), which are not learned"
    elif counts.dropped:
        cause = f"all {counts.dropped} boxes are without area and were left out"
    else:
        reader = READERS.get(dataset.layout)
        cause = f"perhaps {Reader.no_objects_cause if reader is None else reader.no_objects_cause}"
    raise DetrkitError(
        f"{dataset.path}: none of the {counts.images} images of {dataset.split} has an object to learn: {cause}; "
        "`detrkit data check` says more"
    )
