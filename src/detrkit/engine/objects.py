"""What a run will learn from: how many objects of which class, and what was left out of the files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detrkit.data import Dataset
from detrkit.utils.errors import DetrkitError

FEW_CLASSES = 8  # up to which every class is counted in a line; of more, the rarest and the most frequent
_EXTREMES = 3
# why files of a layout can be read and yet hold no object
_CAUSES = {
    "coco": "the annotations' image_id is that of none of the images",
    "coco-panoptic": "the annotations' image_id is that of none of the images",
    "voc": "the xml files have no <object>",
    "yolo": "no label file (.txt) belongs to any image: they are looked for in labels/ beside images/",
    "parquet": "the column of objects is empty",
}


@dataclass(frozen=True)
class ObjectCounts:
    """The objects of a dataset.

    Attributes:
        images: number of images.
        with_objects: of them, those with an object that is no crowd.
        per_class: name of a class -> its number of objects; without unused labels.
        crowd: regions of many objects, which are not learned.
        dropped, clamped, skipped: as of `Dataset`.
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
        """Objects to learn."""
        return sum(self.per_class.values())

    @property
    def without(self) -> list[str]:
        """The classes that no object has."""
        return [name for name, count in self.per_class.items() if not count]

    def classes_in_words(self) -> str:
        """Objects of the classes, most frequent first: of all, or of the rarest and the most frequent."""
        ranked = sorted(((n, c) for n, c in self.per_class.items() if c), key=lambda pair: -pair[1])
        if len(ranked) <= FEW_CLASSES:
            return ", ".join(f"{name} {count}" for name, count in ranked)
        often, rare = (
            [f"{name} {count}" for name, count in part] for part in (ranked[:_EXTREMES], ranked[-_EXTREMES:])
        )
        return f"most of {', '.join(often)}; fewest of {', '.join(rare)}"

    def left_out_in_words(self) -> str:
        """What of the files is not learned, or changed; empty if nothing is."""
        parts = (
            (self.dropped, "box(es) without area left out"),
            (self.clamped, "box(es) cut at the border of their image"),
            (self.crowd, "crowd region(s) not learned"),
            (self.skipped, "unusable image(s) left out"),
        )
        return ", ".join(f"{count} {what}" for count, what in parts if count)

    def lines(self) -> list[str]:
        """For the terminal."""
        empty = self.images - self.with_objects
        lines = [
            f"{self.objects} objects in {self.with_objects} images"
            + (f", {empty} images without any" if empty else "")
            + f": {self.classes_in_words()}"
        ]
        if left_out := self.left_out_in_words():
            lines.append(f"{left_out}: `detrkit data check` lists them")
        if self.without:
            rest = len(self.without) - FEW_CLASSES
            names = ", ".join(self.without[:FEW_CLASSES]) + (f" and {rest} more" if rest > 0 else "")
            lines.append(f"warning: no object of {len(self.without)} of {len(self.per_class)} classes: {names}")
        return lines

    def rows(self) -> dict[str, str]:
        """For the report."""
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
    """Counts what the records of a dataset hold; no image is opened."""
    learned = [record.labels[~record.crowd] for record in dataset.records]
    labels = np.concatenate([np.zeros(0, np.int64), *learned])
    counts = np.bincount(labels, minlength=len(dataset.classes)).tolist()
    per_class: dict[str, int] = {}
    for label, (name, count) in enumerate(zip(dataset.classes.names, counts, strict=True)):
        if count or not dataset.classes.is_unused(label):
            per_class[name] = per_class.get(name, 0) + count
    return ObjectCounts(
        images=len(dataset),
        with_objects=sum(len(own) > 0 for own in learned),
        per_class=per_class,
        crowd=sum(int(record.crowd.sum()) for record in dataset.records),
        dropped=dataset.dropped,
        clamped=dataset.clamped,
        skipped=dataset.skipped,
    )


def check_objects(dataset: Dataset) -> ObjectCounts:
    """Counts the objects of a dataset that is to be learned.

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
        cause = f"perhaps {_CAUSES.get(dataset.layout, 'the files hold none')}"
    raise DetrkitError(
        f"{dataset.path}: none of the {counts.images} images of {dataset.split} has an object to learn: {cause}; "
        "`detrkit data check` says more"
    )
