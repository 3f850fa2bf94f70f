"""What each query slot of a model predicts over a whole dataset (DETR, Fig. 7): numbers and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from detrkit.detector import Detector, Threshold
from detrkit.explanation.picture_sheets import SHEET_LETTERS
from detrkit.models.postprocess import PostProcessor
from detrkit.structures.detections import as_tensor
from detrkit.structures.outputs import Outputs
from detrkit.visualize.legend import LegendItem, with_legend
from detrkit.visualize.query_boxes import LARGE_TALL, LARGE_WIDE, SMALL, draw_unit_square
from detrkit.visualize.sheet import grid

MOST_USED = 20  # slots in the picture of the most used ones, as in the paper
_KEPT_IMAGES = 4000  # whose boxes are kept for the picture: 300 slots of them take 19 MB
_TILE = 200  # pixels of a side of a slot's square
_SMALL_TILE = 112  # likewise, of the picture of all slots
_COLUMNS, _MANY_COLUMNS = 5, 15
_DIGITS = 4  # decimals of coordinates in [0, 1]


class QuerySlots:
    """Boxes that each query slot of a model predicts, collected batch by batch; memory does not grow with the images.

    Counts, means and deviations are of all images. The picture has every image up to 4,000, of more every second,
    every fourth and so on.

    Args:
        postprocessor: with the threshold above which a box counts as a detection.

    Attributes:
        images: number of images so far.
        counts: (Q,) int64, in how many images each slot has a detection.
        two_stage: whether the slots are ranks of proposals and no learned queries.
    """

    def __init__(self, postprocessor: PostProcessor) -> None:
        self.postprocessor = postprocessor
        self.images = 0
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.two_stage = False
        self._all = _Moments()
        self._detected = _Moments()
        self._boxes: list[np.ndarray] = []  # per kept image (Q, 4) float32
        self._stride = 1  # one image in so many is kept

    @classmethod
    def of(cls, detector: Detector, threshold: Threshold) -> QuerySlots:
        """Return empty slots of a detector's model.

        Args:
            detector: whose model will predict.
            threshold: of `Detector.resolve_threshold`.
        """
        return cls(replace(detector.postprocessor, threshold=threshold))

    @property
    def num_queries(self) -> int:
        """Number of slots Q."""
        return len(self.counts)

    @torch.no_grad()
    def add(self, outputs: Outputs) -> None:
        """Add the predictions of a batch; masks are not computed.

        Args:
            outputs: of the model.
        """
        boxes = outputs.boxes.float().cpu()  # (B, Q, 4) cxcywh
        batch, queries = boxes.shape[:2]
        if not self.num_queries:
            self.counts = torch.zeros(queries, dtype=torch.int64)
        self.two_stage = outputs.encoder is not None
        detected = torch.zeros(batch, queries, dtype=torch.bool)
        for row, found in zip(detected, self.postprocessor.detections(outputs, [(1, 1)] * batch), strict=True):
            row[as_tensor(found.queries).cpu()] = True
        self.counts += detected.sum(0)
        self._all.add(boxes, torch.ones_like(detected))
        self._detected.add(boxes, detected)
        for image in boxes.numpy():
            if self.images % self._stride == 0:
                self._boxes.append(image)
            self.images += 1
            if len(self._boxes) > _KEPT_IMAGES:
                self._boxes = self._boxes[::2]
                self._stride *= 2

    def by_use(self) -> list[int]:
        """Return the slots, those with detections in the most images first."""
        return self.counts.argsort(descending=True, stable=True).tolist()

    def numbers(self) -> dict[str, Any]:
        """Return counts, mean boxes and their deviations as plain JSON values (docs/explaining.md)."""
        means, deviations = self._all.mean(), self._all.deviation()
        detected_means, detected_deviations = self._detected.mean(), self._detected.deviation()
        rows = []
        for query, count in enumerate(self.counts.tolist()):
            row: dict[str, Any] = {"query": query, "detections": count}
            row |= {"mean_box": _plain(means[query]), "std_box": _plain(deviations[query])}
            row["mean_box_detected"] = _plain(detected_means[query]) if count else None
            row["std_box_detected"] = _plain(detected_deviations[query]) if count else None
            rows.append(row)
        slots = "rank of a proposal" if self.two_stage else "learned query"
        return {"images": self.images, "slot": slots, "queries": rows}

    def draw(self, queries: Sequence[int] | None = None, *, source: str = "") -> Image.Image:
        """Draw a unit square for each slot, with a point at the center of its box in every image.

        Small boxes are green, large wide ones vermilion, large tall ones blue, and shades between.

        Args:
            queries: the slots; by default the 20 with the most detections.
            source: of the images, for the caption.

        Raises:
            ValueError: there are no images, or no such slot.
        """
        if not self.images:
            raise ValueError("no image was added: there is nothing to draw")
        chosen = self.by_use()[:MOST_USED] if queries is None else list(queries)
        if not chosen or not all(0 <= query < self.num_queries for query in chosen):
            raise ValueError(f"queries {chosen}: choose 0 to {self.num_queries - 1}")
        many = len(chosen) > MOST_USED
        side, columns = (_SMALL_TILE, _MANY_COLUMNS) if many else (_TILE, _COLUMNS)
        kept = np.stack(self._boxes)  # (N, Q, 4)
        squares = [draw_unit_square(kept[:, query], side) for query in chosen]
        counts = self.counts.tolist()
        titles = [f"{query}: {counts[query]:,}" if many else f"query {query}: {counts[query]:,}" for query in chosen]
        sheet = grid(squares, columns, titles, tile=(side, side))
        images = f"{self.images:,} image{'' if self.images == 1 else 's'}"
        caption = f"boxes of query slots in {images}{' of ' + source if source else ''}"
        caption += f", below each in how many it has a detection{self._threshold()}; a point is the center of a box"
        if len(kept) < self.images:
            caption += f" ({len(kept):,} of the images are drawn)"
        if self.two_stage:
            caption += "; this model has two stages: a slot is the rank of a proposal, not a learned query"
        items = [
            LegendItem("shape", "small", color=SMALL),
            LegendItem("shape", "large and wide", color=LARGE_WIDE),
            LegendItem("shape", "large and tall", color=LARGE_TALL),
        ]
        return with_legend(sheet, caption, items, letters=SHEET_LETTERS)

    def _threshold(self) -> str:
        """Return the threshold in words, where there is one."""
        threshold = self.postprocessor.threshold
        return f" above {threshold:g}" if isinstance(threshold, (int, float)) else ""


class _Moments:
    """Sums of boxes and of their squares, by slot."""

    def __init__(self) -> None:
        self._count: torch.Tensor | float = 0.0
        self._sum: torch.Tensor | float = 0.0
        self._squares: torch.Tensor | float = 0.0

    def add(self, boxes: torch.Tensor, counted: torch.Tensor) -> None:
        """Add (B, Q, 4) boxes where (B, Q) counted."""
        weights = counted[..., None].double()
        self._count = self._count + weights.sum(0)
        self._sum = self._sum + (boxes * weights).sum(0)
        self._squares = self._squares + (boxes.double() ** 2 * weights).sum(0)

    def mean(self) -> torch.Tensor:
        """Return (Q, 4); 0 where nothing was counted."""
        return torch.as_tensor(self._sum) / torch.as_tensor(self._count).clamp(min=1)

    def deviation(self) -> torch.Tensor:
        """Return (Q, 4) standard deviations, of the images themselves (divided by their number)."""
        mean = self.mean()
        variance = torch.as_tensor(self._squares) / torch.as_tensor(self._count).clamp(min=1) - mean**2
        return variance.clamp(min=0).sqrt()


def _plain(box: torch.Tensor) -> list[float]:
    return [round(value, _DIGITS) for value in box.tolist()]
