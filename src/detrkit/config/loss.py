"""The settings of the losses and of the matching costs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from detrkit.config.strict import STRICT
from detrkit.utils.class_weight_words import CLASS_WEIGHTS
from detrkit.utils.ranges import (
    Range,
    Share,
    Weight,
)

ClassLoss = Literal["vfl", "mal", "focal"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The weights of the losses and of the matching costs. None means as published for the model."""

    __pydantic_config__ = STRICT

    set_cost_class: Weight | None = None
    """Matching cost of the class (1; deformable 2)."""
    set_cost_bbox: Weight | None = None
    """Matching cost of the box's L1 distance (5)."""
    set_cost_giou: Weight | None = None
    """Matching cost of the box's GIoU (2)."""
    class_loss: ClassLoss | None = None
    """RT-DETR: vfl, the varifocal loss as published; mal, DEIM's matchability-aware one, which learns poor matches
    too; or focal, that of Deformable DETR, which knows nothing of the boxes."""
    cls_loss_coef: Weight | None = None
    """Weight of the class loss (1; deformable 2)."""
    bbox_loss_coef: Weight | None = None
    """Weight of the box's L1 loss (5)."""
    giou_loss_coef: Weight | None = None
    """Weight of the box's GIoU loss (2)."""
    eos_coef: Weight | None = None
    """DETR: weight of the no-object class (0.1)."""
    focal_alpha: Share | None = None
    """Deformable DETR: alpha of the focal loss (0.25); RT-DETR: of the class loss (vfl 0.75, mal 1, focal 0.25). The
    matching cost keeps 0.25."""
    focal_gamma: Annotated[float, Range(ge=0, le=100)] | None = None
    """Deformable DETR: gamma of the focal loss (2); RT-DETR: of the class loss (vfl 2, mal 1.5, focal 2). The matching
    cost keeps 2."""
    mask_loss_coef: Weight | None = None
    """With masks: weight of the focal loss of the pixels (1)."""
    dice_loss_coef: Weight | None = None
    """With masks: weight of the dice loss (1)."""

    class_weights: Annotated[dict[str, Weight] | Literal["balanced"] | None, CLASS_WEIGHTS] = None
    """Weights of objects in the class loss by the names of their classes, such as --class-weights WBC=2 RBC=0.5; others
    have 1. balanced: each class alike, whatever its number of objects."""

    def overrides(self) -> dict[str, Any]:
        """Return the settings of `build_criterion` that were set, without the weights of classes."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None and k != "class_weights"}
