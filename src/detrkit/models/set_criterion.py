"""The set prediction loss (DETR Sec. 3.1, Eq. 2 and Sec. A.2), for all decoder layers at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.models.losses import cardinality_error, class_error, dice_loss, focal_loss, mask_shape, negative_focal_loss
from detrkit.models.matcher import HungarianMatcher, Matches
from detrkit.ops.boxes import cxcywh_to_xyxy, generalized_iou
from detrkit.structures.outputs import Outputs, Target

SUFFIXES = ("enc", "interm", "dn", "one2many")  # of terms besides the layers' numbers
MASK_ALPHA, MASK_GAMMA = 0.25, 2.0  # of the focal loss of masks, as published


@dataclass(frozen=True)
class Normalizers:
    """Divisors of the loss terms.

    Both follow from the number of objects of each image, before any matching. So the engine sums them over processes
    and over the parts of an accumulated batch, and the gradient does not depend on how a batch was split.

    Attributes:
        num_boxes: number of objects, the divisor of the box and mask terms; not 0 (published: at least 1).
        class_weight: summed weight of all queries in the class term: 1 a matched query, `eos_coef` any other.
        empty: whether there is no object, so that `num_boxes` is that least number.
    """

    num_boxes: float
    class_weight: float
    empty: bool = False

    def times(self, repeats: int) -> Normalizers:
        """Return the divisors where every object counts several times."""
        return self if self.empty else replace(self, num_boxes=repeats * self.num_boxes)


class MatchedPairs(NamedTuple):
    """The M matched pairs of a query and its object in each of L layers.

    Attributes:
        indices: layer, image and query of every pair, which index (L, B, Q, ...) tensors; each broadcasts to (L, M).
        labels: (L, M) int64, the classes of the objects.
        boxes: (L, M, 4) cxcywh, predicted by the queries.
        target_boxes: (L, M, 4) cxcywh, of the objects.
    """

    indices: tuple[Tensor, Tensor, Tensor]
    labels: Tensor
    boxes: Tensor
    target_boxes: Tensor


class SetCriterion(nn.Module):
    """Set prediction loss: matching, class, L1 and GIoU terms of all layers, mask terms of the last; official names.

    Args:
        num_classes: labels of the model; its logits have one more column, "no object".
        matcher: the assignment.
        weights: weight of each loss term in the total, by name without layer suffix.
        eos_coef: weight of the no-object class in the class term (published: 0.1).
        class_weights: of each label; by default 1. In the class term the cross-entropy of a query that is matched to an
            object of class c counts w_c times. The divisor stays as published: 1 a matched query, `eos_coef` any other.
    """

    class_weights: Tensor  # (num_classes + 1,), the last is eos_coef

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: Mapping[str, float],
        eos_coef: float = 0.1,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = dict(weights)
        self.eos_coef = eos_coef
        self.weighted = class_weights is not None
        label_weights = [1.0] * num_classes if class_weights is None else list(class_weights)
        if len(label_weights) != num_classes:
            raise ValueError(f"{len(label_weights)} class weights for {num_classes} classes")
        self.register_buffer("class_weights", torch.tensor([*label_weights, eos_coef]), persistent=False)

    def normalizers(self, targets: Sequence[Target], queries: int) -> Normalizers:
        """Compute the divisors of one batch from `len(target)`, without a device synchronization.

        Args:
            targets: one per image.
            queries: number of queries of the model.
        """
        matched = sum(min(len(t), queries) for t in targets)
        unmatched = len(targets) * queries - matched
        return Normalizers(float(sum(len(t) for t in targets)), matched + self.eos_coef * unmatched)

    def forward(
        self, outputs: Outputs, targets: Sequence[Target], *, normalizers: Normalizers | None = None
    ) -> dict[str, Tensor]:
        """Compute all loss terms and the two official diagnostics.

        Args:
            outputs: of the model; `aux` layers get their own terms.
            targets: one per image, boxes cxcywh in [0, 1]; with masks if the model has them.
            normalizers: divisors of the whole global batch; by default those of this one.

        Returns:
            Scalars: loss_ce, loss_bbox, loss_giou, class_error (percent of matched queries whose best class is wrong),
            cardinality_error (mean difference between objects and queries whose best class is not the last); for
            auxiliary layer i the same without class_error, with suffix _i. With masks, loss_mask and loss_dice of the
            last layer. Unweighted: see `total`.

        Raises:
            DetrkitError: the model has masks, a target has none.
            NonFiniteError: an output is NaN or infinite.
            ValueError: targets and outputs are not of one batch, or a label is out of range (CPU only: a GPU would
                have to be waited for).
        """
        layers = [*outputs.aux, outputs]
        logits = torch.stack([o.logits for o in layers]).float()  # (L, B, Q, C)
        boxes = torch.stack([o.boxes for o in layers]).float()  # (L, B, Q, 4)
        if len(targets) != logits.shape[1]:
            raise ValueError(f"{len(targets)} targets for a batch of {logits.shape[1]} images")
        labels = torch.cat([t.labels for t in targets]).long()  # (N,)
        if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise ValueError(
                f"labels run from {int(labels.min())} to {int(labels.max())}, "
                f"the model knows 0 to {self.num_classes - 1}: check num_classes and the dataset's class ids"
            )
        if normalizers is None:
            local = self.normalizers(targets, logits.shape[2])
            normalizers = replace(local, num_boxes=max(local.num_boxes, 1.0), empty=local.num_boxes == 0)

        terms, matches = self._terms(logits, boxes, targets, normalizers)
        losses = by_layer(terms)
        losses["class_error"] = class_error(logits[-1], matches, labels)
        if outputs.has_masks:
            losses |= self._mask_terms(outputs, targets, matches, normalizers)
        if outputs.encoder is not None:
            losses |= self._encoder_terms(outputs.encoder, targets, normalizers)
        return losses | self._branch_terms(outputs, targets, normalizers)

    def _branch_terms(self, outputs: Outputs, targets: Sequence[Target], normalizers: Normalizers) -> dict[str, Tensor]:
        """Compute the terms of queries that take part in training alone, under their official names: here of none."""
        return {}

    def _terms(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Sequence[Target],
        normalizers: Normalizers,
        *,
        objectness: bool = False,
        matches: Matches | None = None,
        warn: bool = True,
    ) -> tuple[dict[str, Tensor], Matches]:
        """Compute all terms, (L,) each, and the matches from (L, B, Q, C) logits and (L, B, Q, 4) boxes.

        With `objectness` label 0 stands for all classes, whose weights do not count. `matches` are made unless they are
        given, with a warning (`warn`) of images with more objects than queries.
        """
        if matches is None:
            matches = self.matcher.match(logits.detach(), boxes.detach(), targets, warn=warn)
        labels = torch.cat([t.labels for t in targets]).long()
        target_boxes = torch.cat([t.boxes for t in targets]).float()
        layer = torch.arange(len(logits), device=logits.device)[:, None]  # (L, 1)
        indices = (layer, matches.image, matches.query)
        pairs = MatchedPairs(indices, labels[matches.target], boxes[indices], target_boxes[matches.target])
        class_weights = self.class_weights if self.weighted and not objectness else None
        terms = self._class_terms(logits, pairs, normalizers, class_weights)
        terms |= self._box_terms(pairs, normalizers)
        terms["cardinality_error"] = cardinality_error(logits, targets)
        return terms, matches

    def _encoder_terms(
        self, encoder: Outputs, targets: Sequence[Target], normalizers: Normalizers
    ) -> dict[str, Tensor]:
        """Compute the terms of the two-stage proposals, suffix _enc: all objects have label 0, the objectness."""
        proposal_targets = [replace(t, labels=torch.zeros_like(t.labels)) for t in targets]
        logits, boxes = encoder.logits[None].float(), encoder.boxes[None].float()
        terms, _ = self._terms(logits, boxes, proposal_targets, normalizers, objectness=True)
        return {f"{name}_enc": value[0] for name, value in terms.items()}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Compute the loss to minimize: the sum of all terms, times the weight of their name without suffixes."""
        weighted = [
            value * self.weights[base] for name, value in losses.items() if (base := base_name(name)) in self.weights
        ]
        return torch.stack(weighted).sum()

    def _class_terms(
        self,
        logits: Tensor,
        pairs: MatchedPairs,
        normalizers: Normalizers,
        class_weights: Tensor | None,
    ) -> dict[str, Tensor]:
        """Compute the weighted cross-entropy, (L,): the target of unmatched queries is "no object".

        Args:
            logits: (L, B, Q, C).
            pairs: M in each layer.
            normalizers: `class_weight` divides, so that it is a weighted mean (as torch's weighted cross-entropy).
            class_weights: (C,) of the labels and no object, or None for 1 and `eos_coef`.
        """
        if class_weights is None:
            class_weights = torch.ones_like(self.class_weights)
            class_weights[-1] = self.eos_coef
        target_classes = torch.full(logits.shape[:3], self.num_classes, dtype=torch.int64, device=logits.device)
        target_classes[pairs.indices] = pairs.labels
        entropy = F.cross_entropy(logits.flatten(0, 2), target_classes.flatten(), class_weights, reduction="none")
        return {"loss_ce": entropy.view(len(logits), -1).sum(1) / normalizers.class_weight}

    def _box_terms(self, pairs: MatchedPairs, normalizers: Normalizers) -> dict[str, Tensor]:
        """Compute L1 and GIoU loss, (L,) each, of the matched boxes (Eq. 10)."""
        giou = generalized_iou(cxcywh_to_xyxy(pairs.boxes), cxcywh_to_xyxy(pairs.target_boxes))  # (L, M)
        return {
            "loss_bbox": (pairs.boxes - pairs.target_boxes).abs().sum((1, 2)) / normalizers.num_boxes,
            "loss_giou": (1 - giou).sum(1) / normalizers.num_boxes,
        }

    def _mask_terms(
        self, outputs: Outputs, targets: Sequence[Target], matches: Matches, normalizers: Normalizers
    ) -> dict[str, Tensor]:
        """Compute focal and dice loss of the masks of the last layer's matched queries (Sec. 4.4).

        Masks are resized to the image, whose pixels count alike. Outputs without `mask_sizes` are compared as
        published, over the whole padded batch with padding as background.
        """
        counts = [min(len(t), outputs.logits.shape[1]) for t in targets]
        pred_masks = outputs.masks_of(matches.query[-1].split(counts))
        objects = matches.target[-1].split(counts)
        starts = accumulate((len(t) for t in targets), initial=0)
        shapes = [mask_shape(t) for t in targets]
        if outputs.mask_sizes is None:
            shapes = [(max(h for h, _ in shapes), max(w for _, w in shapes))] * len(shapes)
        focal, dice = [], []
        for masks, indices, start, target, (height, width) in zip(
            pred_masks, objects, starts, targets, shapes, strict=False
        ):
            assert target.masks is not None
            target_masks = target.masks[indices - start]  # (M, h, w)
            target_masks = F.pad(target_masks, (0, width - target_masks.shape[2], 0, height - target_masks.shape[1]))
            masks = F.interpolate(masks[:, None].float(), size=(height, width), mode="bilinear")[:, 0]
            focal.append(focal_loss(masks, target_masks, alpha=MASK_ALPHA, gamma=MASK_GAMMA).mean((1, 2)).sum())
            dice.append(dice_loss(masks, target_masks).sum())
        return {
            "loss_mask": torch.stack(focal).sum() / normalizers.num_boxes,
            "loss_dice": torch.stack(dice).sum() / normalizers.num_boxes,
        }


