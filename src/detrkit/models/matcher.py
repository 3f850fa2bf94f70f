"""The optimal one-to-one assignment of predictions to objects (DETR Sec. 3.1, Eq. 1)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

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
        assigned = self._assign(logits, boxes, targets)
        starts = accumulate((len(t) for t in targets), initial=0)
        # the same images in every layer: only who has how many objects decides
        image = np.concatenate([np.full_like(query, b) for b, (query, _) in enumerate(assigned[0])])  # (M,)
        shift = np.concatenate([np.full_like(query, n) for n, (query, _) in zip(starts, assigned[0], strict=False)])
        query = np.stack([np.concatenate([query for query, _ in layer]) for layer in assigned])  # (L, M)
        target = np.stack([np.concatenate([target for _, target in layer]) for layer in assigned]) + shift
        pairs = torch.from_numpy(np.stack([np.broadcast_to(image, query.shape), query, target]))
        return Matches(*pairs.to(logits.device))  # 3 x (L, M)

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

    def class_cost(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The class cost of N objects, -p(class) (Sec. 3.1).

        Args:
            logits: (L, B, Q, C).
            images: (N,) int64, the image of each object.
            labels: (N,) int64, its class.

        Returns:
            (N, L, Q).
        """
        # its exponential costs less than a softmax of what nobody asks for: 93 against 136 us (91 classes, 4,800 rows)
        return -logits.log_softmax(-1)[:, images, :, labels].exp()

    @torch.no_grad()
    def _assign(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target]
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Per layer and image the matched (queries, objects) as int64 arrays, queries ascending."""
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

        owners = np.repeat(np.arange(len(targets)), counts)  # (N,)
        images = torch.from_numpy(owners).to(logits.device, non_blocking=True)
        labels = torch.cat([t.labels for t in targets]).long()  # (N,)
        objects = torch.cat([t.boxes for t in targets]).float()  # (N, 4)
        cost = self.cost_class * self.class_cost(logits.float(), images, labels)
        cost += _box_cost(boxes.float(), images, objects, l1=self.cost_bbox, giou=self.cost_giou)
        costs = cost.cpu().numpy()  # the step's one transfer; (N, L, Q)
        bad = np.unique(owners[~np.isfinite(costs).all((1, 2))])
        if len(bad):
            raise NonFiniteError("the model's output", [targets[b].image_id for b in bad.tolist()])
        own = np.split(costs, np.cumsum(counts)[:-1])  # per image (objects, L, Q)
        return [[_cheapest(image[:, layer]) for image in own] for layer in range(layers)]


class FocalMatcher(HungarianMatcher):
    """The matcher of Deformable DETR, whose class cost is the focal loss saved by predicting the class.

    Args:
        alpha, gamma: of the cost (published: 0.25, 2, whatever those of the loss are).
        costs: as `HungarianMatcher` (published: 2, 5, 2).
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, **costs: float) -> None:
        super().__init__(**costs)
        self.alpha = alpha
        self.gamma = gamma

    def class_cost(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """As `HungarianMatcher.class_cost`, from sigmoid probabilities p of the object's class."""
        p = logits[:, images, :, labels].sigmoid()  # (N, L, Q)
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        return positive - negative


def _cheapest(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(objects, Q) costs to the (queries, objects) of the cheapest pairs, queries ascending."""
    objects, queries = linear_sum_assignment(costs)
    order = queries.argsort()
    return queries[order], objects[order]


def _box_cost(boxes: Tensor, images: Tensor, objects: Tensor, *, l1: float, giou: float) -> Tensor:
    """(N, L, Q) cost l1 * L1 - giou * GIoU of every object with the queries of its own image.

    Coordinates are the outermost dimension in memory and queries the innermost, so that all arithmetic runs along
    neighbouring values.

    Args:
        boxes: (L, B, Q, 4) cxcywh.
        images: (N,) int64, the image of each object.
        objects: (N, 4) cxcywh.
        l1: weight of the summed differences of coordinates.
        giou: weight of the generalised IoU.
    """
    wanted = objects[:, None, None]  # (N, 1, 1, 4)
    found = _own(boxes, images)  # (N, L, Q, 4)
    overlap = generalized_iou(_own(cxcywh_to_xyxy(boxes), images), cxcywh_to_xyxy(wanted))  # (N, L, Q)
    return (found - wanted).abs_().sum(-1).mul_(l1).sub_(overlap, alpha=giou)


def _own(boxes: Tensor, images: Tensor) -> Tensor:
    """(L, B, Q, 4) boxes to the (N, L, Q, 4) of N images, a plane for each coordinate."""
    return boxes.permute(3, 1, 0, 2).contiguous().index_select(1, images).movedim(0, -1)
