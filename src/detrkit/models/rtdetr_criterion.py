"""The losses of RT-DETR: class scores learn how well the box fits (Zhao et al. 2024, Sec. 4.3); DEIM's as an option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.config.loss import ClassLoss
from detrkit.models.dino_criterion import DenoisingCriterion
from detrkit.models.matcher import FocalMatcher
from detrkit.models.set_criterion import MatchedPairs, Normalizers
from detrkit.ops.boxes import cxcywh_to_xyxy, matched_iou

# alpha and gamma as published
PUBLISHED_FOCUS: Mapping[ClassLoss, tuple[float, float]] = {
    "vfl": (0.75, 2.0),
    "mal": (1.0, 1.5),
    "focal": (0.25, 2.0),
}


class RTDETRCriterion(DenoisingCriterion):
    """Set prediction loss whose class targets can be the IoU q of a matched box and its object, without gradient.

    With p the probability of a class, every element that is not the class of a matched object adds
    alpha p^gamma * -log(1 - p), in which p^gamma has no gradient. The class of a matched object adds

    - "vfl", the varifocal loss (Zhang et al. 2021, Eq. 2): q * BCE(p, q);
    - "mal", the matchability-aware loss (DEIM, Huang et al. 2025, Sec. 3.3): BCE(p, q^gamma). A poor match, which VFL
      gives a weight of next to 0, is learned here, as a negative.
    - "focal", the focal loss of Deformable DETR and DINO, which does not know the IoU: alpha (1 - p)^gamma * -log(p),
      and the others have (1 - alpha) in place of alpha. From random weights, whose boxes fit nothing yet, it learns
      the classes from the first step.

    The class term is named by its loss: loss_vfl, loss_mal or loss_focal. Terms of the tokens that became queries have
    the suffix _enc, those of denoising queries _dn, _dn_0, ... The divisor of all is the number of objects.

    Args:
        class_loss: "vfl", "mal" or "focal".
        alpha, gamma: of the class loss; by default 0.75 and 2 for "vfl", 1 and 1.5 for "mal", 0.25 and 2 for "focal".
            The matcher has its own.
        class_weights: of each label; by default 1. The term of a matched object of class c counts w_c times.
        settings: as `SetCriterion`; in `weights` the class term has its name: loss_vfl, loss_mal or loss_focal.

    Raises:
        ValueError: another class loss.
    """

    encoder_suffix = "enc"

    def __init__(
        self, *, class_loss: ClassLoss = "vfl", alpha: float | None = None, gamma: float | None = None, **settings: Any
    ) -> None:
        if class_loss not in get_args(ClassLoss):
            raise ValueError(f"class_loss is {class_loss!r}: choose one of {', '.join(get_args(ClassLoss))}")
        published = PUBLISHED_FOCUS[class_loss]
        super().__init__(
            alpha=published[0] if alpha is None else alpha, gamma=published[1] if gamma is None else gamma, **settings
        )
        self.class_loss = class_loss

    def _class_terms(
        self,
        logits: Tensor,
        pairs: MatchedPairs,
        normalizers: Normalizers,
        class_weights: Tensor | None,
    ) -> dict[str, Tensor]:
        """Compute the class loss, (L,): summed over queries and classes, divided by the number of objects."""
        if self.class_loss == "focal":
            return {"loss_focal": super()._class_terms(logits, pairs, normalizers, class_weights)["loss_ce"]}
        positives = (*pairs.indices, pairs.labels)
        with torch.no_grad():
            quality = matched_iou(cxcywh_to_xyxy(pairs.boxes), cxcywh_to_xyxy(pairs.target_boxes))  # (L, M)
            weight = quality
            if self.class_loss == "mal":
                quality, weight = quality.pow(self.gamma), torch.ones_like(quality)
            if class_weights is not None:
                weight = weight * class_weights[pairs.labels]
            negative_weight = logits.sigmoid().pow_(self.gamma).mul_(self.alpha)  # (L, B, Q, C)
            negative_weight[positives] = 0.0
        negative = (negative_weight * F.softplus(logits)).sum((1, 2, 3))  # -log(1 - p) is softplus
        positive = weight * F.binary_cross_entropy_with_logits(logits[positives], quality, reduction="none")  # (L, M)
        return {f"loss_{self.class_loss}": (negative + positive.sum(1)) / normalizers.num_boxes}


def rtdetr_criterion(
    *,
    num_classes: int,
    set_cost_class: float = 2.0,
    set_cost_bbox: float = 5.0,
    set_cost_giou: float = 2.0,
    class_loss: ClassLoss = "vfl",
    cls_loss_coef: float = 1.0,
    focal_alpha: float | None = None,
    focal_gamma: float | None = None,
    bbox_loss_coef: float = 5.0,
    giou_loss_coef: float = 2.0,
    class_weights: Sequence[float] | None = None,
) -> RTDETRCriterion:
    """Build the losses of RT-DETR; the defaults are the published values, for denoising queries and tokens alike.

    `focal_alpha` and `focal_gamma` are those of the class loss, None as published for it. The matching cost keeps
    alpha 0.25 and gamma 2.
    """
    return RTDETRCriterion(
        num_classes=num_classes,
        class_loss=class_loss,
        alpha=focal_alpha,
        gamma=focal_gamma,
        matcher=FocalMatcher(cost_class=set_cost_class, cost_bbox=set_cost_bbox, cost_giou=set_cost_giou),
        weights={f"loss_{class_loss}": cls_loss_coef, "loss_bbox": bbox_loss_coef, "loss_giou": giou_loss_coef},
        class_weights=class_weights,
    )
