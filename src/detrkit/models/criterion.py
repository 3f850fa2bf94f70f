"""`build_criterion`: the losses of each model with their published settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detrkit.models.losses import dice_loss as dice_loss
from detrkit.models.losses import focal_loss as focal_loss
from detrkit.models.matcher import FocalMatcher, HungarianMatcher
from detrkit.models.registry import Activation, Architecture, architecture
from detrkit.models.set_criterion import FocalCriterion as FocalCriterion
from detrkit.models.set_criterion import Normalizers as Normalizers
from detrkit.models.set_criterion import SetCriterion as SetCriterion


def softmax_criterion(
    *,
    num_classes: int,
    set_cost_class: float = 1.0,
    set_cost_bbox: float = 5.0,
    set_cost_giou: float = 2.0,
    cls_loss_coef: float = 1.0,
    eos_coef: float = 0.1,
    bbox_loss_coef: float = 5.0,
    giou_loss_coef: float = 2.0,
    mask_loss_coef: float = 1.0,
    dice_loss_coef: float = 1.0,
    class_weights: Sequence[float] | None = None,
) -> SetCriterion:
    """Build the losses of DETR; the defaults are the published values."""
    weights = _weights(cls_loss_coef, bbox_loss_coef, giou_loss_coef, mask_loss_coef, dice_loss_coef)
    matcher = HungarianMatcher(cost_class=set_cost_class, cost_bbox=set_cost_bbox, cost_giou=set_cost_giou)
    return SetCriterion(
        num_classes=num_classes, matcher=matcher, weights=weights, eos_coef=eos_coef, class_weights=class_weights
    )


def sigmoid_criterion(
    *,
    num_classes: int,
    set_cost_class: float = 2.0,
    set_cost_bbox: float = 5.0,
    set_cost_giou: float = 2.0,
    cls_loss_coef: float = 2.0,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    bbox_loss_coef: float = 5.0,
    giou_loss_coef: float = 2.0,
    mask_loss_coef: float = 1.0,
    dice_loss_coef: float = 1.0,
    class_weights: Sequence[float] | None = None,
) -> FocalCriterion:
    """Build the losses of Deformable DETR; the defaults are the published values.

    The focal ones change the loss alone: as in the official code, the matching cost keeps alpha 0.25 and gamma 2.
    """
    return FocalCriterion(
        num_classes=num_classes,
        class_weights=class_weights,
        **focal_parts(
            costs=(set_cost_class, set_cost_bbox, set_cost_giou),
            coefs=(cls_loss_coef, bbox_loss_coef, giou_loss_coef, mask_loss_coef, dice_loss_coef),
            focal=(focal_alpha, focal_gamma),
        ),
    )


def focal_parts(
    *,
    costs: tuple[float, float, float],
    coefs: tuple[float, float, float, float, float],
    focal: tuple[float, float],
) -> dict[str, Any]:
    """Return the arguments of a `FocalCriterion` that follow from official settings.

    Args:
        costs: set_cost_class, set_cost_bbox, set_cost_giou.
        coefs: cls_loss_coef, bbox_loss_coef, giou_loss_coef, mask_loss_coef, dice_loss_coef.
        focal: focal_alpha, focal_gamma.
    """
    matcher = FocalMatcher(cost_class=costs[0], cost_bbox=costs[1], cost_giou=costs[2])
    return {"weights": _weights(*coefs), "matcher": matcher, "alpha": focal[0], "gamma": focal[1]}


def _weights(cls: float, bbox: float, giou: float, mask: float, dice: float) -> dict[str, float]:
    return {"loss_ce": cls, "loss_bbox": bbox, "loss_giou": giou, "loss_mask": mask, "loss_dice": dice}


# the losses of a model that is registered without its own, by the activation of its logits
CRITERIA: Mapping[Activation, Callable[..., SetCriterion]] = {
    "softmax": softmax_criterion,
    "sigmoid": sigmoid_criterion,
}


def loss_settings(arch: Architecture) -> dict[str, Any]:
    """Return the settings of a model's losses with their published values: what `build_criterion` can override."""
    parameters = inspect.signature(arch.criterion or CRITERIA[arch.activation]).parameters
    return {name: p.default for name, p in parameters.items() if name != "num_classes"}


def build_criterion(
    name: str, *, num_classes: int | None = None, **overrides: float | str | Sequence[float] | None
) -> SetCriterion:
    """Build the published losses of a model.

    Args:
        name: as `build_model`.
        num_classes: labels of the model; by default those of the published weights.
        overrides: official names with their published values: set_cost_class, set_cost_bbox, set_cost_giou (1, 5, 2;
            deformable 2, 5, 2), cls_loss_coef, bbox_loss_coef, giou_loss_coef (1, 5, 2; deformable 2, 5, 2),
            mask_loss_coef and dice_loss_coef (1, 1), eos_coef (DETR: 0.1), focal_alpha and focal_gamma (deformable:
            0.25, 2), class_loss (RT-DETR: "vfl", "mal" or "focal", see `RTDETRCriterion`). The focal ones change the
            loss alone: as in the official code, the matching cost keeps alpha 0.25 and gamma 2. class_weights: a weight
            for each label in the class loss (`SetCriterion`, `FocalCriterion`). A model registered with its own
            criterion has the settings of that.

    Raises:
        ValueError: an unknown model.
        TypeError: an override the model's loss does not have.
    """
    arch = architecture(name)
    settings = loss_settings(arch)
    unknown = sorted(set(overrides) - set(settings))
    if unknown:
        choices = f"choose from {', '.join(settings)}" if settings else "it has none"
        raise TypeError(f"{name} has no loss setting {', '.join(unknown)}: {choices}")
    build = arch.criterion or CRITERIA[arch.activation]
    return build(num_classes=arch.num_classes if num_classes is None else num_classes, **overrides)
