"""Fingerprints of a run's data: short digests that show whether a dataset is still the same, wherever it is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detrkit.data import Dataset
from detrkit.engine.splits import Splits
from detrkit.structures.classes import ClassList

# split -> number of images, and digests of their files, sizes, boxes and labels
Fingerprint = dict[str, dict[str, Any] | None]
_PARTS = {"files": "file names", "sizes": "sizes of images", "boxes": "boxes", "labels": "labels"}


def fingerprint(splits: Splits) -> Fingerprint:
    """Compute the fingerprint of the training and the validation split, as plain values for last.pt.

    Takes 0.5 s for COCO's 118,000 images.
    """
    return {"train": _of(splits.train), "val": None if splits.val is None else _of(splits.val)}


def _of(dataset: Dataset) -> dict[str, Any]:
    """Compute digests of the file names (without folders), image sizes, boxes and labels, in dataset order."""
    records = dataset.records
    counts = np.array([len(r.labels) for r in records], "<i8")
    none = np.zeros(0)
    return {
        "images": len({r.image_id for r in records}),
        "files": _digest("\0".join(r.file.name for r in records).encode("utf-8", "surrogatepass")),
        "sizes": _digest(np.array([(r.height, r.width) for r in records], "<i8").tobytes()),
        "boxes": _digest(
            counts.tobytes(), np.concatenate([none, *(r.boxes.reshape(-1) for r in records)]).astype("<f8").tobytes()
        ),
        "labels": _digest(
            counts.tobytes(),
            np.concatenate([none, *(r.labels for r in records)]).astype("<i8").tobytes(),
            np.concatenate([none, *(r.crowd for r in records)]).astype(np.uint8).tobytes(),
        ),
    }


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]


def class_difference(before: ClassList, now: ClassList) -> str | None:
    """Describe the first difference between two class lists; return None if they are equal."""
    for label, (old, new) in enumerate(zip(before.names, now.names, strict=False)):
        if old != new:
            return f"class {label} was {old}, now it is {new}"
    if len(before) != len(now):
        longer, word = (now, "new") if len(now) > len(before) else (before, "gone")
        name = longer.names[min(len(now), len(before))]
        return f"there were {len(before)} classes, now there are {len(now)} ({name} is {word})"
    for label, (name, first, second) in enumerate(zip(now.names, before.ids, now.ids, strict=True)):
        if first != second:
            return f"class {label} ({name}) had the id {first}, now it has {second}"
    return None


def data_difference(before: Mapping[str, Any] | None, now: Fingerprint) -> str | None:
    """Describe the first difference between the data of a run and of its continuation; return None without one.

    Args:
        before: from last.pt; None (unknown) if an earlier version wrote it.
        now: of the continuation.
    """
    for split, verb in (("train", "trained"), ("val", "evaluated")):
        old, new = (before or {}).get(split), now.get(split)
        if old is None or new is None:
            continue  # whether there is a validation split is a setting
        if old["images"] != new["images"]:
            return f"{old['images']} images were {verb} on, now there are {new['images']}"
        others = [words for part, words in _PARTS.items() if old[part] != new[part]]
        if others:
            return f"the {new['images']} images that were {verb} on have other {_listed(others)} now"
    return None


def differing_data(first: Fingerprint, other: Fingerprint) -> tuple[str, str, str] | None:
    """Find the first difference between the data of two processes: the split and what each has; None without one."""
    for split in first:
        one, two = first[split], other.get(split)
        if one == two:
            continue
        if one is None or two is None:
            words = ["nothing" if part is None else f"{part['images']} images" for part in (one, two)]
        elif one["images"] != two["images"]:
            words = [f"{part['images']} images" for part in (one, two)]
        else:
            others = _listed([words for part, words in _PARTS.items() if one[part] != two[part]])
            words = [f"{one['images']} images", f"other {others}"]
        return split, words[0], words[1]
    return None


def fingerprint_of(dataset: Dataset) -> Fingerprint:
    """Compute the fingerprint of a dataset that is evaluated on."""
    return {dataset.split or "all": _of(dataset)}


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
