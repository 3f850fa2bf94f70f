"""COCO panoptic ground truth and results: the json is checked when it is loaded, PNGs are read when they are used."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detrkit.evaluation.ground_truth import by_id, identity_order, read_json, unique_names
from detrkit.evaluation.positions import IdPositions
from detrkit.structures.classes import ClassList
from detrkit.structures.panoptic import VOID
from detrkit.utils.errors import DetrkitError

IdMaps = Callable[[Any], np.ndarray]


class Segments(NamedTuple):
    """The segments of one image as columns.

    Attributes:
        ids: (N,) int64 values in the id map.
        category: (N,) int64 position in the ground truth's categories.
        crowd: (N,) bool: regions of many objects, never false negatives; predictions on them are no false positives.
    """

    ids: np.ndarray
    category: np.ndarray
    crowd: np.ndarray

    @classmethod
    def from_info(cls, segments_info: Any, categories: Mapping[Any, int], where: str) -> Segments:
        """Read the columns from a `segments_info`.

        Raises:
            DetrkitError: an entry without an id, with a repeated id, or with an unknown category.
        """
        if not isinstance(segments_info, (list, tuple)):
            raise DetrkitError(f"{where}: no list segments_info; give an object with id and category_id a segment")
        seen: set[int] = set()
        for i, info in enumerate(segments_info):
            if not isinstance(info, Mapping) or not _is_id(info.get("id")):
                raise DetrkitError(f"{where}: segments_info[{i}]: id is no whole number; give the value in the PNG")
            if info["id"] in seen:
                raise DetrkitError(f"{where}: segment id {info['id']} is there twice; ids are unique in an image")
            seen.add(info["id"])
            if not _is_id(info.get("category_id")) or info["category_id"] not in categories:
                raise DetrkitError(
                    f"{where}: segment {info['id']}: category_id {info.get('category_id')!r} is no category of the "
                    "ground truth; check that both belong to the same dataset"
                )
        return cls(
            np.array([info["id"] for info in segments_info], np.int64),
            np.array([categories[info["category_id"]] for info in segments_info], np.int64),
            np.array([bool(info.get("iscrowd", 0)) for info in segments_info], bool),
        )


@dataclass(frozen=True)
class PanopticGroundTruth(IdPositions):
    """Annotated segments of a dataset. Images and categories are numbered by their position.

    Attributes:
        source: the file, to name it in messages.
        image_ids: the dataset's ids of the annotated images, ascending.
        files: names of the images' PNGs.
        category_ids: the dataset's ids, ascending.
        names: of the categories, unique.
        things: whether each category is a thing.
        segments: the segments of each image.
        id_map: function that returns the (H, W) ids of an image by its id.
    """

    source: str
    image_ids: tuple[int | str, ...]
    files: tuple[str, ...]
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    things: tuple[bool, ...]
    segments: tuple[Segments, ...]
    id_map: IdMaps

    @property
    def classes(self) -> ClassList:
        """Names, ids and things; a label is a position."""
        return ClassList(self.names, self.category_ids, self.things, frozenset())

    def check_complete(self, image_ids: Container[Any]) -> None:
        """Check that there are images and that all of them are in `image_ids`.

        Raises:
            DetrkitError: an image has no result, or the ground truth has no images.
        """
        missing = [image_id for image_id in self.image_ids if image_id not in image_ids]
        if missing:
            raise DetrkitError(
                f"no result for {len(missing)} of {len(self.image_ids)} images of {self.source}, such as "
                f"{missing[0]!r}; predict all of them, or evaluate those that are there (only_added)"
            )
        if not self.image_ids:
            raise DetrkitError(f"{self.source}: no images; there is nothing to evaluate")

    @classmethod
    def load(
        cls, source: PanopticGroundTruth | str | Path | Mapping[str, Any], maps: str | Path | IdMaps | None = None
    ) -> PanopticGroundTruth:
        """Read a COCO panoptic file or its content; return a PanopticGroundTruth as it is.

        Args:
            source: the file, its content, or ground truth loaded before.
            maps: the folder of the PNGs, or a function that gives the (H, W) ids of an image by its id. By default,
                for a file, the folder of its name beside it or beside its folder, as in COCO's archives.

        Raises:
            DetrkitError: with the file, the entry and the fix.
        """
        if isinstance(source, PanopticGroundTruth):
            return source
        name = "panoptic ground truth" if isinstance(source, Mapping) else str(source)
        content = source if isinstance(source, Mapping) else read_json(source)
        categories = by_id(_entries(content, "categories", name), f"{name}: categories")
        for k, category in categories.items():
            if category.get("isthing") not in (0, 1):
                raise DetrkitError(f"{name}: category {k}: field isthing is missing; write 1 for a thing, 0 for stuff")
        position = {k: i for i, k in enumerate(categories)}
        files: dict[Any, str] = {}
        segments: dict[Any, Segments] = {}
        for image_id, entry in image_entries(content, name).items():
            files[image_id] = entry["file_name"]
            where = f"{name}: image {image_id!r}"
            segments[image_id] = Segments.from_info(entry["segments_info"], position, where)
            if (segments[image_id].ids == VOID).any():
                raise DetrkitError(f"{where}: a segment has the id 0, which is void; count ids from 1")
        if maps is None:
            if isinstance(source, Mapping):
                raise DetrkitError(f"{name}: no PNGs; give their folder, or a function that gives the ids of an image")
            maps = png_folder(Path(source), list(files.values()))
        return cls(
            source=name,
            image_ids=tuple(segments),
            files=tuple(files.values()),
            category_ids=tuple(categories),
            names=unique_names({k: str(c.get("name", f"category {k}")) for k, c in categories.items()}),
            things=tuple(bool(c["isthing"]) for c in categories.values()),
            segments=tuple(segments.values()),
            id_map=maps if callable(maps) else PngFolder(Path(maps), files),
        )


def image_entries(content: Any, name: str) -> dict[Any, Mapping[str, Any]]:
    """Index the `annotations` by image id, ascending; each entry has segments_info and file_name.

    Raises:
        DetrkitError: no such list, an entry without these fields, or two entries of one image.
    """
    entries: dict[Any, Mapping[str, Any]] = {}
    for i, entry in enumerate(_entries(content, "annotations", name)):
        where = f"{name}: annotations: entry {i}"
        for field, kind in (("image_id", (int, str)), ("file_name", str), ("segments_info", list)):
            if not isinstance(entry, Mapping) or not isinstance(entry.get(field), kind):
                raise DetrkitError(f"{where}: field {field} is missing or wrong; see COCO's panoptic format")
        if entry["image_id"] in entries:
            raise DetrkitError(f"{where}: image {entry['image_id']!r} is there twice; give one entry an image")
        entries[entry["image_id"]] = entry
    return dict(sorted(entries.items(), key=lambda item: identity_order(item[0])))


def png_folder(file: Path, names: Sequence[str]) -> Path:
    """Find the PNGs of a panoptic json: in the folder of its name, beside it or beside its folder.

    Raises:
        DetrkitError: neither folder has them.
    """
    beside, above = file.with_suffix(""), file.parent.parent / file.stem
    for folder in (beside, above, file.parent):
        if folder.is_dir() and any((folder / name).is_file() for name in names[:20]):
            return folder
    if not names:
        return beside
    raise DetrkitError(f"{file}: its PNGs, such as {names[0]}, are not in {beside} or {above}; name their folder")


@dataclass(frozen=True)
class PngFolder:
    """A folder of panoptic PNGs.

    Attributes:
        folder: of the PNGs.
        files: image id -> name of its PNG.
    """

    folder: Path
    files: Mapping[Any, str]

    def __call__(self, image_id: Any) -> np.ndarray:
        """Read the (H, W) ids of an image."""
        # imported here: the evaluation uses nothing else of the data package, which imports torchvision
        from detrkit.data.panoptic import read_id_map

        return read_id_map(self.folder / self.files[image_id])


def _entries(content: Any, key: str, name: str) -> Sequence[Any]:
    """Return the list of that key.

    Raises:
        DetrkitError: the content has no such list.
    """
    if not isinstance(content, Mapping) or not isinstance(content.get(key), (list, tuple)):
        raise DetrkitError(f"{name}: no list {key!r}; this is not COCO's panoptic format")
    entries: Sequence[Any] = content[key]
    return entries


def _is_id(value: Any) -> bool:
    """Return whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
