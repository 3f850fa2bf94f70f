"""The optimal one-to-one assignment of predictions to objects (DETR Sec. 3.1, Eq. 1)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detrkit.models.outputs import Outputs, Target
from detrkit.ops.boxes import cxcywh_to_xyxy, generalized_iou

NAMED_IMAGES = 5  # of those with more objects than queries
Indices = list[tuple[Tensor, Tensor]]


class NonFiniteError(FloatingPointError):
    """Something that must be a finite number is not.

    Attributes:
        what: the quantity, e.g. "matching cost" or "loss_giou".
        images: ids of the images concerned, as far as they are known.
    """

    def __init__(self, what: str, images: Sequence[int | str | None]) -> None:
        super().__init__(f"{what} is not finite for image(s) {', '.join(map(str, images)) or '?'}")
        self.what = what
        self.images = list(images)


@dataclass(frozen=True)
class Matches:
    """The matched pairs of several decoder layers, ready to index stacked outputs.

    Every layer has the same number M of pairs, the sum over the images of min(objects, queries).

    Attributes:
        image: (L, M) int64, the image of each pair.
        query: (L, M) int64, its query.
        target: (L, M) int64, its object, counted over the concatenated objects of the batch.
    """

    image: Tensor
    query: Tensor
    target: Tensor


class HungarianMatcher:
    """Finds, per image and layer, the cheapest pairs of query and object.

    cost = cost_class * class cost + cost_bbox * L1(cxcywh) - cost_giou * GIoU; the class cost of DETR is minus the
    softmax probability of the object's class.

    Args:
        cost_class, cost_bbox, cost_giou: weights of the three parts (published: 1, 5, 2).

    Raises:
        ValueError: all three are 0.
    """

    def __init__(self, *, cost_class: float = 1.0, cost_bbox: float = 5.0, cost_giou: float = 2.0) -> None:
        if cost_class == cost_bbox == cost_giou == 0:
            raise ValueError("at least one matching cost must not be 0")
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self._crowded: set[int | str | None] = set()

    def __call__(self, outputs: Outputs, targets: Sequence[Target]) -> Indices:
        """Matches the last layer: per image (query indices, object indices), int64 on the CPU, queries ascending.

        Args:
            outputs: a batch's outputs; aux and encoder outputs are not looked at.
            targets: one per image.

        Raises:
            NonFiniteError: an output is NaN or infinite.
        """
        return [
            (torch.from_numpy(query), torch.from_numpy(target))
            for query, target in self._assign(outputs.logits[None], outputs.boxes[None], targets)[0]
        ]

    def match(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> Matches:
        """Matches all layers with one copy from the device and one back.

        Args:
            logits: (L, B, Q, C).
            boxes: (L, B, Q, 4) cxcywh in [0, 1].
            targets: B of them.

        Raises:
            NonFiniteError: an output is NaN or infinite.
        """
        starts = np.cumsum([0] + [len(t) for t in targets])
        rows = []  # per layer (3, M): image, query, target
        for layer in self._assign(logits, boxes, targets):
            rows.append(
                np.concatenate(
                    [
                        np.stack([np.full_like(query, b), query, target + starts[b]])
                        for b, (query, target) in enumerate(layer)
                    ],
                    axis=1,
                )
            )
        image, query, target = torch.from_numpy(np.stack(rows, 1)).to(logits.device)  # 3 x (L, M)
        return Matches(image, query, target)

    def _warn_of_crowded(self, image: int | str | None, count: int, queries: int) -> None:
        """Names an image with more objects than queries: each once, and not thousands of them."""
        if image in self._crowded or len(self._crowded) > NAMED_IMAGES:
            return
        self._crowded.add(image)
        if len(self._crowded) > NAMED_IMAGES:
            warnings.warn("further images with more objects than queries are not named", stacklevel=5)
            return
        warnings.warn(
            f"image {image} has {count} objects but the model only {queries} queries: "
            f"{count - queries} of them cannot be learned; build the model with a larger num_queries",
            stacklevel=5,
        )

    def class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(L, B, Q, C) logits and (B, N) labels to the (L, B, Q, N) class cost, -p(class) (Sec. 3.1)."""
        index = labels[None, :, None, :].expand(*logits.shape[:3], -1)  # (L, B, Q, N)
        return -logits.softmax(-1).gather(-1, index)

    @torch.no_grad()
    def _assign(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target]
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Per layer and image the matched (queries, objects) as int64 arrays."""
        layers, _, queries = logits.shape[:3]
        counts = [len(t) for t in targets]
        for count, target in zip(counts, targets, strict=True):
            if count > queries:
                self._warn_of_crowded(target.image_id, count, queries)
        if max(counts) == 0:
            if not (logits.isfinite().all() and boxes.isfinite().all()):
                raise NonFiniteError("the model's output", [t.image_id for t in targets])
            none = np.zeros(0, np.int64)
            return [[(none, none) for _ in targets] for _ in range(layers)]

        # padded to the largest count, not to the sum: cost grows with the crowded image, not with the batch
        labels = pad_sequence([t.labels for t in targets], batch_first=True).long()  # (B, N)
        objects = pad_sequence([t.boxes for t in targets], batch_first=True).float()  # (B, N, 4)
        boxes = boxes.float()
        cost = self.cost_bbox * _l1(boxes, objects)
        cost += self.cost_class * self.class_cost(logits.float(), labels)
        cost -= self.cost_giou * _giou(boxes, objects)
        costs = cost.cpu().numpy()  # the step's one transfer; (L, B, Q, N)
        bad = ~np.isfinite(costs).all((0, 2, 3)) & (np.array(counts) > 0)
        if bad.any():
            raise NonFiniteError("the model's output", [targets[b].image_id for b in np.flatnonzero(bad).tolist()])
        return [
            [linear_sum_assignment(costs[layer, b, :, :count]) for b, count in enumerate(counts)]
            for layer in range(layers)
        ]


class FocalMatcher(HungarianMatcher):
    """The matcher of Deformable DETR, whose class cost is the focal loss saved by predicting the class.

    Args:
        alpha, gamma: of the focal loss (published: 0.25, 2).
        costs: as `HungarianMatcher` (published: 2, 5, 2).
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, **costs: float) -> None:
        super().__init__(**costs)
        self.alpha = alpha
        self.gamma = gamma

    def class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As `HungarianMatcher.class_cost`, from sigmoid probabilities p of the object's class."""
        index = labels[None, :, None, :].expand(*logits.shape[:3], -1)  # (L, B, Q, N)
        p = logits.gather(-1, index).sigmoid()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        return positive - negative


def _l1(boxes: Tensor, objects: Tensor) -> Tensor:
    """(L, B, Q, 4) and (B, N, 4) to (L, B, Q, N) sums of absolute differences.

    cdist(p=1) is the fast way on a CPU; on a GPU others measured it 15 to 29 times slower than the difference.
    """
    if boxes.device.type == "cpu":
        return torch.cdist(boxes, objects.expand(len(boxes), -1, -1, -1), p=1)
    return (boxes[:, :, :, None] - objects[None, :, None]).abs().sum(-1)


def _giou(boxes: Tensor, objects: Tensor) -> Tensor:
    """(L, B, Q, 4) and (B, N, 4) cxcywh to (L, B, Q, N) generalised IoU."""
    a = cxcywh_to_xyxy(boxes)[:, :, :, None]  # (L, B, Q, 1, 4)
    b = cxcywh_to_xyxy(objects)[None, :, None]  # (1, B, 1, N, 4)
    return generalized_iou(a, b)
