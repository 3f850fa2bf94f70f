"""COCO ground truth as columns, checked once when it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import hotcoco
import numpy as np

from detrkit.evaluation.positions import IdPositions
from detrkit.structures.classes import ClassList
from detrkit.utils.documents import parse_json, read_bytes, shown
from detrkit.utils.errors import DetrkitError

ClassNames = ClassList | Mapping[int, str] | Sequence[str]


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        DetrkitError: the file is missing, unreadable or not JSON; the message names it.
    """
    return parse_json(read_bytes(Path(path)), str(path))


def identity_order(value: int | str) -> tuple[bool, int | str]:
    """Return a sort key for ids: numbers in their order (as pycocotools evaluates them), then text."""
    return isinstance(value, str), value


class EntryColumns(NamedTuple):
    """Annotations or results as columns.

    Attributes:
        image: (N,) int64 position of each entry's image.
        category: (N,) int64 position of its category.
        boxes: (N, 4) float64 xywh pixels; zeros if they were not read.
    """

    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray


def entry_columns(
    annotations: Sequence[Any], source: str, images: Mapping[Any, int], categories: Mapping[Any, int], *, boxes: bool
) -> EntryColumns:
    """Check annotations or results, and convert them to columns.

    Args:
        annotations: the entries, with image_id, category_id and bbox.
        source: the file, for messages.
        images: image id -> position.
        categories: category id -> position.
        boxes: read the boxes, too.

    Raises:
        DetrkitError: an entry lacks a field, holds a wrong one, or names an unknown image or category.
    """
    try:  # valid files end here: no check per entry, 10 times faster than the checks below
        image = np.array([images[a["image_id"]] for a in annotations], np.int64)
        category = np.array([categories[a["category_id"]] for a in annotations], np.int64)
        if not boxes:
            return EntryColumns(image, category, np.zeros((len(annotations), 4)))
        sides = [a["bbox"] for a in annotations]
        if set(map(type, sides)) <= {list, tuple} and set(map(len, sides)) <= {4}:
            flat = np.fromiter(chain.from_iterable(sides), np.float64, 4 * len(sides))  # half the time of an array
        else:
            flat = np.array(sides, np.float64)
        box = flat.reshape(len(sides), 4)
        if np.isfinite(box).all() and (box[:, 2:] >= 0).all():
            return EntryColumns(image, category, box)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    for i, entry in enumerate(annotations):
        _check_entry(f"{source}: entry {i}", entry, images, categories, boxes=boxes)
    raise DetrkitError(f"{source}: the boxes are not lists of 4 numbers; write [x, y, width, height] in pixels")


def _check_entry(
    where: str, entry: Any, images: Mapping[Any, int], categories: Mapping[Any, int], *, boxes: bool
) -> None:
    """Check an annotation or result.

    Raises:
        DetrkitError: the entry is malformed; the message names the entry and the field.
    """
    if not isinstance(entry, Mapping):
        raise DetrkitError(f"{where}: expected an object with image_id and category_id, found {type(entry).__name__}")
    for field, ids, what in (("image_id", images, "image"), ("category_id", categories, "category")):
        if field not in entry:
            raise DetrkitError(f"{where}: field {field} is missing; add it")
        value = entry[field]
        if isinstance(value, (list, dict)) or value not in ids:
            similar = next((k for k in ids if str(k) == str(value)), None)
            hint = f"; the ground truth has it as {similar!r}" if similar is not None else _id_range(ids)
            raise DetrkitError(
                f"{where}: {field} {shown(value)} is no {what} of the ground truth{hint}; "
                "check that both files belong to the same dataset"
            )
    if boxes:
        box = entry.get("bbox")
        try:
            numbers = np.array(box, np.float64)
        except (TypeError, ValueError, OverflowError):
            numbers = np.zeros(0)
        if numbers.shape != (4,):
            raise DetrkitError(f"{where}: bbox is {shown(box)}; write [x, y, width, height] in pixels")
        if not np.isfinite(numbers).all():
            raise DetrkitError(f"{where}: bbox {shown(box)} holds NaN or infinity; the box must be finite")
        if (numbers[2:] < 0).any():
            raise DetrkitError(f"{where}: bbox {shown(box)} has a negative size; write [x, y, width, height] in pixels")


