"""The optimal one-to-one assignment of predictions to objects (DETR Sec. 3.1, Eq. 1)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from detrkit.ops.boxes import cxcywh_to_xyxy, generalized_iou
from detrkit.structures.outputs import MASKED_LOGIT, Outputs, Target
from detrkit.utils.devices import copies_overlap

Indices = list[tuple[Tensor, Tensor]]
_UNMATCHABLE = 1e9  # cost of a query that is none


class NonFiniteError(FloatingPointError):
    """Error for a number that must be finite and is not.

    Attributes:
        what: the quantity, e.g. "matching cost" or "loss_giou".
        images: known ids of the images concerned.
    """

    def __init__(self, what: str, images: Sequence[int | str | None]) -> None:
        super().__init__(f"{what} is not finite for image(s) {', '.join(map(str, images)) or '?'}")
        self.what = what
        self.images = list(images)


@dataclass(frozen=True)
class Matches:
    """The matched pairs of several decoder layers, ready to index stacked outputs.

    Every layer has the same number M of pairs, the sum over the images of min(objects, queries). Queries that came from
    padding (`MASKED_LOGIT`) are not counted: they are never matched.

    Attributes:
        image: (L, M) int64, index of the image of each pair.
        query: (L, M) int64, index of the query.
        target: (L, M) int64, index of the object among the concatenated objects of the batch.
    """

    image: Tensor
    query: Tensor
    target: Tensor


class HungarianMatcher:
    """Assignment of queries to objects at the lowest total cost, per image and layer.

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
        self._warned = False

    def __call__(self, outputs: Outputs, targets: Sequence[Target]) -> Indices:
        """Match the last layer: per image (query indices, object indices), int64 on the CPU, queries ascending.

        Args:
            outputs: of a batch; aux and encoder outputs are ignored.
            targets: one per image.

        Raises:
            NonFiniteError: an output is NaN or infinite.
        """
        return [
            (torch.from_numpy(query), torch.from_numpy(target))
            for query, target in self._assign(outputs.logits[None], outputs.boxes[None], targets)[0]
        ]

    def match(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], *, warn: bool = True) -> Matches:
        """Match all layers with one copy from the device and one back.

        Args:
            logits: (L, B, Q, C).
            boxes: (L, B, Q, 4) cxcywh in [0, 1].
            targets: B of them.
            warn: of images with more objects than queries.

        Raises:
            NonFiniteError: an output is NaN or infinite.
        """
        assigned = self._assign(logits, boxes, targets, warn=warn)
        starts = accumulate((len(t) for t in targets), initial=0)
        # the images of the pairs are the same in every layer: they depend on the numbers of objects alone
        image = np.concatenate([np.full_like(query, b) for b, (query, _) in enumerate(assigned[0])])  # (M,)
        shift = np.concatenate([np.full_like(query, n) for n, (query, _) in zip(starts, assigned[0], strict=False)])
        query = np.stack([np.concatenate([query for query, _ in layer]) for layer in assigned])  # (L, M)
        target = np.stack([np.concatenate([target for _, target in layer]) for layer in assigned]) + shift
        pairs = torch.from_numpy(np.stack([np.broadcast_to(image, query.shape), query, target]))
        return Matches(*pairs.to(logits.device))  # 3 x (L, M)

    def _warn_of_crowded(self, image: int | str | None, count: int, queries: int) -> None:
        """Warn of the first image that has more objects than queries."""
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"image {image} has {count} objects but the model only {queries} queries: {count - queries} of them cannot "
            "be learned; build the model with a larger num_queries (further such images are not named)",
            stacklevel=5,
        )

    def class_cost(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the class cost of N objects, -p(class) (Sec. 3.1).

        Args:
            logits: (L, B, Q, C).
            images: (N,) int64, the image of each object.
            labels: (N,) int64, the class of each object.

        Returns:
            (N, L, Q).
        """
        # the exponential of the gathered log-softmax is cheaper than a whole softmax: 93 against 136 us (91 classes,
        # 4,800 rows)
        return -logits.log_softmax(-1)[:, images, :, labels].exp()

    @torch.no_grad()
    def _assign(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], *, warn: bool = True
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Return per layer and image the matched (queries, objects) as int64 arrays, queries ascending."""
        layers, _, queries = logits.shape[:3]
        counts = [len(t) for t in targets]
        for count, target in zip(counts, targets, strict=True):
            if warn and count > queries:
                self._warn_of_crowded(target.image_id, count, queries)
        if max(counts) == 0:
            if not (logits.isfinite().all() and boxes.isfinite().all()):
                raise NonFiniteError("the model's output", [t.image_id for t in targets])
            none = np.zeros(0, np.int64)
            return [[(none, none) for _ in targets] for _ in range(layers)]

        image_of_object = np.repeat(np.arange(len(targets)), counts)  # (N,)
        images = torch.from_numpy(image_of_object).to(logits.device, non_blocking=copies_overlap(logits.device))
        labels = torch.cat([t.labels for t in targets]).long()  # (N,)
        target_boxes = torch.cat([t.boxes for t in targets]).float()  # (N, 4)
        cost = self.cost_class * self.class_cost(logits.float(), images, labels)
        cost += _box_cost(boxes.float(), images, target_boxes, l1=self.cost_bbox, giou=self.cost_giou)
        # a query that came from padding learns nothing: to call it an object would cost all of its masked logit
        cost.masked_fill_(logits[:, images, :, labels] <= MASKED_LOGIT / 2, _UNMATCHABLE)
        costs = cost.cpu().numpy()  # the step's one transfer; (N, L, Q)
        bad = np.unique(image_of_object[~np.isfinite(costs).all((1, 2))])
        if len(bad):
            raise NonFiniteError("the model's output", [targets[b].image_id for b in bad.tolist()])
        per_image_costs = np.split(costs, np.cumsum(counts)[:-1])  # B (objects, L, Q)
        return [[_solve(image[:, layer]) for image in per_image_costs] for layer in range(layers)]


class FocalMatcher(HungarianMatcher):
    """Matcher of Deformable DETR: the class cost is the focal loss saved by predicting the class.

    Args:
        alpha, gamma: of the cost (published: 0.25, 2, whatever those of the loss are).
        costs: as `HungarianMatcher` (published: 2, 5, 2).
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, **costs: float) -> None:
        super().__init__(**costs)
        self.alpha = alpha
        self.gamma = gamma

    def class_cost(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the cost as `HungarianMatcher.class_cost`, from sigmoid probabilities p of the object's class."""
        p = logits[:, images, :, labels].sigmoid()  # (N, L, Q)
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        return positive - negative


def _solve(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the (queries, objects) of the cheapest pairs of (objects, Q) costs, queries ascending.

    Where there are fewer queries than objects, of those that can be matched, some objects have none.
    """
    from scipy.optimize import linear_sum_assignment  # a quarter of a second that prediction does not need

    objects, queries = linear_sum_assignment(costs)
    possible = costs[objects, queries] < _UNMATCHABLE
    objects, queries = objects[possible], queries[possible]
    order = queries.argsort()
    return queries[order], objects[order]


def _box_cost(boxes: Tensor, images: Tensor, target_boxes: Tensor, *, l1: float, giou: float) -> Tensor:
    """Compute the (N, L, Q) cost l1 * L1 - giou * GIoU of every object with the queries of its own image.

    Coordinates are the outermost dimension in memory and queries the innermost, so that all arithmetic runs along
    neighboring values.

    Args:
        boxes: (L, B, Q, 4) cxcywh.
        images: (N,) int64, the image of each object.
        target_boxes: (N, 4) cxcywh.
        l1: weight of the summed differences of coordinates.
        giou: weight of the generalized IoU.
    """
    target_boxes = target_boxes[:, None, None]  # (N, 1, 1, 4)
    pred_boxes = _gather_boxes(boxes, images)  # (N, L, Q, 4)
    overlap = generalized_iou(_gather_boxes(cxcywh_to_xyxy(boxes), images), cxcywh_to_xyxy(target_boxes))  # (N, L, Q)
    return (pred_boxes - target_boxes).abs_().sum(-1).mul_(l1).sub_(overlap, alpha=giou)


def _gather_boxes(boxes: Tensor, images: Tensor) -> Tensor:
    """Gather from (L, B, Q, 4) boxes those of N images, (N, L, Q, 4), a plane for each coordinate."""
    return boxes.permute(3, 1, 0, 2).contiguous().index_select(1, images).movedim(0, -1)
