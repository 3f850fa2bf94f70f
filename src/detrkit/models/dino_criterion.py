"""The losses of DINO: of matching queries, of the tokens chosen, and of denoising queries (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detrkit.models.criterion import FocalCriterion, Normalizers, focal_parts
from detrkit.models.matcher import Matches
from detrkit.models.set_criterion import MatchedPairs, by_layer
from detrkit.structures.outputs import Denoising, Outputs, Target


class DenoisingCriterion(FocalCriterion):
    """The losses of a model whose first stage learns the classes and whose denoising queries know their objects.

    Terms of denoising queries have the suffix _dn, and before the last layer _dn_0, _dn_1, ...

    Attributes:
        encoder_suffix: of the terms of the tokens that became queries.
    """

    encoder_suffix = "interm"

    def _encoder_terms(
        self, encoder: Outputs, targets: Sequence[Target], normalizers: Normalizers
    ) -> dict[str, Tensor]:
        """Compute the terms of the tokens that became queries, with the classes of the objects."""
        # more objects than tokens are as many as more objects than queries: those are warned of
        logits, boxes = encoder.logits[None].float(), encoder.boxes[None].float()
        terms, _ = self._terms(logits, boxes, targets, normalizers, warn=False)
        return {f"{name}_{self.encoder_suffix}": value[0] for name, value in terms.items()}

    def _branch_terms(self, outputs: Outputs, targets: Sequence[Target], normalizers: Normalizers) -> dict[str, Tensor]:
        """Compute the terms of the denoising queries."""
        return {} if outputs.denoising is None else self._denoising_terms(outputs.denoising, targets, normalizers)

    def _denoising_terms(
        self, denoising: Denoising, targets: Sequence[Target], normalizers: Normalizers
    ) -> dict[str, Tensor]:
        """Compute the terms of the denoising queries (Sec. 3.3): each positive's object is known, negatives have none.

        The divisor is the number of objects times that of the groups, in which each object is once.
        """
        layers = [*denoising.outputs.aux, denoising.outputs]
        logits = torch.stack([o.logits for o in layers]).float()  # (L, B, Q, C)
        boxes = torch.stack([o.boxes for o in layers]).float()  # (L, B, Q, 4)
        columns = (denoising.image, denoising.query, denoising.target)
        matches = Matches(*(column.expand(len(layers), -1) for column in columns))  # (L, M) each
        terms, _ = self._terms(logits, boxes, targets, normalizers.times(denoising.groups), matches=matches)
        return by_layer(terms, "_dn")


class DINOCriterion(DenoisingCriterion):
    """The focal losses of Deformable DETR for matching queries, tokens chosen (_interm) and denoising queries (_dn).

    Two diagnostics more, as in the official code: loss_xy and loss_hw, the two halves of loss_bbox.
    """

    def _box_terms(self, pairs: MatchedPairs, normalizers: Normalizers) -> dict[str, Tensor]:
        """Compute L1 and GIoU loss as `SetCriterion`, and the parts of L1, without gradient."""
        terms = super()._box_terms(pairs, normalizers)
        distance = (pairs.boxes.detach() - pairs.target_boxes).abs().sum(1) / normalizers.num_boxes  # (L, 4)
        return terms | {"loss_xy": distance[:, :2].sum(1), "loss_hw": distance[:, 2:].sum(1)}


def dino_criterion(
    *,
    num_classes: int,
    set_cost_class: float = 2.0,
    set_cost_bbox: float = 5.0,
    set_cost_giou: float = 2.0,
    cls_loss_coef: float = 1.0,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    bbox_loss_coef: float = 5.0,
    giou_loss_coef: float = 2.0,
    mask_loss_coef: float = 1.0,
    dice_loss_coef: float = 1.0,
    class_weights: Sequence[float] | None = None,
) -> DINOCriterion:
    """Build the losses of DINO; the defaults are the published values, for denoising queries and tokens alike."""
    return DINOCriterion(
        num_classes=num_classes,
        class_weights=class_weights,
        **focal_parts(
            costs=(set_cost_class, set_cost_bbox, set_cost_giou),
            coefs=(cls_loss_coef, bbox_loss_coef, giou_loss_coef, mask_loss_coef, dice_loss_coef),
            focal=(focal_alpha, focal_gamma),
        ),
    )
