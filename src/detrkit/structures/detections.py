"""`Detections`: the detected objects of one image, with masks or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from detrkit.structures.classes import ClassList
from detrkit.structures.rle import encode_masks
from detrkit.utils.errors import DetrkitError

if TYPE_CHECKING:
    from PIL import Image

    from detrkit.data.images import ImageInput


class NearMiss(NamedTuple):
    """The best of the results of an image that were left out for their score, where none was kept.

    Attributes:
        name: of its class.
        score: in [0, 1].
        threshold: the score that it does not exceed.
        label: of its class.
        box: xyxy pixels of the image; None for a segment.
    """

    name: str
    score: float
    threshold: float
    label: int
    box: tuple[float, float, float, float] | None = None

    @property
    def decimals(self) -> str:
        """The score with two decimals, or more where it is small or near its threshold: 0.21, 0.0034, 0.528."""
        text, digits = decimals(self.score), 3
        while self.score < self.threshold <= float(text) and digits <= 6:  # "nothing above 0.53; best score 0.53"
            text, digits = f"{self.score:.{digits}f}", digits + 1
        return text

    def __str__(self) -> str:
        return f"nothing above {self.threshold:g}; best score {self.decimals} ({self.name})"


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
        near_miss: the best detection that a threshold left out, where it left out all.
        queries: (N,) int64, the object query of the model behind each detection, or None when unknown. Of a tiled
            prediction it is that of the forward pass over the detection's tile.
        tiles: (N,) int64, the tile that each detection is of (of an object joined from parts, the best part's), in the
            order of `detrkit.tiling.Tiling.windows`; -1 for the whole image. None of a prediction without tiles.
        tracks: (N,) int64, the track of a video's object that each detection belongs to, -1 for none; None where
            nothing was tracked.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
    classes: ClassList | None = None
    image_id: int | str | None = None
    image: Image.Image | None = None
    near_miss: NearMiss | None = None
    queries: Tensor | None = None
    tiles: Tensor | None = None
    tracks: Tensor | None = None

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
        optional = {name: getattr(self, name) for name in ("masks", "queries", "tiles", "tracks")}
        chosen: dict[str, Any] = {name: None if values is None else values[keep] for name, values in optional.items()}
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep], **chosen)

    def is_above(self, threshold: float | Sequence[float]) -> Tensor:
        """Return (N,) bool: whether each score is greater than `threshold`, or than that of its label."""
        return self.scores > self._limits(threshold)

    def above(self, threshold: float | Sequence[float]) -> Detections:
        """Return the detections whose score is greater than `threshold`.

        Args:
            threshold: one for all, or one for each label.
        """
        kept = self.select(self.is_above(threshold))
        if len(kept) or not len(self):
            return kept
        # the score that comes nearest to its threshold, in proportion
        limits = self._limits(threshold).expand_as(self.scores)
        best = int((self.scores / limits.clamp(min=1e-6)).argmax())
        label, box = int(self.labels[best]), self.boxes[best].tolist()
        name = f"class {label}" if self.classes is None else self.classes.names[label]
        miss = NearMiss(name, float(self.scores[best]), _shown(limits[best]), label, tuple(box))
        return replace(kept, near_miss=miss)

    def _limits(self, threshold: float | Sequence[float]) -> Tensor:
        """Return the threshold of every detection, (N,), or of all, ()."""
        limits = torch.as_tensor(threshold, dtype=self.scores.dtype, device=self.scores.device)
        return limits[self.labels] if limits.ndim else limits

    def to(self, device: torch.device | str) -> Detections:
        """Return a copy with all tensors on `device`."""
        names = ("boxes", "scores", "labels", "masks", "queries", "tiles", "tracks")
        tensors = {name: getattr(self, name) for name in names}
        moved: dict[str, Any] = {name: None if t is None else t.to(device) for name, t in tensors.items()}
        return replace(self, **moved)

    def draw(
        self, image: ImageInput | None = None, *, threshold: float = 0.0, scale: float | None = 1.0
    ) -> Image.Image:
        """Return a copy of the image with boxes, masks if there are any, names and scores.

        Where a threshold left out all detections, the best of them is drawn dashed.

        Args:
            image: of the original size, whatever `Detector.predict` takes; by default the one that was predicted on.
            threshold: only detections with a greater score are drawn.
            scale: factor to enlarge the image by before drawing; None chooses a whole number that makes labels
                readable on small images and beside small objects.

        Raises:
            DetrkitError: a file is missing, not an image or damaged.
            ValueError: no image is known and none was given, it is none, or it is of another size than the one
                predicted on.
        """
        from detrkit.visualize import draw_detections

        size = None if self.masks is None else (self.masks.shape[2], self.masks.shape[1])
        return draw_detections(image_to_draw_on(image, self.image, size), self.above(threshold), scale=scale)

    def to_coco(self) -> list[dict[str, Any]]:
        """Return COCO result entries: image_id, category_id (dataset's own), bbox xywh pixels, score; plain JSON.

        With masks, each has its segmentation too (RLE at the size of the image).

        Raises:
            ValueError: the image id is not known (results without it cannot be evaluated).
        """
        if self.image_id is None:
            raise ValueError("these detections have no image_id: set it to the dataset's id first")
        xyxy = as_tensor(self.boxes).cpu().double()
        xywh = torch.cat([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], 1).tolist()
        labels = self.labels.tolist()
        ids = labels if self.classes is None else [plain(self.classes.ids[label]) for label in labels]
        scores = as_tensor(self.scores).cpu().double().tolist()
        entries: list[dict[str, Any]] = [
            {"image_id": plain(self.image_id), "category_id": category, "bbox": box, "score": score}
            for category, box, score in zip(ids, xywh, scores, strict=True)
        ]
        if self.masks is not None:
            for entry, rle in zip(entries, encode_masks(self.masks), strict=True):
                entry["segmentation"] = rle
        return entries

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain JSON values: label, name, score, and box xyxy in pixels of the image.

        Scores are rounded to 4 digits, boxes to 2. With masks each has its segmentation, too (COCO's RLE); with tracks
        its track, null for none.
        """
        columns = (self.labels.tolist(), self.names, self.scores.tolist(), self.boxes.tolist())
        entries: list[dict[str, Any]] = [
            {"label": label, "name": name, "score": round(score, 4), "box": [round(value, 2) for value in box]}
            for label, name, score, box in zip(*columns, strict=True)
        ]
        if self.masks is not None:
            for entry, rle in zip(entries, encode_masks(self.masks), strict=True):
                entry["segmentation"] = rle
        if self.tracks is not None:
            for entry, track in zip(entries, self.tracks.tolist(), strict=True):
                entry["track"] = None if track < 0 else track
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


def decimals(score: float) -> str:
    """Format a score with two decimals, or as many as show two digits of a small one: 0.21, 0.0034."""
    return f"{score:.2f}" if score >= 0.1 or score == 0 else f"{score:.2g}"


def _shown(limit: Tensor) -> float:
    """Return a threshold without the digits that float32 added."""
    return round(float(limit), 6)


def plain(value: Any) -> Any:
    """Convert a numpy scalar or a tensor of one number to Python's own, which JSON takes; return others unchanged."""
    return value.item() if isinstance(value, (np.generic, Tensor)) else value


def as_tensor(values: Any) -> Tensor:
    """Return a tensor as it is, an array as one on the CPU, whatever the default device is."""
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def image_to_draw_on(
    image: ImageInput | None, predicted: Image.Image | None, size: tuple[int, int] | None
) -> Image.Image:
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
