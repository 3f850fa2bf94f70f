"""`open_dataset`: a folder of any layout, or data in memory, as a sequence of Samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detrkit.data.dataset import Dataset
from detrkit.data.images import size_mismatch
from detrkit.data.memory import check_not_in_memory, chosen_open, is_path, memory_reader, name_in_memory, open_names
from detrkit.data.parts import split_and_part
from detrkit.data.readers import READERS, find_layout, match_split
from detrkit.data.readers.base import Reader
from detrkit.data.readers.coco_panoptic import CocoPanopticReader
from detrkit.data.readers.csv_columns import Form
from detrkit.data.sample import Record
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.utils.layouts import Layout
from detrkit.utils.names import full_path


def open_dataset(
    path: str | Path | Any,
    *,
    split: str | None = None,
    layout: Layout | None = None,
    masks: bool = False,
    ids: Literal["contiguous", "official"] = "contiguous",
    unusable: Literal["error", "skip"] = "error",
    more_images: Sequence[Path] = (),
    root: str | Path | None = None,
    box_format: Form | None = None,
) -> Dataset:
    """Open a dataset; no image is decoded yet.

    Data in memory is opened like files: a pandas DataFrame with the columns of a CSV of boxes, a `datasets.Dataset` or
    `DatasetDict` of Hugging Face, or a dict of split -> one of these.

    Boxes are clamped to their image and those without area are left out, both counted in the result; images without
    objects stay, as negatives.

    Args:
        path: the dataset's folder, or a COCO json, data.yaml, parquet or CSV file; or the data in memory.
        split: such as "train"; also finds train2017. May be left out where there is only one. "train[:20%]" is a fifth
            of its images, "train[20%:]" the others.
        layout: name of the reader to use; by default the one that recognizes the files. A folder with both instances
            and panoptic annotations is "coco-panoptic" with `masks`, else "coco".
        masks: whether samples have masks (COCO, COCO panoptic, or YOLO polygons).
        ids: "contiguous": labels 0, 1, ... in the order of the category ids; "official": labels are the category ids
            themselves, as in the published models.
        unusable: handling of images that are missing, unreadable or of another size than their annotations say.
            "error": raise when one is decoded; "skip": leave them out now, counted in the result (reads the header of
            every image).
        more_images: folders to look for the images in, after the usual ones; for the layout "coco-panoptic", whose
            images are those of another dataset.
        root: of data in memory: the folder that paths of images are relative to; by default the working directory.
        box_format: of data in memory, where no names of columns say it: "xywh" (the default), "xyxy" or "cxcywh".

    Raises:
        DetrkitError: nothing recognized, no such split, or an error in the files; one line that names the place.
    """
    if ids not in ("contiguous", "official"):
        raise DetrkitError(f'ids={ids!r}: choose "contiguous" or "official"')
    if unusable not in ("error", "skip"):
        raise DetrkitError(f'unusable={unusable!r}: choose "error" or "skip"')
    split, part = split_and_part(split)
    if not is_path(path) and (dataset := chosen_open(path, split, masks=masks)) is not None:
        return dataset if part is None else part.of(dataset)
    reader, path = find_reader(path, layout, masks=masks, root=root, box_format=box_format)
    chosen = match_split(split, reader.splits(path), path)
    if isinstance(reader, CocoPanopticReader):
        reading = reader.read(path, chosen, masks=masks, more_images=more_images)
    else:
        reading = reader.read(path, chosen, masks=masks)
    classes, records, findings = reading
    if part is not None:
        records, chosen = part.records(records), f"{chosen}{part}"
    listed = len(records)
    if unusable == "skip":
        with ThreadPoolExecutor(8) as pool:  # headers, often on a network disk
            reasons = list(pool.map(lambda r: size_mismatch(r.file, (r.height, r.width)), records))
        records = [record for record, reason in zip(records, reasons, strict=True) if reason is None]
    if not records:
        raise DetrkitError(f"{path}: split {chosen} has no image" + (" that can be used" if listed else ""))
    if ids == "official":
        table = np.array(classes.ids, np.int64)
        things = None if classes.things is None else dict(zip(classes.ids, classes.things, strict=True))
        classes = ClassList.official(dict(zip(classes.ids, classes.names, strict=True)), things)
        records = [replace(r, labels=table[r.labels]) for r in records]
    folder = path if path.is_dir() or reader.name not in READERS else path.parent
    return Dataset(
        records,
        classes,
        name=folder.parent.name if folder.name == "annotations" else folder.name,
        split=chosen,
        path=path,
        layout=reader.name,
        with_masks=masks,
        dropped=findings.dropped,
        clamped=findings.clamped,
        skipped=listed - len(records),
        notes=[
            *findings.notes,
            *(f"{path}: split {chosen}: {reason}" for reason in nothing_left(records, findings.dropped)),
        ],
    )


def find_reader(
    data: str | Path | Any,
    layout: Layout | None = None,
    *,
    masks: bool = False,
    root: str | Path | None = None,
    box_format: Form | None = None,
) -> tuple[Reader, Path]:
    """Return the reader for a dataset, in files or in memory, and its path; of data in memory its name in messages.

    Raises:
        DetrkitError: nothing recognized, or arguments that do not go together.
    """
    if is_path(data):
        check_not_in_memory(data)
        if root is not None or box_format is not None:
            name = "root" if root is not None else "box_format"
            raise DetrkitError(f"{os.fspath(data)}: {name} is for data in memory: files say it themselves")
        path = full_path(data)
        return READERS[find_layout(path, layout, masks=masks)], path
    name = name_in_memory(data)
    if layout is not None:
        raise DetrkitError(f"{name}: layout={layout!r} is for files: leave it out")
    if box_format not in (None, "xywh", "xyxy", "cxcywh"):
        raise DetrkitError(f'{name}: box_format={box_format!r}: choose "xywh", "xyxy" or "cxcywh"')
    folder = None if root is None else full_path(root)
    if folder is not None and not folder.is_dir():
        raise DetrkitError(f"{name}: root={str(root)!r}: there is no such folder")
    return memory_reader(data, root=folder, box_format=box_format), Path(name)


def split_names(data: str | Path | Any, layout: Layout | None = None, *, masks: bool = False) -> tuple[list[str], Path]:
    """Return the names of the splits of a dataset, in files or in memory, and its path for messages.

    Raises:
        DetrkitError: nothing recognized, or the splits cannot be listed.
    """
    if not is_path(data) and (names := open_names(data)) is not None:
        return names, Path(name_in_memory(data))
    reader, path = find_reader(data, layout, masks=masks)
    return reader.splits(path), path


def first_split(path: str | Path, layout: Layout | None = None, *, masks: bool = False) -> tuple[str, list[str]]:
    """Return the split of a dataset to look at first, the one to train on if there is one, and the other splits.

    Raises:
        DetrkitError: nothing recognized, or the splits cannot be listed.
    """
    reader, path = find_reader(path, layout, masks=masks)
    names = reader.splits(path)
    if not names:
        raise DetrkitError(f"{path}: has no split")
    try:
        chosen = match_split("train", names, path)
    except DetrkitError:  # none, or several
        chosen = next((name for name in names if name.startswith("train")), names[0])
    return chosen, [name for name in names if name != chosen]


def nothing_left(records: Sequence[Record], dropped: int) -> list[str]:
    """Return one line if no object is left of what a split annotates: to training, every image is background.

    Args:
        records: of the split.
        dropped: number of boxes that were left out.
    """
    crowd = sum(int(record.crowd.sum()) for record in records)
    if any(not record.crowd.all() for record in records) or not crowd + dropped:
        return []
    return [f"no object is left: {crowd} crowd regions, {dropped} boxes without area; every image is background"]
