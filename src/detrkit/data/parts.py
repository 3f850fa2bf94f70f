"""Parts of a split, for datasets that are not divided: "all[:20%]" is a fifth of its images, "all[20%:]" the others."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from detrkit.data.dataset import Dataset
from detrkit.data.sample import Record
from detrkit.utils.errors import DetrkitError

HELD_OUT = 20  # percent of the images that are kept to evaluate on where a dataset has no split for it
_PART = re.compile(r"(?P<split>[^\[\]]*)\[(?:(?P<start>\d{1,3})%)?:(?:(?P<end>\d{1,3})%)?\]")


class Part(NamedTuple):
    """Part of a split: the images from `start` to `end` percent, in an order that depends on their file names alone.

    The order is that of a hash of the names, so that neighbors, such as frames of a video, do not stay together, and
    the same images belong to a part wherever the dataset lies. Images that are added move others at its borders only.
    """

    start: int
    end: int

    def __str__(self) -> str:
        start, end = (f"{self.start}%" if self.start else ""), (f"{self.end}%" if self.end < 100 else "")
        return f"[{start}:{end}]"

    def records(self, records: Sequence[Record]) -> list[Record]:
        """Return the records of the part, in the order given."""
        order = sorted(range(len(records)), key=lambda i: (_hash(records[i]), records[i].image_id))
        first, last = (round(len(records) * percent / 100) for percent in (self.start, self.end))
        return [records[i] for i in sorted(order[first:last])]

    def of(self, dataset: Dataset) -> Dataset:
        """Return the part of an open dataset."""
        chosen = {id(record) for record in self.records(dataset.records)}
        part = dataset.subset([i for i, record in enumerate(dataset.records) if id(record) in chosen])
        part.split = f"{dataset.split or 'all'}{self}"
        return part


def split_and_part(split: str | None) -> tuple[str | None, Part | None]:
    """Read the name of a split: "train[:20%]" is the split "train" and its first fifth.

    Args:
        split: the name; None, or nothing before the bracket, for the only split.

    Returns:
        The name without the part, and the part, or None for all of the split.

    Raises:
        DetrkitError: a part that is none, such as "[50%:20%]".
    """
    found = None if split is None else _PART.fullmatch(split)
    if found is None:
        return split, None
    part = Part(int(found["start"] or 0), int(found["end"] or 100))
    if not part.start < part.end <= 100:
        raise DetrkitError(f"split {split!r}: a part goes from a smaller to a larger percentage, such as [:20%]")
    return found["split"] or None, part


def divided(split: str) -> tuple[str, str]:
    """Return the names of the parts of a split to train and to evaluate on."""
    return f"{split}{Part(HELD_OUT, 100)}", f"{split}{Part(0, HELD_OUT)}"


def _hash(record: Record) -> bytes:
    return hashlib.blake2b(record.file.name.encode(errors="surrogateescape"), digest_size=8).digest()
