"""Writer of a split as CSV, with the columns of TensorFlow's tutorials and those of crowd and area."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from detrkit.data.dataset import Dataset
from detrkit.data.readers.csv_tables import split_of
from detrkit.data.tools.placing import UNWRITABLE, ImagePlacer
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import below

_HEADER = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax", "iscrowd", "area")


def write_csv(root: Path, split: str, dataset: Dataset, placer: ImagePlacer) -> list[str]:
    """Write {split}.csv and the images in images/{split}; a row without a box for an image without objects.

    Returns:
        The names of the images, in order.

    Raises:
        DetrkitError: an image that cannot be read or placed.
        OSError: a file that cannot be written.
    """
    folder = below(root / "images", split, where="name of a split")
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    with below(root, f"{split}.csv", where="name of a split").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_HEADER)
        for record in dataset.records:
            names.append(placer.place(record, folder))
            image = (names[-1], record.width, record.height)
            columns = (record.boxes.tolist(), record.labels.tolist(), record.crowd.tolist(), record.areas.tolist())
            for box, label, crowd, area in zip(*columns, strict=True):
                writer.writerow((*image, dataset.classes.names[label], *box, int(crowd), area))
            if not len(record.labels):
                writer.writerow((*image, *[""] * 7))
    return names


def finish_csv(root: Path, splits: Sequence[str], classes: ClassList) -> None:
    """Write classes.txt, which keeps the order of the classes."""
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes.names), encoding="utf-8")


def refuse_csv(splits: Sequence[str], classes: Sequence[ClassList], source: str) -> None:
    """Check that CSV can hold the splits and the names of their classes.

    Raises:
        DetrkitError: it cannot.
    """
    for split in splits:
        if split_of(f"{split}.csv") != split:
            raise DetrkitError(f"{source}: a split cannot be called {split} in CSV; rename it")
    for some in classes:
        for category, name in zip(some.ids, some.names, strict=True):
            if UNWRITABLE.search(name):
                raise DetrkitError(
                    f"{source}: the name {name[:80]!r} of category {category} holds a line break or a control "
                    "character, which a list of classes cannot hold; rename the class"
                )
