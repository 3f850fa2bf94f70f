"""`merge_datasets`: several datasets as one, with classes matched by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from detrkit.data.dataset import Dataset
from detrkit.data.sample import Record
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.utils.similar import nearest_names


def merge_datasets(datasets: Sequence[Dataset]) -> Dataset:
    """Merge open datasets to one: the images of all, the classes of all.

    Classes are the same if their names are, as they are written. The labels of the first dataset stay; classes that
    only later ones have follow, with category ids after the highest. Ids of images that occur twice, or would, are
    replaced in all but the first dataset.

    Args:
        datasets: of any layouts, all open with masks or all without; one is returned as it is.

    Raises:
        DetrkitError: none; panoptic and other datasets together; a class that is a thing in one and stuff in another.
    """
    if not datasets:
        raise DetrkitError("merge_datasets: no dataset: give one or more")
    first, *others = datasets
    if not others:
        return first
    _check_kinds(datasets)
    classes = merged_classes([dataset.classes for dataset in datasets], [str(dataset.path) for dataset in datasets])
    label_of = classes.used
    records, free = list(first.records), _next_id(first.records)
    used = {record.image_id for record in records}
    for dataset in others:
        ids = {record.image_id for record in dataset.records}
        # ids that are repeated within a dataset stand for the same image, and stay so
        renumbered = {i: free + k for k, i in enumerate(sorted(ids))} if ids & used else {i: i for i in ids}
        table = _label_table(dataset.classes, label_of)
        added = [replace(r, image_id=renumbered[r.image_id], labels=table[r.labels]) for r in dataset.records]
        records += added
        used |= set(renumbered.values())
        free = max(free, _next_id(added))
    # of several files the ids of annotations may be the same; 0 stands for none, and they are numbered where needed
    records = [replace(r, annotation_ids=np.zeros(len(r.labels), np.int64)) for r in records]
    layouts, splits = {d.layout for d in datasets}, list(dict.fromkeys(d.split for d in datasets))
    return Dataset(
        records,
        classes,
        name=" + ".join(d.name for d in datasets),
        split=splits[0] if len(splits) == 1 else " + ".join(d.split for d in datasets),
        path=Path(" + ".join(str(d.path) for d in datasets)),
        layout=first.layout if len(layouts) == 1 else "",
        with_masks=first.with_masks,
        dropped=sum(d.dropped for d in datasets),
        clamped=sum(d.clamped for d in datasets),
        skipped=sum(d.skipped for d in datasets),
        notes=[note for d in datasets for note in d.notes],
    )


def merged_classes(lists: Sequence[ClassList], names: Sequence[str]) -> ClassList:
    """Merge class lists by name: the first one as it is, then the classes that it lacks.

    Args:
        lists: of the datasets.
        names: of the datasets, for messages.

    Raises:
        DetrkitError: a class that is a thing in one list and stuff in another.
    """
    first = lists[0]
    class_names, ids = list(first.names), list(first.ids)
    things = [first.is_thing(label) for label in range(len(first))]
    label_of = dict(first.used)
    for other, name in zip(lists[1:], names[1:], strict=True):
        for class_name, label in other.used.items():
            thing = other.is_thing(label)
            if class_name in label_of:
                if things[label_of[class_name]] != thing:
                    words = ("a thing", "stuff") if thing else ("stuff", "a thing")
                    raise DetrkitError(f"{name}: {class_name!r} is {words[0]} here and {words[1]} in {names[0]}")
                continue
            label_of[class_name] = len(class_names)
            class_names.append(class_name)
            ids.append(max(ids, default=-1) + 1)
            things.append(thing)
    marks = None if all(other.things is None for other in lists) else tuple(things)
    return ClassList(tuple(class_names), tuple(ids), marks, first.unused)


@dataclass(frozen=True)
class NearName:
    """A class of one dataset whose name is nearly that of a class of another, so that they are two classes.

    Attributes:
        name, source: of the class, and index of its dataset.
        other, other_source: likewise of the class that came before it.
    """

    name: str
    source: int
    other: str
    other_source: int


def near_names(lists: Sequence[ClassList]) -> list[NearName]:
    """Find classes of the later lists that earlier ones lack but have a similar name for, such as "Car" and "car"."""
    found: list[NearName] = []
    source_of: dict[str, int] = dict.fromkeys(lists[0].used, 0)
    for source, classes in enumerate(lists[1:], 1):
        new = [name for name in classes.used if name not in source_of]
        before = [name for name in source_of if name not in classes.used]  # one that has both means two classes
        found += [NearName(a, source, b, source_of[b]) for a, b in nearest_names(new, before).items()]
        source_of |= dict.fromkeys(new, source)
    return found


def _check_kinds(datasets: Sequence[Dataset]) -> None:
    """Check that datasets are of one kind.

    Raises:
        DetrkitError: one is panoptic and another is not, or one has masks and another has not.
    """
    first = datasets[0]
    for other in datasets[1:]:
        if other.panoptic != first.panoptic:
            panoptic, plain = (first, other) if first.panoptic else (other, first)
            raise DetrkitError(
                f"{panoptic.path} is panoptic and {plain.path} is not: their classes cannot be merged; the instances "
                'of a folder that has both are the layout "coco"'
            )
        if other.with_masks != first.with_masks:
            with_masks, without = (first, other) if first.with_masks else (other, first)
            raise DetrkitError(f"{with_masks.path} is open with masks and {without.path} without: open both alike")


def _label_table(classes: ClassList, label_of: Mapping[str, int]) -> np.ndarray:
    """Return (C,) the merged label of each label of a dataset; objects have none that is unused."""
    return np.array([label_of.get(name, -1) for name in classes.names], np.int64)


def _next_id(records: Sequence[Record]) -> int:
    return max((record.image_id for record in records), default=-1) + 1
