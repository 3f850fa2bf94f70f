"""`Dataset`: the images of one split as a sequence of Samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrkit.data.images import decode
from detrkit.data.panoptic import read_id_map
from detrkit.data.sample import Record, Sample
from detrkit.data.segmentations import object_masks, panoptic_file
from detrkit.structures.classes import ClassList
from detrkit.structures.panoptic import VOID
from detrkit.structures.rle import encode_masks
from detrkit.utils.errors import DetrkitError
from detrkit.utils.vision import tv_tensors


class Dataset:
    """Images of one split, as a sequence of Samples; indexing decodes.

    Attributes:
        records: what the files say about each image, in order.
        classes: names and category ids of the labels.
        name: of the dataset (its folder).
        split: as the dataset names it.
        path: the folder or file that was opened.
        layout: name of the format, such as "coco".
        with_masks: whether samples have masks.
        dropped: number of boxes that were left out for having no area.
        clamped: number of boxes that were cut at the border of their image.
        skipped: number of images that were left out as unusable.
        notes: remarks on what was handled when the dataset was opened, one line each.
    """

    def __init__(
        self,
        records: Sequence[Record],
        classes: ClassList,
        *,
        name: str = "",
        split: str = "",
        path: Path = Path(),
        layout: str = "",
        with_masks: bool = False,
        dropped: int = 0,
        clamped: int = 0,
        skipped: int = 0,
        notes: Sequence[str] = (),
    ) -> None:
        self.records = list(records)
        self.classes = classes
        self.name = name
        self.split = split
        self.path = path
        self.layout = layout
        self.with_masks = with_masks
        self.dropped = dropped
        self.clamped = clamped
        self.skipped = skipped
        self.notes = tuple(notes)
        self._pixels: Tensor | None = None
        self._offsets: list[int] = []

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        objects = sum(int((~r.crowd).sum()) for r in self.records)
        return f"Dataset({self.name} {self.split}: {len(self)} images, {objects} objects, {len(self.classes)} classes)"

    @property
    def class_names(self) -> list[str]:
        """Names of the labels 0, 1, ..., in order."""
        return list(self.classes.names)

    @property
    def evaluation_notes(self) -> tuple[str, ...]:
        """`notes`, and a line about the boxes of the files that are not evaluated."""
        if not self.dropped:
            return self.notes
        return (
            *self.notes,
            f"{self.path}: split {self.split}: {self.dropped} boxes have no area in their image and are left out: "
            "nothing could match them (evaluated from the json itself they count as missed)",
        )

    @property
    def panoptic(self) -> bool:
        """True if every pixel belongs to a segment, of things or of stuff, or is void."""
        return self.layout == "coco-panoptic"

    def __getitem__(self, index: int) -> Sample:
        """Return the decoded image with its objects, crowd left out; errors as in `load`."""
        return self.load(index)

    def load(self, index: int, *, at_least: tuple[int, int] | None = None) -> Sample:
        """Decode an image and return it with its objects, crowd left out.

        Args:
            index: of the image.
            at_least: (height, width) in pixels to which the sample will be made smaller: a JPEG may then be decoded
                at a fraction of its size (`read_rgb`). Boxes and masks keep the size of the file, which is the canvas
                of the boxes; `resize` brings image, boxes and masks together.

        Raises:
            IndexError: no such image.
            DetrkitError: the image (or its panoptic PNG) is missing, damaged or not of the size its annotations say.
        """
        record = self.records[index]
        size = record.height, record.width
        keep = np.flatnonzero(~record.crowd)
        masks = object_masks(record, keep).as_subclass(tv_tensors.Mask) if self.with_masks else None
        boxes = torch.from_numpy(record.boxes[keep].astype(np.float32)).reshape(-1, 4)
        return Sample(
            image=self.image(index, at_least=at_least),
            boxes=tv_tensors.BoundingBoxes(boxes, device=boxes.device, format="XYXY", canvas_size=size),
            labels=torch.from_numpy(record.labels[keep]),
            masks=masks,
            image_id=record.image_id,
            orig_size=size,
            file=record.file,
        )

    def image(self, index: int, *, at_least: tuple[int, int] | None = None) -> tv_tensors.Image:
        """Return (3, H, W) uint8 RGB: whole from memory after `cache_images`, else decoded (`at_least`: see `load`)."""
        record = self.records[index]
        if self._pixels is None:
            return decode(record.file, (record.height, record.width), at_least=at_least)
        start = self._offsets[index % len(self)]
        flat = self._pixels[start : start + record.height * record.width * 3]
        # A copy, so that nothing done to a sample reaches the cache: 0.3 ms per COCO image, where decoding takes 3 ms.
        return flat.view(record.height, record.width, 3).clone().permute(2, 0, 1).as_subclass(tv_tensors.Image)

    @property
    def decoded_bytes(self) -> int:
        """Memory that all images take once decoded."""
        return sum(3 * r.height * r.width for r in self.records)

    def cache_images(self) -> None:
        """Decode every image once, now, and keep it in memory.

        One flat buffer instead of a tensor per image: worker processes share it by fork without copying, since no
        reference counts live in its pages.
        """
        if self._pixels is not None:
            return
        pixels = torch.empty(self.decoded_bytes, dtype=torch.uint8)
        offsets = [0, *accumulate(3 * r.height * r.width for r in self.records)][: len(self)]

        def fill(index: int) -> None:
            record = self.records[index]
            target = pixels[offsets[index] :][: 3 * record.height * record.width]
            image = decode(record.file, (record.height, record.width))
            target.view(record.height, record.width, 3).copy_(image.permute(1, 2, 0))

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding releases the GIL
            list(pool.map(fill, range(len(self))))
        self._pixels, self._offsets = pixels, offsets

    def subset(self, indices: Sequence[int]) -> Dataset:
        """Return the dataset with only the images at `indices`, in that order (to overfit a few, for instance)."""
        return self._with([self.records[i] for i in indices], self.classes)

    def without_masks(self) -> Dataset:
        """Return a copy of the dataset that loads no masks, which take time to decode."""
        other = copy(self)
        other.with_masks = False
        return other

    def things(self) -> Dataset:
        """Return the dataset without stuff: only classes of things, labels renumbered; pixels of stuff become void.

        COCO's AP is defined on things only: evaluate with `dataset.things().ground_truth()`.
        """
        is_thing = np.array([self.classes.is_thing(label) for label in range(len(self.classes))], bool)
        chosen = np.flatnonzero(is_thing)
        classes = ClassList(
            tuple(self.classes.names[k] for k in chosen),
            tuple(self.classes.ids[k] for k in chosen),
            (True,) * len(chosen),
            frozenset(k for k, label in enumerate(chosen.tolist()) if self.classes.is_unused(label)),
        )
        label_of = np.cumsum(is_thing) - 1
        records = []
        for record in self.records:
            selected = _selected(record, np.flatnonzero(is_thing[record.labels]))
            records.append(replace(selected, labels=label_of[selected.labels]))
        return self._with(records, classes)

    def _with(self, records: Sequence[Record], classes: ClassList) -> Dataset:
        """Return a dataset like this one, with other records and classes."""
        return Dataset(
            records,
            classes,
            name=self.name,
            split=self.split,
            path=self.path,
            layout=self.layout,
            with_masks=self.with_masks,
            dropped=self.dropped,
            clamped=self.clamped,
            skipped=self.skipped,
            notes=self.notes,
        )

    def ground_truth(self) -> dict[str, Any]:
        """Return the annotations as a COCO json dict for evaluation, with crowd and the dataset's own category ids.

        Boxes and areas are those of the files, unclamped as in COCO's own evaluation. A box without area is left out:
        nothing can match it, so even perfect detections would not reach AP 1. Annotation ids are renumbered from 1
        when one of them is 0, which COCO's matching takes for "not matched". The PNGs of a panoptic dataset with masks
        are decoded now.

        Raises:
            DetrkitError: a panoptic PNG that cannot be read.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        renumber = any((r.annotation_ids == 0).any() for r in self.records)
        for record in self.records:
            name = record.file.name
            images.append({"id": record.image_id, "file_name": name, "height": record.height, "width": record.width})
            xywh = record.annotated
            if not len(xywh):
                xywh = np.concatenate([record.boxes[:, :2], record.boxes[:, 2:] - record.boxes[:, :2]], 1)
            segmentations = record.segmentations
            if self.with_masks and record.panoptic_file is not None:
                segmentations = encode_masks(object_masks(record, np.arange(len(record.labels))))
            for k, box in enumerate(xywh.tolist()):
                annotation = {
                    "id": len(annotations) + 1 if renumber else int(record.annotation_ids[k]),
                    "image_id": record.image_id,
                    "category_id": self.classes.ids[record.labels[k]],
                    "bbox": box,
                    "area": float(record.areas[k]),
                    "iscrowd": int(record.crowd[k]),
                }
                if segmentations and segmentations[k]:
                    annotation["segmentation"] = segmentations[k]
                annotations.append(annotation)
        categories = [{"id": i, "name": n} for i, n in zip(self.classes.ids, self.classes.names, strict=True)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def panoptic_ground_truth(self) -> tuple[dict[str, Any], Callable[[int], np.ndarray]]:
        """Return the segments for panoptic evaluation, with crowd and the dataset's own category ids.

        Returns:
            A COCO panoptic json dict, and a function from an image id to its (H, W) int32 map of segment ids, decoded
            when called: 0 is void, also where the PNG has an id that the dict does not list.

        Raises:
            DetrkitError: the dataset is not panoptic; from the function: a PNG that cannot be read.
        """
        if not self.panoptic:
            raise DetrkitError(f"{self.path} has no panoptic annotations: open a folder with panoptic_*.json and PNGs")
        by_id = {record.image_id: record for record in self.records}

        def id_map(image_id: int) -> np.ndarray:
            record = by_id[image_id]
            ids = read_id_map(panoptic_file(record), (record.height, record.width))
            return np.where(np.isin(ids, record.segment_ids), ids, np.int32(VOID))

        is_thing = [self.classes.is_thing(label) for label in range(len(self.classes))]
        classes = zip(self.classes.ids, self.classes.names, is_thing, strict=True)
        ground_truth = {
            "images": [
                {"id": r.image_id, "file_name": r.file.name, "height": r.height, "width": r.width} for r in self.records
            ],
            "annotations": [self._segments_info(r) for r in self.records],
            "categories": [{"id": i, "name": name, "isthing": int(thing)} for i, name, thing in classes],
        }
        return ground_truth, id_map

    def _segments_info(self, record: Record) -> dict[str, Any]:
        """Return the entry of an image in a COCO panoptic json."""
        columns = (record.segment_ids, record.labels, record.annotated, record.areas, record.crowd)
        segments = [
            {"id": i, "category_id": self.classes.ids[label], "bbox": box, "area": int(area), "iscrowd": int(crowd)}
            for i, label, box, area, crowd in zip(*(column.tolist() for column in columns), strict=True)
        ]
        name = panoptic_file(record).name
        return {"image_id": record.image_id, "file_name": name, "segments_info": segments}


def _selected(record: Record, keep: np.ndarray) -> Record:
    """Return the record with only the objects at the indices `keep`."""
    columns = ("boxes", "labels", "crowd", "areas", "annotation_ids", "annotated", "segment_ids")
    values = {name: getattr(record, name) for name in columns}
    selected: dict[str, Any] = {name: value[keep] if len(value) else value for name, value in values.items()}
    selected["segmentations"] = [record.segmentations[k] for k in keep] if record.segmentations else []
    return replace(record, **selected)


def __getattr__(name: str) -> Any:
    if name == "open_dataset":  # which was defined here
        from detrkit.data.opening import open_dataset

        return open_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
