"""`PanopticResult`: every pixel of one image assigned to a segment, or to none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections, NearMiss, as_tensor, image_to_draw_on, plain

if TYPE_CHECKING:
    from PIL import Image

    from detrkit.data.images import ImageInput

VOID = 0  # value of the pixels of an id map that belong to no segment


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic result.

    Attributes:
        id: its value in the id map.
        label: into the result's classes.
        score: in [0, 1].
        area: in pixels.
        thing: whether its class is countable; a class of stuff has at most one segment in an image.
        query: the object query of the model behind it (of merged stuff, the one with the best score), or None when
            unknown. Segments that differ in it alone are equal.
    """

    id: int
    label: int
    score: float
    area: int
    thing: bool
    query: int | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class PanopticResult:
    """Segmentation of one image: every pixel belongs to one segment, or to none (void).

    Attributes:
        id_map: (H, W) int32 at the size of the original image: the id of a segment, 0 for void.
        segments: those of the map, in any order; their ids are unique.
        classes: names and dataset ids of the labels, or None when unknown.
        image_id: the dataset's id of the image, or None.
        image: the input image, so that `draw()` needs nothing else.
        near_miss: the best query that the threshold left out, where it left out all.
    """

    id_map: Tensor
    segments: list[Segment]
    classes: ClassList | None = None
    image_id: int | str | None = None
    image: Image.Image | None = None
    near_miss: NearMiss | None = None

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def names(self) -> list[str]:
        """Class name of every segment ("class 7" where no class list is known)."""
        if self.classes is None:
            return [f"class {segment.label}" for segment in self.segments]
        return [self.classes.names[segment.label] for segment in self.segments]

    @property
    def masks(self) -> Tensor:
        """(N, H, W) bool, one mask per segment, in the order of `segments`."""
        ids = torch.tensor([segment.id for segment in self.segments], dtype=torch.int32, device=self.id_map.device)
        return self.id_map[None] == ids[:, None, None]

    def to(self, device: torch.device | str) -> PanopticResult:
        """Return a copy with the map on `device`."""
        return replace(self, id_map=self.id_map.to(device))

    def draw(self, image: ImageInput | None = None, *, scale: float | None = 1.0) -> Image.Image:
        """Return a copy of the image with every segment in its color and its name inside it.

        Args and errors: as `Detections.draw`.
        """
        from detrkit.visualize import draw_panoptic

        size = self.id_map.shape[1], self.id_map.shape[0]
        return draw_panoptic(image_to_draw_on(image, self.image, size), self, scale=scale)

    def segments_info(self) -> list[dict[str, Any]]:
        """Return for each segment id, category_id (the dataset's own), isthing, area, score: COCO's panoptic json."""
        return [
            {
                "id": plain(segment.id),
                "category_id": plain(segment.label if self.classes is None else self.classes.ids[segment.label]),
                "isthing": int(segment.thing),
                "area": plain(segment.area),
                "score": plain(segment.score),
            }
            for segment in self.segments
        ]

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain JSON values: id, label, name, score (4 digits), area in pixels, and kind, "thing" or "stuff"."""
        return [
            {
                "id": segment.id,
                "label": segment.label,
                "name": name,
                "score": round(segment.score, 4),
                "area": segment.area,
                "kind": "thing" if segment.thing else "stuff",
            }
            for segment, name in zip(self.segments, self.names, strict=True)
        ]

    def to_coco(self) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Convert to COCO's panoptic format: the pixels of a PNG and its `segments_info`.

        Returns:
            (H, W, 3) uint8 RGB with id = R + 256 G + 65536 B, and `segments_info()`.
        """
        ids = np.ascontiguousarray(self.id_map.cpu().numpy(), "<u4")  # four bytes per pixel, the last is 0
        rgb = ids.view(np.uint8).reshape(*ids.shape, 4)[..., :3]
        return np.ascontiguousarray(rgb), self.segments_info()

    @classmethod
    def from_coco(
        cls,
        id_map: np.ndarray | Tensor,
        segments_info: Iterable[Mapping[str, Any]],
        classes: ClassList,
        *,
        image_id: int | str | None = None,
        image: Image.Image | None = None,
    ) -> PanopticResult:
        """Build a result from COCO's panoptic ground truth or results of one image, e.g. to draw it.

        Args:
            id_map: (H, W) segment ids, read from the PNG's pixels.
            segments_info: for each segment id and category_id; score is 1 where there is none.
            classes: of the dataset.
            image_id: the dataset's id.
            image: the input image.
        """
        ids = as_tensor(id_map).to(torch.int32)
        values, counts = ids.unique(return_counts=True)
        area = dict(zip(values.tolist(), counts.tolist(), strict=True))
        label_of = classes.label_of
        segments = []
        for info in segments_info:
            label = label_of[info["category_id"]]
            score, pixels = float(info.get("score", 1.0)), area.get(info["id"], 0)
            segments.append(Segment(info["id"], label, score, pixels, classes.is_thing(label)))
        return cls(ids, segments, classes=classes, image_id=image_id, image=image)


Prediction = Detections | PanopticResult


def ordered_copies(results: Sequence[Prediction]) -> list[Prediction]:
    """Return copies on the CPU, detections in descending order of score; sorting copies anyway.

    Copies made outside inference mode are ordinary tensors; its own cannot be changed in place or used in a loss.
    """
    with torch.inference_mode(False):  # of the caller
        return [
            replace(result, id_map=result.id_map.to("cpu", copy=True))
            if isinstance(result, PanopticResult)
            else result.select(result.scores.argsort(descending=True, stable=True)).to("cpu")
            for result in results
        ]
