"""Results for one image: `Detections` (boxes, with masks or without) or a `PanopticResult` (every pixel)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError

if TYPE_CHECKING:
    from PIL import Image

    from detrkit.data.images import Picture


@dataclass
class Detections:
    """The objects found in one image, in descending order of score unless said otherwise.

    Attributes:
        boxes: (N, 4) float xyxy pixels of the original image.
        scores: (N,) float in [0, 1].
        labels: (N,) int64 into `classes`.
        masks: (N, H, W) bool at the size of the original image, or None.
        classes: names and dataset ids of the labels, or None when unknown.
        image_id: the dataset's id of the image, or None.
        image: the input image, kept by `Detector.predict` so that `draw()` needs nothing else.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
    classes: ClassList | None = None
    image_id: int | str | None = None
    image: Image.Image | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Class name of every detection ("class 7" where no class list is known)."""
        labels = self.labels.tolist()
        if self.classes is None:
            return [f"class {label}" for label in labels]
        return [self.classes.names[label] for label in labels]

    def select(self, keep: Tensor) -> Detections:
        """Return the detections at `keep`: (N,) bool or a tensor of indices."""
        masks = None if self.masks is None else self.masks[keep]
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep], masks=masks)

    def above(self, threshold: float) -> Detections:
        """Return the detections whose score is greater than `threshold`."""
        return self.select(self.scores > threshold)

    def to(self, device: torch.device | str) -> Detections:
        """Return a copy with all tensors on `device`."""
        masks = None if self.masks is None else self.masks.to(device)
        return replace(
            self,
            boxes=self.boxes.to(device),
            scores=self.scores.to(device),
            labels=self.labels.to(device),
            masks=masks,
        )

    def draw(self, image: Picture | None = None, *, threshold: float = 0.0) -> Image.Image:
        """Return a copy of the image with boxes, masks if there are any, names and scores.

        Args:
            image: of the original size, whatever `Detector.predict` takes; by default the one that was predicted on.
            threshold: only detections with a greater score are drawn.

        Raises:
            DetrkitError: a file is missing, not an image or damaged.
            ValueError: no image is known and none was given, it is none, or it is of another size than the one
                predicted on.
        """
        from detrkit.visualize import draw_detections

        size = None if self.masks is None else (self.masks.shape[2], self.masks.shape[1])
        return draw_detections(_to_draw_on(image, self.image, size), self.above(threshold))

    def to_coco(self) -> list[dict[str, Any]]:
        """Return COCO result entries: image_id, category_id (dataset's own), bbox xywh pixels, score; plain JSON.

        With masks, each has its segmentation too (RLE at the size of the image).

        Raises:
            ValueError: the image id is not known (results without it cannot be evaluated).
        """
        if self.image_id is None:
            raise ValueError("these detections have no image_id: set it to the dataset's id first")
        xyxy = _tensor(self.boxes).double().cpu()
        xywh = torch.cat([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], 1).tolist()
        labels = self.labels.tolist()
        ids = labels if self.classes is None else [plain(self.classes.ids[label]) for label in labels]
        scores = _tensor(self.scores).double().tolist()
        entries: list[dict[str, Any]] = [
            {"image_id": plain(self.image_id), "category_id": category, "bbox": box, "score": score}
            for category, box, score in zip(ids, xywh, scores, strict=True)
        ]
        if self.masks is not None:
            for entry, rle in zip(entries, encode_masks(self.masks), strict=True):
                entry["segmentation"] = rle
        return entries

    def to_supervision(self) -> Any:
        """Convert to `supervision.Detections` (extra `supervision`).

        Raises:
            DetrkitError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise DetrkitError("to_supervision needs supervision: pip install 'detrkit[supervision]'") from error

        return supervision.Detections(
            xyxy=self.boxes.float().cpu().numpy(),
            confidence=self.scores.float().cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            mask=None if self.masks is None else self.masks.cpu().numpy(),
            data={"class_name": np.array(self.names)},
        )


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic result.

    Attributes:
        id: its value in the id map.
        label: into the result's classes.
        score: in [0, 1].
        area: in pixels.
        thing: whether its class is countable; a class of stuff has at most one segment in an image.
    """

    id: int
    label: int
    score: float
    area: int
    thing: bool


@dataclass(frozen=True, eq=False)
class PanopticResult:
    """Segmentation of one image: every pixel belongs to one segment, or to none (void).

    Attributes:
        id_map: (H, W) int32 at the size of the original image: the id of a segment, 0 for void.
        segments: those of the map, in any order; their ids are unique.
        classes: names and dataset ids of the labels, or None when unknown.
        image_id: the dataset's id of the image, or None.
        image: the input image, so that `draw()` needs nothing else.
    """

    id_map: Tensor
    segments: list[Segment]
    classes: ClassList | None = None
    image_id: int | str | None = None
    image: Image.Image | None = None

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

    def draw(self, image: Picture | None = None) -> Image.Image:
        """Return a copy of the image with every segment in its color and its name inside it.

        Args and errors: as `Detections.draw`.
        """
        from detrkit.visualize import draw_panoptic

        size = self.id_map.shape[1], self.id_map.shape[0]
        return draw_panoptic(_to_draw_on(image, self.image, size), self)

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
        ids = _tensor(id_map).to(torch.int32)
        values, counts = ids.unique(return_counts=True)
        area = dict(zip(values.tolist(), counts.tolist(), strict=True))
        label_of = classes.label_of
        segments = []
        for info in segments_info:
            label = label_of[info["category_id"]]
            score, pixels = float(info.get("score", 1.0)), area.get(info["id"], 0)
            segments.append(Segment(info["id"], label, score, pixels, classes.is_thing(label)))
        return cls(ids, segments, classes=classes, image_id=image_id, image=image)


def plain(value: Any) -> Any:
    """Convert a numpy scalar or a tensor of one number to Python's own, which JSON takes; return others unchanged."""
    return value.item() if isinstance(value, (np.generic, Tensor)) else value


def _tensor(values: Any) -> Tensor:
    """Return a tensor as it is, an array as one on the CPU, whatever the default device is."""
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def _to_draw_on(image: Picture | None, predicted: Image.Image | None, size: tuple[int, int] | None) -> Image.Image:
    """Return the image that a result is drawn on, as 8-bit RGB.

    Args:
        image: given to `draw`.
        predicted: the image predicted on, if it was kept.
        size: (width, height) of its masks, if there are any.

    Raises:
        DetrkitError: a file is missing, not an image or damaged.
        ValueError: there is no image, it is not an image, or of another size.
    """
    from detrkit.data.images import as_rgb

    if image is None and predicted is None:
        raise ValueError("this result holds no image: pass draw(image=...)")
    rgb = as_rgb(predicted if image is None else image)
    size = size if predicted is None else predicted.size
    if image is not None and size is not None and rgb.size != size:
        raise ValueError(
            f"the image to draw on is {rgb.width} x {rgb.height} pixels, the one predicted on was "
            f"{size[0]} x {size[1]} (width x height): draw on an image of that size"
        )
    return rgb


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode (N, H, W) bool masks as N compressed RLEs in COCO's format: size [H, W] and counts as text."""
    import hotcoco

    if not len(masks):
        return []
    columns = np.asfortranarray(masks.cpu().numpy().transpose(1, 2, 0), np.uint8)  # (H, W, N)
    rles: Any = hotcoco.mask.encode(columns)
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in rles]
