"""`Detections`: the objects found in one image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detrkit.classes import ClassList

if TYPE_CHECKING:
    from PIL import Image


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
        image: the picture predicted on, kept by `Detector.predict` so that `draw()` needs nothing else.
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
        """The class name of every detection ("class 7" where no class list is known)."""
        labels = self.labels.tolist()
        if self.classes is None:
            return [f"class {label}" for label in labels]
        return [self.classes.names[label] for label in labels]

    def select(self, keep: Tensor) -> Detections:
        """The detections at `keep`: (N,) bool or a tensor of indices."""
        masks = None if self.masks is None else self.masks[keep]
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep], masks=masks)

    def above(self, threshold: float) -> Detections:
        """The detections whose score is greater than `threshold`."""
        return self.select(self.scores > threshold)

    def to(self, device: torch.device | str) -> Detections:
        """A copy with all tensors on `device`."""
        masks = None if self.masks is None else self.masks.to(device)
        return replace(
            self,
            boxes=self.boxes.to(device),
            scores=self.scores.to(device),
            labels=self.labels.to(device),
            masks=masks,
        )

    def draw(self, image: Image.Image | None = None, *, threshold: float = 0.0) -> Image.Image:
        """A copy of the picture with boxes, names and scores.

        Args:
            image: the RGB picture of the original size; by default the one that was predicted on.
            threshold: only detections with a greater score are drawn.

        Raises:
            ValueError: no picture is known and none was given.
        """
        from detrkit.visualize import draw_detections

        picture = image if image is not None else self.image
        if picture is None:
            raise ValueError("these detections hold no picture: pass draw(image=...)")
        return draw_detections(picture, self.above(threshold))

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO result entries: image_id, category_id (the dataset's own), bbox xywh pixels, score.

        Raises:
            ValueError: the image id is not known (results without it cannot be evaluated).
        """
        if self.image_id is None:
            raise ValueError("these detections have no image_id: set it to the dataset's id first")
        xyxy = self.boxes.double().cpu()
        xywh = torch.cat([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], 1).tolist()
        labels = self.labels.tolist()
        ids = labels if self.classes is None else [self.classes.ids[label] for label in labels]
        return [
            {"image_id": self.image_id, "category_id": category, "bbox": box, "score": score}
            for category, box, score in zip(ids, xywh, self.scores.double().cpu().tolist(), strict=True)
        ]

    def to_supervision(self) -> Any:
        """The same as `supervision.Detections` (extra `supervision`)."""
        import numpy as np
        import supervision

        return supervision.Detections(
            xyxy=self.boxes.float().cpu().numpy(),
            confidence=self.scores.float().cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            mask=None if self.masks is None else self.masks.cpu().numpy(),
            data={"class_name": np.array(self.names)},
        )
