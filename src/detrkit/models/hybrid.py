"""H-Deformable-DETR (Jia et al. 2023): one-to-one matching, and one-to-many matching of further queries in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from detrkit.models.criterion import FocalCriterion, Normalizers, focal_parts
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.losses import class_error
from detrkit.models.official_names import HYBRID_NAMES
from detrkit.models.registry import register_model
from detrkit.models.set_criterion import by_layer
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Capturing, OneToMany, Outputs, Target


class HybridCriterion(FocalCriterion):
    """The losses of Deformable DETR, of the one-to-many branch too (H-DETR Sec. 3.2, "hybrid branch scheme").

    In the branch every object counts `repeats` times: as many queries are matched to it. Its terms have the suffix
    _one2many and are multiplied by the branch's weight.

    Args:
        k_one2many: queries that an object is matched to in the branch; None: as the model's outputs say.
        lambda_one2many: weight of the branch; None: likewise.
        settings: as `FocalCriterion`.
    """

    def __init__(self, *, k_one2many: int | None = None, lambda_one2many: float | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.k_one2many = k_one2many
        self.lambda_one2many = lambda_one2many

    def _branch_terms(self, outputs: Outputs, targets: Sequence[Target], normalizers: Normalizers) -> dict[str, Tensor]:
        """Compute the terms of the one-to-many branch."""
        branch = outputs.one_to_many
        if branch is None:
            return {}
        repeats = branch.repeats if self.k_one2many is None else self.k_one2many
        weight = branch.weight if self.lambda_one2many is None else self.lambda_one2many
        repeated = [
            replace(t, labels=t.labels.repeat(repeats), boxes=t.boxes.repeat(repeats, 1), masks=None) for t in targets
        ]
        layers = [*branch.outputs.aux, branch.outputs]
        logits = torch.stack([o.logits for o in layers]).float()  # (L, B, Q, C)
        boxes = torch.stack([o.boxes for o in layers]).float()  # (L, B, Q, 4)
        # more objects than queries are common here, and no fault: the model has enough for each object once
        terms, matches = self._terms(logits, boxes, repeated, normalizers.times(repeats), warn=False)
        labels = torch.cat([t.labels for t in repeated]).long()
        named = by_layer({name: value * weight if name.startswith("loss") else value for name, value in terms.items()})
        named["class_error"] = class_error(logits[-1], matches, labels)
        return {f"{name}_one2many": value for name, value in named.items()}


def hybrid_criterion(
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
    k_one2many: int | None = None,
    lambda_one2many: float | None = None,
    class_weights: Sequence[float] | None = None,
) -> HybridCriterion:
    """Build the losses of H-Deformable-DETR; the defaults are the published values, k and lambda those of the model."""
    return HybridCriterion(
        num_classes=num_classes,
        class_weights=class_weights,
        k_one2many=k_one2many,
        lambda_one2many=lambda_one2many,
        **focal_parts(
            costs=(set_cost_class, set_cost_bbox, set_cost_giou),
            coefs=(cls_loss_coef, bbox_loss_coef, giou_loss_coef, mask_loss_coef, dice_loss_coef),
            focal=(focal_alpha, focal_gamma),
        ),
    )


@register_model("h-deformable-detr-r50", activation="sigmoid", criterion=hybrid_criterion, official=HYBRID_NAMES)
class HybridDeformableDETR(DeformableDETR):
    """Two-stage Deformable DETR with refinement that learns from one-to-many matching, too.

    In training, the next best proposals become further queries, each object is matched to several of them, and neither
    kind of query sees the other. Inference is that of the one-to-one queries alone.

    Args:
        num_queries: one-to-one queries.
        num_queries_one2many: one-to-many queries.
        k_one2many: queries that an object is matched to among them (K of Sec. 3.2); used by the losses.
        lambda_one2many: weight of their losses.
        dim_feedforward, dropout: as published for this model.
        options: as of `DeformableDETR`, with both stages, refinement, mixed selection and looking forward twice.
    """

    def __init__(
        self,
        *,
        num_queries: int = 300,
        num_queries_one2many: int = 1500,
        k_one2many: int = 6,
        lambda_one2many: float = 1.0,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        with_box_refine: bool = True,
        two_stage: bool = True,
        mixed_selection: bool = True,
        look_forward_twice: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            num_queries=num_queries,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            with_box_refine=with_box_refine,
            two_stage=two_stage,
            mixed_selection=mixed_selection,
            look_forward_twice=look_forward_twice,
            **options,
        )
        self.num_queries_one2many = num_queries_one2many
        self.k_one2many = k_one2many
        self.lambda_one2many = lambda_one2many
        if mixed_selection or not two_stage:  # one-to-many queries follow the others in the table
            width = self.queries.embedding_dim
            self.queries = nn.Embedding(num_queries + num_queries_one2many, width)

    def with_num_queries(self, count: int) -> Self:
        """Return a model that chooses another number of tokens; it has no one-to-many queries. Errors: as its base."""
        model = super().with_num_queries(count)
        if model is not self:
            model.num_queries_one2many = 0  # its table of contents ends with the one-to-one queries
        return model

    def forward(
        self,
        images: Sequence[Tensor] | Batch,
        targets: Sequence[Target] | None = None,
        capture: Capturing = False,
        defer_masks: bool | None = None,
    ) -> Outputs:
        """Predict a set of objects for every image: as `DeformableDETR`.

        Args:
            images: normalized (3, h, w) float tensors of any sizes, or a Batch.
            targets: not used; part of the interface that the models share.
            capture: of the one-to-one queries.
            defer_masks: as in `DETR.forward`; masks are those of the one-to-one queries.

        Returns:
            Outputs of the one-to-one queries; in training `one_to_many` has those of the others.
        """
        encoded = self.encode(images, capture)
        further = self.num_queries_one2many if self.training else 0
        queries = self._queries(encoded, self.num_queries + further)
        if not further:
            decoded = self._decode(encoded, queries, capture=capture)
            return self._predictions(encoded, queries, decoded, capture=capture, defer_masks=defer_masks)
        total = queries.tgt.shape[1]
        own = min(self.num_queries, total)  # small images have fewer proposals: the branch may be without queries
        kind = torch.arange(total, device=queries.tgt.device) < own
        decoded = self._decode(encoded, queries, attn_mask=kind[:, None] != kind, capture=capture)
        one_to_one = queries.of_first(own)
        outputs = self._predictions(
            encoded, one_to_one, decoded.of_queries(0, own), capture=capture, defer_masks=defer_masks
        )
        branch = decoded.of_queries(own, total).outputs(aux=self.aux_loss)
        outputs.one_to_many = OneToMany(branch, self.k_one2many, self.lambda_one2many)
        return outputs