def _id_range(ids: Mapping[Any, int]) -> str:
    """Describe the range of ids for a message: it shows whether a program counts classes from 0."""
    numbers = [k for k in ids if isinstance(k, int)]
    return f", whose {len(numbers)} ids are {min(numbers)} to {max(numbers)}" if numbers else ""


@dataclass(frozen=True)
class DetectionGroundTruth(IdPositions):
    """Annotated objects as columns; images and categories are numbered by their position.

    The evaluator works on positions, so ids of any kind do no harm: text ids, gaps, and the annotation id 0 that
    pycocotools takes for "no match".

    Attributes:
        source: the file, to name it in messages.
        image_ids: the dataset's ids, ascending.
        sizes: per image (height, width) in pixels, (0, 0) where the file has none.
        category_ids: the dataset's ids, ascending.
        names: of the categories, unique.
        image: (N,) position in `image_ids` of each object's image.
        category: (N,) position in `category_ids`.
        boxes: (N, 4) xywh pixels.
        areas: (N,) square pixels as annotated (COCO: of the segment), else of the box.
        crowd: (N,) bool: regions in which detections are neither true nor false positives.
        segmentations: N polygon lists or RLEs, or None unless the file has one for each object.
    """

    source: str
    image_ids: tuple[int | str, ...]
    sizes: tuple[tuple[int, int], ...]
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    segmentations: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def load(cls, source: DetectionGroundTruth | str | Path | Mapping[str, Any]) -> DetectionGroundTruth:
        """Read a COCO instances file or its content; return a DetectionGroundTruth as it is.

        Raises:
            DetrkitError: with the file, the field and the fix.
        """
        if isinstance(source, DetectionGroundTruth):
            return source
        name = "ground truth" if isinstance(source, Mapping) else str(source)
        content = source if isinstance(source, Mapping) else read_json(source)
        for key in ("images", "annotations", "categories"):
            if not isinstance(content, Mapping) or not isinstance(content.get(key), (list, tuple)):
                raise DetrkitError(f"{name}: no list {key!r}; COCO ground truth has images, annotations and categories")
        images = by_id(content["images"], f"{name}: images")
        categories = by_id(content["categories"], f"{name}: categories")
        annotations = content["annotations"]
        image, category, boxes = entry_columns(
            annotations,
            f"{name}: annotations",
            {k: i for i, k in enumerate(images)},
            {k: i for i, k in enumerate(categories)},
            boxes=True,
        )
        try:
            areas = np.array([a.get("area", b[2] * b[3]) for a, b in zip(annotations, boxes, strict=True)], np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise DetrkitError(
                f"{name}: annotations: an area is no number ({str(error)[:120]}); give square pixels"
            ) from error
        if not np.isfinite(areas).all():
            bad = int(np.flatnonzero(~np.isfinite(areas))[0])
            raise DetrkitError(f"{name}: annotations: entry {bad}: area {areas[bad]} is not finite; give square pixels")
        segmentations = [a.get("segmentation") for a in annotations]
        return cls(
            source=name,
            image_ids=tuple(images),
            sizes=tuple(_size(i, f"{name}: images: id {shown(k)}") for k, i in images.items()),
            category_ids=tuple(categories),
            names=unique_names({k: str(c.get("name", f"category {k}")) for k, c in categories.items()}),
            image=image,
            category=category,
            boxes=boxes,
            areas=areas,
            crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
            segmentations=segmentations if all(segmentations) else None,
        )

    def renamed(self, class_names: ClassNames | None) -> DetectionGroundTruth:
        """Replace the category names: by a ClassList, id -> name, or a list in the order of the ids.

        Raises:
            DetrkitError: a list whose length is not the number of categories.
        """
        if class_names is None:
            return self
        if isinstance(class_names, ClassList):
            class_names = dict(zip(class_names.ids, class_names.names, strict=True))
        if not isinstance(class_names, Mapping):
            if len(class_names) != len(self.category_ids):
                raise DetrkitError(
                    f"{self.source}: {len(self.category_ids)} categories but {len(class_names)} class names"
                )
            class_names = dict(zip(self.category_ids, class_names, strict=True))
        current_names = dict(zip(self.category_ids, self.names, strict=True))
        return replace(self, names=unique_names({k: class_names.get(k, name) for k, name in current_names.items()}))

    def only(self, image_ids: Iterable[int | str]) -> DetectionGroundTruth:
        """Select some of the images.

        Raises:
            DetrkitError: an id that the ground truth does not have.
        """
        selected = set(image_ids)
        unknown = selected - self.image_position.keys()
        if unknown:
            raise DetrkitError(f"{self.source}: no image {next(iter(unknown))!r}; check that the ids are the dataset's")
        positions = np.array([i for i, value in enumerate(self.image_ids) if value in selected], np.int64)
        keep = np.isin(self.image, positions)
        segments = self.segmentations
        return replace(
            self,
            image_ids=tuple(self.image_ids[i] for i in positions),
            sizes=tuple(self.sizes[i] for i in positions),
            image=np.searchsorted(positions, self.image[keep]),
            category=self.category[keep],
            boxes=self.boxes[keep],
            areas=self.areas[keep],
            crowd=self.crowd[keep],
            segmentations=None if segments is None else [segments[i] for i in np.flatnonzero(keep)],
        )

    def to_hotcoco(self, *, segmentation: bool) -> hotcoco.COCO:
        """Convert to hotcoco's ground truth, whose ids are positions.

        Raises:
            DetrkitError: `segmentation` is set and there are none, or they are malformed.
        """
        if segmentation and self.segmentations is None and len(self):
            raise DetrkitError(f"{self.source}: annotations without segmentation: evaluate the boxes (--iou-type bbox)")
        try:
            return hotcoco.COCO.from_arrays(
                [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(self.sizes)],
                [{"id": i, "name": name} for i, name in enumerate(self.names)],
                self.image,
                self.category,
                self.boxes,
                ids=np.arange(1, len(self) + 1),
                area=self.areas,
                iscrowd=self.crowd.astype(np.int64),
                segmentation=self.segmentations if segmentation else None,
            )
        except (ValueError, TypeError, KeyError) as error:
            raise DetrkitError(f"{self.source}: {error}; write polygons or RLE as COCO does") from error


def _size(image: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Return (height, width) in pixels of an image entry, (0, 0) if it has none.

    Raises:
        DetrkitError: a side is no number of pixels.
    """
    sides = []
    for field in ("height", "width"):
        value = image.get(field) or 0
        if not isinstance(value, (int, float)) or not 0 <= value < 2**31:
            raise DetrkitError(f"{where}: {field} {shown(value)} is no number of pixels; correct it")
        sides.append(int(value))
    return sides[0], sides[1]


def by_id(entries: Sequence[Any], where: str) -> dict[Any, Mapping[str, Any]]:
    """Index entries by their id, ascending.

    Raises:
        DetrkitError: an entry has no id, or two have the same.
    """
    indexed: dict[Any, Mapping[str, Any]] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("id"), (int, str)):
            raise DetrkitError(f"{where}: entry {i} has no id; give each one a unique number")
        if entry["id"] in indexed:
            raise DetrkitError(f"{where}: id {entry['id']!r} is there twice; ids must be unique")
        indexed[entry["id"]] = entry
    return dict(sorted(indexed.items(), key=lambda item: identity_order(item[0])))


def unique_names(names: Mapping[int, str]) -> tuple[str, ...]:
    """Return unique names: repeated ones get their id appended, so that tables can be keyed by name."""
    seen = list(names.values())
    return tuple(name if seen.count(name) == 1 else f"{name} ({k})" for k, name in names.items())