class FocalCriterion(SetCriterion):
    """The loss of Deformable DETR: a sigmoid focal class term (Lin et al. 2017, Eq. 5) over the number of objects.

    Args:
        alpha, gamma: of the focal loss (published: 0.25, 2). The matcher has its own.
        class_weights: of each label; by default 1. The term of a positive (a matched query at the class c of its
            object) counts w_c times: w_c alpha (1 - p)^gamma * -log p. Negatives and the divisor stay as published.
        settings: as `SetCriterion`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: Mapping[str, float],
        alpha: float = 0.25,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(num_classes=num_classes, matcher=matcher, weights=weights, class_weights=class_weights)
        self.alpha = alpha
        self.gamma = gamma

    def _class_terms(
        self,
        logits: Tensor,
        pairs: MatchedPairs,
        normalizers: Normalizers,
        class_weights: Tensor | None,
    ) -> dict[str, Tensor]:
        """Compute the focal loss, (L,): summed over queries and classes, divided by the number of objects."""
        positives = (*pairs.indices, pairs.labels)
        wrong_logits = logits.index_put(positives, -logits[positives])  # of the wrong answer: -x where positive
        focal = negative_focal_loss(wrong_logits, self.gamma)
        # all elements are weighted as negatives, then the positives corrected by the difference of the weights
        positive = focal[positives]  # (L, M)
        if class_weights is None:
            correction = (2 * self.alpha - 1) * positive.sum(1)
        else:
            correction = ((class_weights[pairs.labels] * self.alpha - (1 - self.alpha)) * positive).sum(1)
        total = (1 - self.alpha) * focal.sum((1, 2, 3)) + correction
        return {"loss_ce": total / normalizers.num_boxes}


def by_layer(terms: Mapping[str, Tensor], suffix: str = "") -> dict[str, Tensor]:
    """Name the (L,) values of terms by their layer: the last without a number, before it _0, _1, ...

    Args:
        terms: by name.
        suffix: between the name and the number.
    """
    named: dict[str, Tensor] = {}
    for name, value in terms.items():
        *earlier, last = value.unbind()
        named |= {f"{name}{suffix}": last} | {f"{name}{suffix}_{i}": one for i, one in enumerate(earlier)}
    return named


def base_name(name: str) -> str:
    """Return a name without suffixes: loss_ce_3, loss_ce_enc, loss_ce_dn_0, loss_ce_0_one2many -> loss_ce."""
    head, _, tail = name.rpartition("_")
    return base_name(head) if tail.isdigit() or tail in SUFFIXES else name
